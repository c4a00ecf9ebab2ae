-- Take the streams whose writer's lease is due to be looked at, so that no other process looks at them for a while.
-- KEYS: external writers. ARGV: most streams, for how long they are taken (ms). Returns {Redis's time (ms), stream id, ...}.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
for _, id in ipairs(due) do redis.call('ZADD', KEYS[1], now + ARGV[2], id) end
return {now, unpack(due)}
