-- Put a tombstone in the place of a log: one entry that fences every attempt, so that no late write brings it back.
-- KEYS: log, deliveries, large fields of the request, those that are kept, writer, webhook. ARGV: seconds to expiry, value of the entry.
-- Returns 1: deleted; 0: there was nothing, or a tombstone already.
-- A key that is no stream is replaced, too.
local newest = redis.pcall('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
if newest.err and not string.find(newest.err, 'WRONGTYPE', 1, true) then return newest end
local last = newest.err and {'0-1', {}} or newest[1]
if not last or last[2][1] == 'deleted' then return 0 end
local attempt = math.min(tonumber(string.match(last[1], '^(%d+)-')), 9007199254740990) + 1
redis.call('DEL', unpack(KEYS))
redis.call('XADD', KEYS[1], string.format('%d-0', attempt), 'deleted', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
