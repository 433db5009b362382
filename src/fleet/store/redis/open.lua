-- A circuit has opened. KEYS: standing, open, ...; ARGV: channel, message, replica, provider, milliseconds.
redis.call('PUBLISH', ARGV[1], ARGV[2])
local at = now()
local ends = at + ARGV[5]
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', at)
redis.call('ZADD', KEYS[2], ends, ARGV[3])
redis.call('PEXPIRE', KEYS[2], 90000000)
redis.call('ZADD', KEYS[1], 'GT', ends, ARGV[4])
redis.call('PEXPIRE', KEYS[1], 90000000)
return redis.status_reply('OK')
