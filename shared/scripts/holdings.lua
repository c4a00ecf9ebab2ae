-- Note how many bytes a written stream has and how long it lives, or that it is gone, among all of its owner's.
-- KEYS: sorted set of stream ids by the end of their life (ms), hash of their bytes by id.
-- ARGV: stream id, ms to the end of its life (0: it is gone), its bytes, most streams (a new one beyond that is not noted), ms to expiry of the keys.
-- Returns {1: noted | 0: too many streams, number of streams, their bytes}.
-- Redis' own clock is used, so that the clocks of the machines may differ.
local until_key, bytes_key, id = KEYS[1], KEYS[2], ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local total = tonumber(redis.call('HGET', bytes_key, 'total') or 0)
local gone = redis.call('ZRANGEBYSCORE', until_key, '-inf', now, 'LIMIT', 0, 100)
if ARGV[2] == '0' then gone[#gone + 1] = id end
for _, name in ipairs(gone) do
  redis.call('ZREM', until_key, name)
  total = total - tonumber(redis.call('HGET', bytes_key, name) or 0)
  redis.call('HDEL', bytes_key, name)
end
local noted, count = 1, redis.call('ZCARD', until_key)
if ARGV[2] ~= '0' then
  local is_new = not redis.call('ZSCORE', until_key, id)
  if is_new and count >= tonumber(ARGV[4]) then
    noted = 0
  else
    if is_new then count = count + 1 end
    total = total - tonumber(redis.call('HGET', bytes_key, id) or 0) + tonumber(ARGV[3])
    redis.call('ZADD', until_key, now + ARGV[2], id)
    redis.call('HSET', bytes_key, id, ARGV[3])
  end
end
redis.call('HSET', bytes_key, 'total', string.format('%d', total))
redis.call('PEXPIRE', until_key, ARGV[5])
redis.call('PEXPIRE', bytes_key, ARGV[5])
return {noted, count, total}
