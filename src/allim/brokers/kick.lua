-- KEYS: kicked. ARGV: keep_ms. Gives the Unix second up to which sessions are ended.

local moment = string.format('%.6f', now_us() / 1000000)
redis.call('SET', KEYS[1], moment, 'PX', ARGV[1])
return moment
