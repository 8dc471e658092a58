-- Store and announce, in one atomic step: duplicate? position, append with prev, trim, expiry, announce.
-- KEYS: clock, idempotency key, then one history per entry.
-- ARGV: history_events, history_ttl_s, window_s, fingerprint ('' without a key), then channel and lines per entry.
-- An entry is {p: prev, n: the entry's number in its topic, so that entries between two are counted unread, d: lines}.
-- Gives {'ok', position, ...} or {'conflict'}.

local history_events, history_ttl_s, window_s, fingerprint = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

if fingerprint ~= '' then
  local known = redis.call('LRANGE', KEYS[2], 0, -1)
  if known[1] then
    if known[1] ~= fingerprint then
      return {'conflict'}
    end
    known[1] = 'ok'
    return known
  end
end

local clock = load_clock(KEYS[1])
local server_ms = now_ms()
local reply = {'ok'}
for entry = 1, #KEYS - 2 do
  local history, channel, lines = KEYS[entry + 2], ARGV[3 + entry * 2], ARGV[4 + entry * 2]
  local newest = redis.call('XREVRANGE', history, '+', '-', 'COUNT', 1)[1]
  local prev, number = '0-0', 1
  if newest then
    prev, number = newest[1], (tonumber(newest[2][4]) or 0) + 1  -- not ours, if it has no number
  end
  local position = tick(clock, server_ms)
  redis.call('XADD', history, 'MAXLEN', history_events, position, 'p', prev, 'n', number, 'd', lines)
  redis.call('EXPIRE', history, history_ttl_s)
  redis.call('PUBLISH', channel, position .. ' ' .. prev .. '\n' .. lines)
  reply[entry + 1] = position
end
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
