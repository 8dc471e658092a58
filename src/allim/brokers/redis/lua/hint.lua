-- Announce a name to every replica. Nothing is stored.
-- KEYS: clock. ARGV: run_id, heard, durable; channel, name.
return redis.call('PUBLISH', ARGV[4], ARGV[5])
