-- How much memory Redis uses and may use, as INFO tells it. No keys, no arguments of its own.

return redis.call('INFO', 'memory')
