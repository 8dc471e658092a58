-- KEYS: kicked. Returns the moment of the user's last kick, or 0.

return redis.call('GET', KEYS[1]) or '0'
