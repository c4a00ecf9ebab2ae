-- Begin the log of a written stream, with its first messages and its end if they are there already.
-- KEYS: log, writer.
-- ARGV: `accepted`, `started`, media type, life after each write and read in ms (0: none), end of its life as Unix ms (0: none),
--   field, value, number of messages in it (0: none) [, terminal field, its value].
-- Returns 1: created; 0: the log was there already, from a call whose reply was lost.
local log, writer = KEYS[1], KEYS[2]
if redis.call('XLEN', log) > 0 then return 0 end
local count, size = tonumber(ARGV[8]), 0
redis.call('XADD', log, '0-1', 'accepted', ARGV[1])
redis.call('XADD', log, '1-0', 'started', ARGV[2])
if count > 0 then
  redis.call('XADD', log, string.format('1-%d', count), ARGV[6], ARGV[7])
  size = #ARGV[7]
end
if ARGV[9] then redis.call('XADD', log, string.format('1-%d', count + 1), ARGV[9], ARGV[10]) end
redis.call('HSET', writer, 'type', ARGV[3], 'life', ARGV[4], 'bytes', size, 'messages', count, 'producers', 0)
for _, key in ipairs(KEYS) do
  if ARGV[5] ~= '0' then
    redis.call('PEXPIREAT', key, ARGV[5])
  else
    redis.call('PEXPIRE', key, ARGV[4])
  end
end
return 1
