-- The shard's hybrid clock. Prepended to every script: positions are given out inside the atomic step only.
-- Key: hash {ms, seq, floor, run_id}, the last being the Redis process in which the history's origin lies.
-- Doubles hold milliseconds exactly until the year 287,396.

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function text(ms, seq)
  return string.format('%.0f-%.0f', ms, seq)
end

-- A missing clock means an empty store: a new origin begins here, and nothing older can be answered for.
local function load_clock(key)
  local stored = redis.call('HMGET', key, 'ms', 'seq', 'floor')
  if stored[1] then
    return {key = key, ms = tonumber(stored[1]), seq = tonumber(stored[2]), floor = stored[3]}
  end
  local ms = now_ms()
  local run_id = redis.call('INFO', 'server'):match('run_id:(%x+)')
  redis.call('HSET', key, 'ms', text(ms, 0):match('^%d+'), 'seq', 0, 'floor', text(ms, 0), 'run_id', run_id)
  return {key = key, ms = ms, seq = 0, floor = text(ms, 0)}
end

-- max(server time, last + 1): never back, whatever the server's clock does.
local function tick(clock, server_ms)
  if server_ms > clock.ms then
    clock.ms, clock.seq = server_ms, 0
  else
    clock.seq = clock.seq + 1
  end
  return text(clock.ms, clock.seq)
end

-- A replica that heard a newer position knows more than an emptied store whose time lags: positions never go back, and
-- a new origin begins.
local function raise_clock(clock, heard)
  local ms, seq = heard:match('^(%d+)%-(%d+)$')
  ms, seq = tonumber(ms), tonumber(seq)
  if ms > clock.ms or (ms == clock.ms and seq > clock.seq) then
    clock.ms, clock.seq = ms, seq
    clock.floor = tick(clock, 0)
    redis.call('HSET', clock.key, 'floor', clock.floor)
  end
end

local function store_clock(clock)
  redis.call('HSET', clock.key, 'ms', string.format('%.0f', clock.ms), 'seq', string.format('%.0f', clock.seq))
end
