-- Write a process's heartbeat, or delete its entry when it stops; delete the entries of processes that have been silent for too long.
-- KEYS: sorted set of names by the time (ms) until which each counts as running; hash of states by name.
-- ARGV: name, state (empty: delete), how long it counts as running (ms), how long it is kept after that (ms), most processes.
-- Redis' own clock is used, so that the clocks of the machines may differ.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local silent = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[4], 'LIMIT', 0, 100)
if ARGV[2] == '' then silent[#silent + 1] = ARGV[1] end
for _, name in ipairs(silent) do
  redis.call('ZREM', KEYS[1], name)
  redis.call('HDEL', KEYS[2], name)
end
if ARGV[2] == '' then return 0 end
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[5]) and not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3] + ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[3] + ARGV[4])
return 1
