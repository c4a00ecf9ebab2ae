-- End a stream from outside its attempt: append a terminal event that fences the writer, unless the stream has ended.
-- KEYS: log, large fields of the request, those that are kept [, writer: only if no other program writes it].
-- ARGV: channel (empty: publishes nothing), field, value, seconds to expiry [, the last id that the log must have].
-- Returns {1, id} appended; {0, last id} it had ended, or the log has moved on from that last id; nil: there is no log.
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if not last then return nil end
local field = last[2][1]
-- The terminal events, as in shared/lifecycle.py.
if field == 'done' or field == 'failed' or field == 'cancelled' or field == 'deleted' then return {0, last[1]} end
if ARGV[5] and ARGV[5] ~= last[1] then return {0, last[1]} end
if KEYS[4] and redis.call('HLEN', KEYS[4]) > 0 then return {0, last[1]} end
local id = string.format('%d-0', math.min(tonumber(string.match(last[1], '^(%d+)-')), 9007199254740990) + 1)
-- Refused where the last id is none of ours, and so large that nothing can follow it.
local added = redis.pcall('XADD', KEYS[1], id, ARGV[2], ARGV[3])
if type(added) ~= 'string' then
  return string.find(tostring(added.err), 'equal or smaller', 1, true) and {0, last[1]} or added
end
redis.call('EXPIRE', KEYS[1], ARGV[4])
redis.call('EXPIRE', KEYS[2], 0)
redis.call('EXPIRE', KEYS[3], ARGV[4])
if ARGV[1] ~= '' then redis.call('SPUBLISH', ARGV[1], id .. ' ' .. ARGV[2] .. ' ' .. ARGV[3]) end
return {1, id}
