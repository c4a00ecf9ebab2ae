-- Take the streams whose account entries are to be looked at now; each is handed out again after a while, should the taker die.
-- KEYS: looks, entries. ARGV: most streams, time until they are handed out again (ms).
-- Returns stream id, entry, ... . Entries that were closed some time ago are removed instead.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local taken = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])) do
  local entry = redis.call('HGET', KEYS[2], id)
  if entry and not string.find(entry, '"closed":true', 1, true) then
    redis.call('ZADD', KEYS[1], now + ARGV[2], id)
    taken[#taken + 1] = id
    taken[#taken + 1] = entry
  else
    redis.call('ZREM', KEYS[1], id)
    redis.call('HDEL', KEYS[2], id)
  end
end
return taken
