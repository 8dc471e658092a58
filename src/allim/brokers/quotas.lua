-- How often (GCRA, ITU-T I.371): each demand's key holds the microsecond in which all of its limit is there again. Put before
-- the scripts that grant demands.

-- Redis takes no write at the moment (its memory or disk is full, its replicas are gone): nothing can be counted here.
local function takes_no_write(reply)
  local code = type(reply) == 'table' and reply.err and reply.err:match('^%u+')
  return code == 'OOM' or code == 'MISCONF' or code == 'NOREPLICAS'
end

-- Grant all demands or none. Their keys begin at KEYS[key]; limit, period_us and cost of each at ARGV[arg]. Adds
-- {granted, remaining, reset_us, retry_after_us} of each to the reply, or nothing when they cannot be counted; gives
-- whether to go on, and the error when Redis failed in another way.
local function take(reply, key, arg, demands, now)
  local quotas, all = {}, true
  for demand = 1, demands do
    local at = arg + (demand - 1) * 3
    local limit, period, cost = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    local used = math.max(0, tonumber(redis.call('GET', KEYS[key + demand - 1]) or 0) - now)
    local after = used + cost * period / limit
    local granted = after <= period or used == 0
    local reset = granted and after or used
    quotas[demand] = {
      granted and 1 or 0,
      math.max(0, math.floor((period - reset) * limit / period + 0.000001)),
      math.ceil(reset),
      granted and 0 or math.ceil(math.min(used, after - period)),
    }
    all = all and granted
  end
  if all then
    for demand = 1, demands do
      local reset = quotas[demand][3]
      local kept = redis.pcall(
        'SET', KEYS[key + demand - 1], string.format('%.0f', now + reset), 'PX', math.ceil(reset / 1000) + 1
      )
      if kept.err then
        return takes_no_write(kept), kept
      end
    end
  end
  for demand = 1, demands do
    reply[#reply + 1] = quotas[demand]
  end
  return all
end
