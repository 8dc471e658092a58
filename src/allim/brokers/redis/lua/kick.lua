-- KEYS: kicked. ARGV: keep_ms; the caller's clock in Unix seconds; the leeway between two clocks in seconds.
-- Returns the moment of the kick. Tokens that name no kick are compared with it by their time of issue. So it is the later
-- time of the two clocks, unless this server's clock is further ahead than the leeway; and later than the last kick.

local moment, server = tonumber(ARGV[2]), now_us() / 1000000
if server > moment and server - moment <= tonumber(ARGV[3]) then
  moment = server
end
local last = tonumber(redis.call('GET', KEYS[1]) or 0)
local text = string.format('%.6f', math.max(moment, last + 0.000001))
redis.call('SET', KEYS[1], text, 'PX', ARGV[1])
return text
