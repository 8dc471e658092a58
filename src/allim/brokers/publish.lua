-- Store and announce, in one atomic step: duplicate? position, append with prev, trim, expiry, announce.
-- KEYS: clock, idempotency key, then one history per entry.
-- ARGV: run_id, heard, durable; history_events, history_ttl_s, window_s, fingerprint ('' without a key), then channel
-- and lines per entry.
-- An entry is {p: prev, n: the entry's number in its topic, so that entries between two are counted unread, d: lines}; the
-- first of a history also has {e: `expired` of the clock at that moment}: an earlier history of its topic held nothing newer.
-- Gives {'ok', position, ...} or {'conflict'}.

local history_events, history_ttl_s, window_s, fingerprint = ARGV[4], ARGV[5], ARGV[6], ARGV[7]

local clock = load_clock()
if fingerprint ~= '' then
  local known = redis.call('LRANGE', KEYS[2], 0, -1)
  if known[1] then
    if known[1] ~= fingerprint then
      return {'conflict'}
    end
    redis.call('EXPIRE', KEYS[2], window_s)  -- a write, so that WAIT after it waits for what the first try wrote
    known[1] = 'ok'
    return known
  end
end

-- All that may fail is done before the first write: a script that fails half-way is not undone.
local newest = {}  -- per history: position and number of its newest entry, and whether there was none before this
for key = 3, #KEYS do
  local history = KEYS[key]
  if not newest[history] then
    local entry = redis.call('XREVRANGE', history, '+', '-', 'COUNT', 1)[1]
    newest[history] = entry and {entry[1], tonumber(entry[2][4]) or 0, false} or {'0-0', 0, true}  -- not ours, if without a number
    raise(clock, newest[history][1])
  end
end

local server_ms = now_ms()
local reply = {'ok'}
for entry = 1, #KEYS - 2 do
  local history, channel, lines = KEYS[entry + 2], ARGV[6 + entry * 2], ARGV[7 + entry * 2]
  local prev, number, is_new = newest[history][1], newest[history][2] + 1, newest[history][3]
  local first = prev == '0-0' and {'e', clock.expired} or {}
  local position = tick(clock, server_ms)
  redis.call('XADD', history, 'MAXLEN', history_events, position, 'p', prev, 'n', number, 'd', lines, unpack(first))
  redis.call('PUBLISH', channel, position .. ' ' .. prev .. '\n' .. lines)
  newest[history] = {position, number, is_new}
  reply[entry + 1] = position
end
note_expiry(clock, newest, server_ms, history_ttl_s)
store_clock(clock)

if fingerprint ~= '' then
  reply[1] = fingerprint
  for at = 1, #reply, 500 do
    redis.call('RPUSH', KEYS[2], unpack(reply, at, math.min(at + 499, #reply)))
  end
  redis.call('EXPIRE', KEYS[2], window_s)
  reply[1] = 'ok'
end
return reply
