-- Send a position to one replica over its link, and remove histories that are due. KEYS: clock.
-- ARGV: run_id, heard, durable; channel, nonce of the replica's process. Returns {run_id, the server's clock in Unix
-- milliseconds}.

local clock = load_clock()
local last = text(clock.ms, clock.seq)
local server_ms = now_ms()
local position = tick(clock, server_ms)
-- If memory or disk is full, the clock cannot be stored: the pulse then carries the last position. A Redis that has
-- become a replica refuses the pulse.
local refused = store_clock(clock, redis.pcall).err
if refused and refused:match('^READONLY') then
  return redis.error_reply(refused)
elseif refused then
  position = last
end
redis.call('PUBLISH', ARGV[4], position .. ' ' .. ARGV[5])
remove_due(clock, server_ms, MOST_REMOVED)
return {ARGV[1], string.format('%.0f', server_ms)}
