-- The probe for all has failed. KEYS: standing, open, cooldown, lease, failed, ...; ARGV as in open.lua.
redis.call('PUBLISH', ARGV[1], ARGV[2])
redis.call('SET', KEYS[5], ARGV[3], 'PX', ARGV[5])
if redis.call('GET', KEYS[4]) == ARGV[3] then
    redis.call('DEL', KEYS[4])
end
return redis.status_reply('OK')
