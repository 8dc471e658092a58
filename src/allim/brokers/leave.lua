-- Streams have ended. KEYS: the streams of each one's user. ARGV: the streams.

for at = 1, #KEYS do
  redis.call('ZREM', KEYS[at], ARGV[at])
end
return #KEYS
