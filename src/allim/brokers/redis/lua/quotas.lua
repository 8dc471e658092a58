-- Rates (GCRA, ITU-T I.371). Each demand's key holds "<used> <at>": at the microsecond `at`, `used` microseconds were left
-- until the whole limit is available again. Only time after `at` gives something back. So a clock that is behind `at`,
-- because it was set back, neither gives nor takes anything. Prepended to the scripts that charge demands.

-- Whether Redis takes no writes at the moment (memory or disk full, replicas gone), so that nothing can be charged.
local function takes_no_write(reply)
  local code = type(reply) == 'table' and reply.err and reply.err:match('^%u+')
  return code == 'OOM' or code == 'MISCONF' or code == 'NOREPLICAS'
end

-- Return the used part of a limit, and whether the clock is behind the time at which it was written.
local function read_used(key, now)
  local used, at = (redis.call('GET', key) or ''):match('^(%d+) (%d+)$')
  if not used then
    return 0, false
  end
  local passed = now - tonumber(at)
  return math.max(0, tonumber(used) - math.max(0, passed)), passed < 0
end

local function write_used(key, used, now)
  return redis.pcall('SET', key, string.format('%.0f %.0f', used, now), 'PX', math.ceil(used / 1000) + 1)
end

-- Charge all demands or none. Their keys begin at KEYS[key]; limit, period_us and cost of each at ARGV[arg]. Appends
-- {granted, remaining, reset_us, retry_after_us} of each to the reply, or nothing if they cannot be charged. Returns
-- whether to go on, and the error if Redis failed in another way.
local function charge(reply, key, arg, demands, now)
  local wanted, stepped_back, all = {}, {}, true
  for demand = 1, demands do
    local at = arg + (demand - 1) * 3
    local limit, period, cost = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    local used, is_behind = read_used(KEYS[key + demand - 1], now)
    if is_behind then
      stepped_back[demand] = used
    end
    local after = used + cost * period / limit
    local granted = after <= period or used == 0
    wanted[demand] = {limit = limit, period = period, used = used, after = after, granted = granted}
    all = all and granted
  end
  if all then
    for demand = 1, demands do
      local kept = write_used(KEYS[key + demand - 1], math.ceil(wanted[demand].after), now)
      if kept.err then
        return takes_no_write(kept), kept
      end
    end
  else
    for demand, used in pairs(stepped_back) do
      write_used(KEYS[key + demand - 1], used, now)  -- time gives back again from now on; a failure is left to the next call
    end
  end
  for demand = 1, demands do
    local want = wanted[demand]
    local reset = all and want.after or want.used  -- a refusal charges none of them
    reply[#reply + 1] = {
      want.granted and 1 or 0,
      math.max(0, math.floor((want.period - reset) * want.limit / want.period + 0.000001)),
      math.ceil(reset),
      want.granted and 0 or math.ceil(math.min(want.used, want.after - want.period)),
    }
  end
  return all
end
