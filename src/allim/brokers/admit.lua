-- A stream wants to open. KEYS: signed_out, kicked, the user's streams (by the microsecond each was noted), its ticket if
-- it has one. ARGV: issued_at, stream, most, keep_ms, the ticket's keep_ms.
-- Gives {standing, the IDs of the oldest, which are too many now...}.

local given = standing(KEYS[1], KEYS[2], ARGV[1])
if given ~= 'good' then
  return {given}
end
if KEYS[4] and not redis.call('SET', KEYS[4], '1', 'PX', ARGV[5], 'NX') then
  return {'spent'}
end
local streams, now, most, keep_ms = KEYS[3], now_us(), tonumber(ARGV[3]), tonumber(ARGV[4])
local noted = redis.pcall('ZADD', streams, now, ARGV[2])
if type(noted) == 'table' then  -- a Redis that takes no write at the moment (full, alone): the stream opens uncounted
  local code = noted.err:match('^%u+')
  return (code == 'OOM' or code == 'MISCONF' or code == 'NOREPLICAS') and {given} or noted
end
redis.call('ZREMRANGEBYSCORE', streams, '-inf', now - keep_ms * 1000)  -- their replica died before it could say so
redis.call('PEXPIRE', streams, keep_ms)
local reply = {given}
local too_many = redis.call('ZCARD', streams) - most
if too_many > 0 then
  local popped = redis.call('ZPOPMIN', streams, too_many)
  for at = 1, #popped, 2 do
    reply[#reply + 1] = popped[at]
  end
end
return reply
