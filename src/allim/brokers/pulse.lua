-- A position sent through the whole way, to one replica. KEYS: clock. ARGV: run_id, heard, durable; channel, nonce of
-- the replica's process.
-- Gives the run_id.

local clock = load_clock()
local last = text(clock.ms, clock.seq)
local position = tick(clock, now_ms())
-- A Redis whose memory or disk is full takes no write: the pulse then proves the way up to the last position. One that
-- has become a replica is no longer ours.
local refused = store_clock(clock, redis.pcall).err
if refused and refused:match('^READONLY') then
  return redis.error_reply(refused)
elseif refused then
  position = last
end
redis.call('PUBLISH', ARGV[4], position .. ' ' .. ARGV[5])
return ARGV[1]
