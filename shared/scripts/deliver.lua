-- Note how far one connection has come. The note expires with its log; without a log it is refused.
-- KEYS: log, deliveries. ARGV: connection, note, most connections.
-- Returns 0: there is no such log (any more); -1: noted, the stream runs; else noted, it has ended, and its log lives on for so many ms.
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if not last or last[2][1] == 'deleted' then return 0 end
local connection = ARGV[1]
if redis.call('HEXISTS', KEYS[2], connection) == 0 and redis.call('HLEN', KEYS[2]) >= tonumber(ARGV[3]) then
  connection = 'latest' -- of those that are too many to be listed
end
redis.call('HSET', KEYS[2], connection, ARGV[2])
local lives_ms = redis.call('PTTL', KEYS[1])
redis.call('PEXPIRE', KEYS[2], lives_ms)
return ({done = 1, failed = 1, cancelled = 1})[last[2][1]] and lives_ms or -1
