-- A position sent through the whole way, to one replica. KEYS: clock. ARGV: channel, the newest position it heard.

local clock = load_clock(KEYS[1])
raise_clock(clock, ARGV[2])
local position = tick(clock, now_ms())
store_clock(clock)
redis.call('PUBLISH', ARGV[1], position)
return position
