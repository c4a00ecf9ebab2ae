-- Take the streams whose time has come, and put each off, so that nobody else takes it meanwhile.
-- KEYS: sorted set of streams by time (ms). ARGV: most streams, how long they are put off (ms), seconds to expiry.
-- Returns their ids. Redis' own clock is used, so that the clocks of the machines may differ.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
for _, id in ipairs(due) do redis.call('ZADD', KEYS[1], 'XX', now + ARGV[2], id) end
redis.call('EXPIRE', KEYS[1], ARGV[3])
return due
