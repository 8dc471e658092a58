-- Grant all demands or none, and none to a holder whose session was ended.
-- KEYS: signed_out and kicked of the holder, if there is one; then one per demand, holding the microsecond in which all of
-- its limit is there again (GCRA, ITU-T I.371). ARGV: the holder's issued_at, or ''; limit, period_us and cost of each.
-- Gives {standing, {granted, remaining, reset_us, retry_after_us}, ...}; the standing alone when Redis takes no write at
-- the moment (full, alone), so that nothing can be counted here.

local first = 0
if ARGV[1] ~= '' then
  first = 2
  local given = standing(KEYS[1], KEYS[2], ARGV[1])
  if given ~= 'good' then
    return {given}
  end
end
local now = now_us()
local reply, all = {'good'}, true
for demand = 1, #KEYS - first do
  local limit, period, cost = tonumber(ARGV[demand * 3 - 1]), tonumber(ARGV[demand * 3]), tonumber(ARGV[demand * 3 + 1])
  local used = math.max(0, tonumber(redis.call('GET', KEYS[first + demand]) or 0) - now)
  local after = used + cost * period / limit
  local granted = after <= period or used == 0
  local reset = granted and after or used
  reply[demand + 1] = {
    granted and 1 or 0,
    math.max(0, math.floor((period - reset) * limit / period + 0.000001)),
    math.ceil(reset),
    granted and 0 or math.ceil(math.min(used, after - period)),
  }
  all = all and granted
end
if all then
  for demand = 1, #KEYS - first do
    local reset = reply[demand + 1][3]
    local kept = redis.pcall(
      'SET', KEYS[first + demand], string.format('%.0f', now + reset), 'PX', math.ceil(reset / 1000) + 1
    )
    if kept.err then
      local code = kept.err:match('^%u+')
      return (code == 'OOM' or code == 'MISCONF' or code == 'NOREPLICAS') and {'good'} or kept
    end
  end
end
return reply
