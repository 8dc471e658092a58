-- Remove streams that have ended. KEYS: for each stream the set of its user's streams. ARGV: the streams.

for at = 1, #KEYS do
  redis.call('ZREM', KEYS[at], ARGV[at])
end
return #KEYS
