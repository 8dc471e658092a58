-- A position sent through the whole way, to one replica. KEYS: clock. ARGV: run_id, heard, durable; channel.
-- Gives the run_id.

local clock = load_clock()
local position = tick(clock, now_ms())
store_clock(clock)
redis.call('PUBLISH', ARGV[4], position)
return ARGV[1]
