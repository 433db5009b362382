-- An upstream has said when to come back. KEYS: standing, open, cooldown, ...; ARGV as in open.lua. The later end counts.
redis.call('PUBLISH', ARGV[1], ARGV[2])
if redis.call('PTTL', KEYS[3]) < tonumber(ARGV[5]) then
    redis.call('SET', KEYS[3], ARGV[3], 'PX', ARGV[5])
end
redis.call('ZADD', KEYS[1], 'GT', now() + ARGV[5], ARGV[4])
redis.call('PEXPIRE', KEYS[1], 90000000)
return redis.status_reply('OK')
