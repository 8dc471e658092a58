-- A position sent through the whole way, to one replica; and histories that are due are removed. KEYS: clock.
-- ARGV: run_id, heard, durable; channel, nonce of the replica's process. Gives {run_id, the server's clock in Unix
-- milliseconds}.

local clock = load_clock()
local last = text(clock.ms, clock.seq)
local server_ms = now_ms()
local position = tick(clock, server_ms)
-- A Redis whose memory or disk is full takes no write: the pulse then proves the way up to the last position. One that
-- has become a replica is no longer ours.
local refused = store_clock(clock, redis.pcall).err
if refused and refused:match('^READONLY') then
  return redis.error_reply(refused)
elseif refused then
  position = last
end
redis.call('PUBLISH', ARGV[4], position .. ' ' .. ARGV[5])
remove_due(clock, server_ms, MOST_REMOVED)
return {ARGV[1], string.format('%.0f', server_ms)}
