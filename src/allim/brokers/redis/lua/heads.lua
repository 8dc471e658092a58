-- The newest position of each topic. KEYS: clock, then one history per topic. ARGV: run_id, heard, durable.
-- Returns {now, floor, expired, {newest or '', ...}}.

local clock = load_clock()
local heads = {}
for topic = 2, #KEYS do
  local newest = redis.call('XREVRANGE', KEYS[topic], '+', '-', 'COUNT', 1)[1]
  heads[topic - 1] = newest and newest[1] or ''
end
return {text(clock.ms, clock.seq), clock.floor, clock.expired, heads}
