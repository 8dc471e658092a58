-- Admit a stream: charge its demands, spend its ticket, record it. All of it or nothing.
-- KEYS: signed_out, kicked, the user's streams (scored by the microsecond of their admission), one per demand, the ticket
-- if there is one. ARGV: issued, stream, most, keep_ms, the ticket's keep_ms or ''; limit, period_us and cost per demand.
-- Returns {session state, {a quota per demand...}, the IDs of the oldest streams that exceed the limit...}; no quotas if
-- Redis takes no writes: the stream then opens uncounted.

local state = session_state(KEYS[1], KEYS[2], ARGV[1])
if state ~= 'good' then
  return {state, {}}
end
local demands = (#ARGV - 5) / 3
local streams, ticket, keep_ms, now = KEYS[3], KEYS[4 + demands], tonumber(ARGV[4]), now_us()
if ticket and redis.call('EXISTS', ticket) == 1 then
  return {'spent', {}}
end
local quotas = {}
local goes_on, failed = charge(quotas, 4, 6, demands, now)
if not goes_on then
  return failed or {state, quotas}
end
if ticket then
  redis.call('SET', ticket, '1', 'PX', ARGV[5])  -- an error ends the script: an unspent ticket opens no stream
end
-- The score is above all others. Otherwise, after a backward step of the clock, a new stream would count as the oldest.
local newest = redis.call('ZREVRANGE', streams, 0, 0, 'WITHSCORES')[2]
local noted = redis.pcall('ZADD', streams, string.format('%.0f', math.max(now, (tonumber(newest) or 0) + 1)), ARGV[2])
if type(noted) == 'table' then
  return takes_no_write(noted) and {state, quotas} or noted
end
redis.call('ZREMRANGEBYSCORE', streams, '-inf', now - keep_ms * 1000)  -- streams of replicas that died
redis.call('PEXPIRE', streams, keep_ms)
local reply = {state, quotas}
local too_many = redis.call('ZCARD', streams) - tonumber(ARGV[3])
if too_many > 0 then
  local popped = redis.call('ZPOPMIN', streams, too_many)
  for at = 1, #popped, 2 do
    reply[#reply + 1] = popped[at]
  end
end
return reply
