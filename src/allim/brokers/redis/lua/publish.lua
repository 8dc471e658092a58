-- Charge, store and announce, in one atomic step: check rights, charge rate and memory, find a duplicate, give positions,
-- append with prev, trim, record the expiry, announce.
-- KEYS: clock, idempotency key, the publisher's rate and memory, then one history per entry.
-- ARGV: run_id, heard, durable; history_events, history_ttl_s, window_s, fingerprint ('' without a key); limit ('' if not
-- limited), period_us and cost of the publish; limit ('' likewise), period_us and a placeholder for the bytes it adds; then
-- channel and lines per entry.
-- An entry is {p: prev, n: the entry's number in its topic, so that entries between two are counted unread, d: lines}; the
-- first of a history also has {e: `expired` of the clock at that moment}: an earlier history of its topic held nothing newer.
-- Returns {'ok' or 'limited' or 'conflict', {a quota per charge}, position, ...}.

local history_events, history_ttl_s, window_s, fingerprint = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local FIRST = 13  -- the argument before the first channel
-- Bytes of Redis' memory, as measured on Redis 7. A topic's history and its expiry hold the name of the history: one of
-- up to NAME_BYTES is in TOPIC_BYTES.
local NAME_BYTES = 256
local TOPIC_BYTES, EVENT_BYTES, KEY_BYTES, POSITION_BYTES = 4400, 100, 400, 20

-- Redis does not undo a script that fails half-way. So every step that may fail comes before the first write, and the
-- rights for all writes are checked first.
local function must_be_allowed(command, ...)
  if not redis.acl_check_cmd(command, ...) then
    error({err = 'NOPERM this user may not run ' .. command .. ' on ' .. (...)})
  end
end

must_be_allowed('HSET', KEYS[1], 'ms', '')
must_be_allowed('ZADD', EXPIRY, '1', '')
if fingerprint ~= '' then
  must_be_allowed('RPUSH', KEYS[2], '')
  must_be_allowed('EXPIRE', KEYS[2], '1')
end
local newest = {}  -- per history: position and number of its newest entry, and whether there was none before this
for key = 5, #KEYS do
  local history, channel = KEYS[key], ARGV[FIRST + (key - 4) * 2 - 1]
  if not newest[history] then
    must_be_allowed('XADD', history, '*', 'd', '')
    must_be_allowed('PERSIST', history)
    must_be_allowed('PUBLISH', channel, '')
    local entry = redis.call('XREVRANGE', history, '+', '-', 'COUNT', 1)[1]
    if entry then
      newest[history] = {entry[1], tonumber(entry[2][4]) or 0, false}  -- 0 for an entry of another program
    else
      newest[history] = {'0-0', 0, true}
      must_be_allowed('ZRANGEBYSCORE', EXPIRY, '1', '1')
      must_be_allowed('ZREM', EXPIRY, '')
      must_be_allowed('UNLINK', history)
    end
  end
end

local known = fingerprint ~= '' and redis.call('LRANGE', KEYS[2], 0, -1) or {}

-- The bytes that this publish adds. An entry of a full history replaces another. A key is kept for its window: it counts
-- once per period of the window.
local function added_bytes(period_s)
  local added, numbers = 0, {}
  for key = 5, #KEYS do
    local history = KEYS[key]
    local number = (numbers[history] or newest[history][2]) + 1
    numbers[history] = number
    if number <= tonumber(history_events) then
      added = added + EVENT_BYTES + #ARGV[FIRST + (key - 4) * 2]
    end
  end
  for history, entry in pairs(newest) do
    added = added + (entry[1] == '0-0' and TOPIC_BYTES + 2 * math.max(0, #history - NAME_BYTES) or 0)
  end
  if fingerprint ~= '' then
    added = added + math.ceil((KEY_BYTES + POSITION_BYTES * (#KEYS - 4)) * window_s / period_s)
  end
  return added
end

local clock = load_clock()
local server_us = now_us()
local server_ms = math.floor(server_us / 1000)
local quotas = {}
if ARGV[8] ~= '' then
  local demands = 1
  if ARGV[11] ~= '' and not known[1] then
    ARGV[13] = added_bytes(ARGV[12] / 1000000)
    demands = ARGV[13] > 0 and 2 or 1
  end
  local granted, failed = charge(quotas, 3, 8, demands, server_us)
  if failed then
    return failed
  elseif not granted then
    return {'limited', quotas}
  end
end
if known[1] and known[1] ~= fingerprint then
  return {'conflict', quotas}
elseif known[1] then
  redis.call('EXPIRE', KEYS[2], window_s)  -- a write, so that WAIT after it waits for the writes of the first try
  known[1] = quotas
  table.insert(known, 1, 'ok')
  return known
end

for _, entry in pairs(newest) do
  raise(clock, entry[1])
end
local reply = {'ok', quotas}
local announcements = {}
for key = 5, #KEYS do
  local history, lines = KEYS[key], ARGV[FIRST + (key - 4) * 2]
  local prev, number, is_new = newest[history][1], newest[history][2] + 1, newest[history][3]
  local first = prev == '0-0' and {'e', clock.expired} or {}
  local position = tick(clock, server_ms)
  redis.call('XADD', history, 'MAXLEN', history_events, position, 'p', prev, 'n', number, 'd', lines, unpack(first))
  newest[history] = {position, number, is_new}
  announcements[#announcements + 1] = position .. ' ' .. prev .. '\n' .. lines
  reply[#reply + 1] = position
end
note_expiry(clock, newest, server_ms, history_ttl_s)
store_clock(clock)
if fingerprint ~= '' then
  redis.call('RPUSH', KEYS[2], fingerprint)
  for at = 3, #reply, 500 do
    redis.call('RPUSH', KEYS[2], unpack(reply, at, math.min(at + 499, #reply)))
  end
  redis.call('EXPIRE', KEYS[2], window_s)
end
for at, announcement in ipairs(announcements) do
  redis.call('PUBLISH', ARGV[FIRST + at * 2 - 1], announcement)
end
return reply
