-- What stands. KEYS: standing, replicas; ARGV: replica, milliseconds, prefix of the other keys, and for each opening of
-- this replica that stands: provider, milliseconds. The other keys have the hash tag of these.
local at = now()
local refused = ''
local function write(...)
    local answer = redis.pcall(...)
    if type(answer) == 'table' and answer.err then
        refused = answer.err
    end
end
write('ZADD', KEYS[2], at + ARGV[2], ARGV[1])
if refused == '' then
    write('ZREMRANGEBYSCORE', KEYS[2], '-inf', at)
    write('PEXPIRE', KEYS[2], 90000000)
    for i = 4, #ARGV, 2 do
        local ends = at + ARGV[i + 1]
        write('ZADD', ARGV[3] .. ':open:' .. ARGV[i], ends, ARGV[1])
        write('PEXPIRE', ARGV[3] .. ':open:' .. ARGV[i], 90000000)
        write('ZADD', KEYS[1], 'GT', ends, ARGV[i])
    end
    write('ZREMRANGEBYSCORE', KEYS[1], '-inf', at)
end
local rows = {}
local providers = redis.call('ZRANGE', KEYS[1], 0, 999)
for _, provider in ipairs(providers) do
    local open = redis.call('ZRANGEBYSCORE', ARGV[3] .. ':open:' .. provider, at, '+inf', 'WITHSCORES', 'LIMIT', 0, 100)
    for i = 1, #open, 2 do
        rows[#rows + 1] = { provider, open[i], open[i + 1] - at, 0 }
    end
    local cooldown = redis.call('PTTL', ARGV[3] .. ':cooldown:' .. provider)
    if cooldown > 0 then
        rows[#rows + 1] = { provider, redis.call('GET', ARGV[3] .. ':cooldown:' .. provider) or '', cooldown, 1 }
    end
end
return { refused, redis.call('ZCOUNT', KEYS[2], at, '+inf'), rows }
