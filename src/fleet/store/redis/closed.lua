-- A probe has succeeded. KEYS: standing, and all of this provider; ARGV as in open.lua.
redis.call('PUBLISH', ARGV[1], ARGV[2])
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6])
redis.call('ZREM', KEYS[1], ARGV[4])
return redis.status_reply('OK')
