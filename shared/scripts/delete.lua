-- Put a tombstone in the place of a log: one empty entry that fences every attempt, so that no late write brings it back.
-- KEYS: log, deliveries. ARGV: seconds to expiry. 1: deleted; 0: there was nothing, or a tombstone already.
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if not last or last[2][1] == 'deleted' then return 0 end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('XADD', KEYS[1], string.format('%d-0', tonumber(string.match(last[1], '^(%d+)-')) + 1), 'deleted', '')
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
