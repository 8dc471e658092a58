-- A stream wants to open: grant its demands, spend its ticket, note it. All of it or nothing.
-- KEYS: signed_out, kicked, the user's streams (by the microsecond each was noted), one per demand, its ticket if it has
-- one. ARGV: issued, stream, most, keep_ms, the ticket's keep_ms or ''; limit, period_us and cost of each demand.
-- Gives {standing, {a quota of each demand...}, the IDs of the oldest, which are too many now...}; no quotas when nothing
-- can be counted here: the stream opens uncounted.

local given = standing(KEYS[1], KEYS[2], ARGV[1])
if given ~= 'good' then
  return {given, {}}
end
local demands = (#ARGV - 5) / 3
local streams, ticket, keep_ms, now = KEYS[3], KEYS[4 + demands], tonumber(ARGV[4]), now_us()
if ticket and redis.call('EXISTS', ticket) == 1 then
  return {'spent', {}}
end
local quotas = {}
local goes_on, failed = take(quotas, 4, 6, demands, now)
if not goes_on then
  return failed or {given, quotas}
end
if ticket then
  redis.call('SET', ticket, '1', 'PX', ARGV[5])  -- or nothing: who cannot spend it cannot come in by it
end
-- Above all that are there: were the clock stepped back, a new stream would count as the oldest and be displaced at once.
local newest = redis.call('ZREVRANGE', streams, 0, 0, 'WITHSCORES')[2]
local noted = redis.pcall('ZADD', streams, string.format('%.0f', math.max(now, (tonumber(newest) or 0) + 1)), ARGV[2])
if type(noted) == 'table' then
  return takes_no_write(noted) and {given, quotas} or noted
end
redis.call('ZREMRANGEBYSCORE', streams, '-inf', now - keep_ms * 1000)  -- their replica died before it could say so
redis.call('PEXPIRE', streams, keep_ms)
local reply = {given, quotas}
local too_many = redis.call('ZCARD', streams) - tonumber(ARGV[3])
if too_many > 0 then
  local popped = redis.call('ZPOPMIN', streams, too_many)
  for at = 1, #popped, 2 do
    reply[#reply + 1] = popped[at]
  end
end
return reply
