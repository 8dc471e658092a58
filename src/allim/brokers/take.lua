-- Grant all demands or none. KEYS: one per demand, holding the microsecond in which all of its limit is there again
-- (GCRA, ITU-T I.371). ARGV: limit, period_us and cost of each.
-- Gives {granted, remaining, reset_us, retry_after_us} for each.

local now = now_us()
local quotas, all = {}, true
for demand = 1, #KEYS do
  local limit, period, cost = tonumber(ARGV[demand * 3 - 2]), tonumber(ARGV[demand * 3 - 1]), tonumber(ARGV[demand * 3])
  local used = math.max(0, tonumber(redis.call('GET', KEYS[demand]) or 0) - now)
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
  for demand = 1, #KEYS do
    local reset = quotas[demand][3]
    redis.call('SET', KEYS[demand], string.format('%.0f', now + reset), 'PX', math.ceil(reset / 1000) + 1)
  end
end
return quotas
