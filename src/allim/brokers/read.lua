-- History after a position, for several topics in one atomic step.
-- KEYS: clock, then one history per topic. ARGV: after ('' reads only the clock), limit per topic.
-- Gives {now, floor, time_ms, {oldest_prev or '', more, {{position, {'p', prev, 'n', number, 'd', lines}}, ...}}, ...}.

local after, limit = ARGV[1], tonumber(ARGV[2])
local clock = load_clock(KEYS[1])
local reply = {text(clock.ms, clock.seq), clock.floor, string.format('%.0f', now_ms())}
if after == '' then
  return reply
end
for topic = 2, #KEYS do
  local oldest = redis.call('XRANGE', KEYS[topic], '-', '+', 'COUNT', 1)[1]
  local entries = redis.call('XRANGE', KEYS[topic], '(' .. after, '+', 'COUNT', limit)
  local more = 0
  if #entries == limit then
    local newest = redis.call('XREVRANGE', KEYS[topic], '+', '-', 'COUNT', 1)[1]
    more = (tonumber(newest[2][4]) or 0) - (tonumber(entries[limit][2][4]) or 0)
  end
  reply[topic + 2] = {oldest and oldest[2][2] or '', more, entries}
end
return reply
