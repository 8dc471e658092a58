-- Which Redis process this history lives in. Another process may have lost its end, so a new origin begins, unless the
-- operator states that the store is durable. KEYS: clock. ARGV: run_id, durable
-- ('1' or ''), the newest position the replica heard.

local clock = load_clock(KEYS[1])
raise_clock(clock, ARGV[3])
store_clock(clock)
local known = redis.call('HGET', KEYS[1], 'run_id')
if known == ARGV[1] then
  return 0
end
redis.call('HSET', KEYS[1], 'run_id', ARGV[1])
if ARGV[2] == '1' then
  return 0
end
local floor = tick(clock, now_ms())
store_clock(clock)
redis.call('HSET', KEYS[1], 'floor', floor)
return 1
