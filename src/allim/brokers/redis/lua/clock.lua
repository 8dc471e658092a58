-- The shard's hybrid clock, and the origin of its history. Prepended, after time.lua, to every script that handles
-- positions: positions are given out only inside a script, and the script knows which Redis process it runs in.
-- KEYS[1]: the clock, a hash {ms, seq: the last position; floor: where the origin begins; run_id: its Redis process;
-- expired: the newest position that a removed history held (expiry.lua); accounted: the last position given out by a
-- version that keeps `expired`}.
-- ARGV[1..3]: run_id of the process the caller's connection leads to, the newest position the caller has heard, '1'
-- when the operator states that the store is durable.
-- Doubles hold milliseconds exactly until the year 287,396.

local LEAP_MS = 60000  -- a link that brings nothing for so long has been replaced

local function text(ms, seq)
  return string.format('%.0f-%.0f', ms, seq)
end

local function parse(position)
  local ms, seq = position:match('^(%d+)%-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

-- max(server time, last + 1): never back, even if the server's clock goes back.
local function tick(clock, server_ms)
  if server_ms > clock.ms then
    clock.ms, clock.seq = server_ms, 0
  else
    clock.seq = clock.seq + 1
  end
  return text(clock.ms, clock.seq)
end

-- Raise the clock to a position that was given out although the clock does not know it; true when it had to be.
local function raise(clock, position)
  local ms, seq = parse(position)
  if ms < clock.ms or (ms == clock.ms and seq <= clock.seq) then
    return false
  end
  clock.ms, clock.seq = ms, seq
  return true
end

local function store_clock(clock, call)
  local ms, seq = string.format('%.0f', clock.ms), string.format('%.0f', clock.seq)
  local accounted = ms .. '-' .. seq
  local reply = (call or redis.call)('HSET', clock.key, 'ms', ms, 'seq', seq, 'accounted', accounted)
  return type(reply) == 'table' and reply or {}
end

-- Begin a new origin: events before it may be incomplete. Every replica hears of it before any later event.
local function begin_origin(clock, server_ms)
  -- Another replica may have heard newer positions than the caller. If this server's clock lags behind, only a leap over
  -- all positions given out since the last message of a link keeps new positions apart from those.
  if server_ms <= clock.ms then
    clock.ms, clock.seq = clock.ms + LEAP_MS, 0
  end
  clock.floor = tick(clock, server_ms)
  store_clock(clock)
  redis.call('HSET', clock.key, 'floor', clock.floor, 'run_id', ARGV[1])
  redis.call('PUBLISH', (clock.key:gsub('clock$', 'origin')), clock.floor)
end

-- An older version, which lets Redis delete histories unrecorded, gave out positions: those histories may be gone.
local function account(clock)
  clock.expired = text(clock.ms, clock.seq)
  redis.pcall('HSET', clock.key, 'expired', clock.expired, 'accounted', clock.expired)  -- if not, the next script does
end

-- Load the clock. A new origin begins if the store is empty, has lost a position that a replica heard, or is another
-- process than before and may have lost its last writes.
local function load_clock()
  local run_id, heard, durable = ARGV[1], ARGV[2], ARGV[3] == '1'
  local stored = redis.call('HMGET', KEYS[1], 'ms', 'seq', 'floor', 'run_id', 'expired', 'accounted')
  local clock = {
    key = KEYS[1], ms = tonumber(stored[1]) or 0, seq = tonumber(stored[2]) or 0, floor = stored[3],
    expired = stored[5] or '0-0',
  }
  if stored[1] and stored[2] and stored[6] ~= stored[1] .. '-' .. stored[2] then
    account(clock)
  end
  local another = stored[4] ~= run_id
  local lost = raise(clock, heard)
  if not (stored[1] and stored[2] and stored[3]) then
    begin_origin(clock, now_ms() + 1)  -- one more: it may have been emptied within the millisecond of its last position
  elseif lost or (another and not durable) then
    begin_origin(clock, now_ms())
  elseif another then
    redis.call('HSET', clock.key, 'run_id', run_id)
  end
  return clock
end
