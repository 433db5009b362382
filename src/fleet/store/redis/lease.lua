-- Who probes for all. KEYS: lease, failed; ARGV: replica, milliseconds.
local failed = redis.call('PTTL', KEYS[2])
if failed > 0 then
    return { 'failed', failed }
end
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
    return { 'granted', 0 }
end
if redis.call('GET', KEYS[1]) == ARGV[1] then
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
    return { 'granted', 0 }
end
return { 'held', math.max(redis.call('PTTL', KEYS[1]), 0) }
