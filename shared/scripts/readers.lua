-- Note how many readers of a stream one gateway process has, unless all processes together would have more than a limit.
-- KEYS: readers of the stream. ARGV: process, how many it has, how many there may be (0: no limit), how long the note holds (ms).
-- Returns 1: noted; 0: too many, and nothing is changed. The notes of processes that have stopped to renew them do not count.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local limit, readers = tonumber(ARGV[3]), tonumber(ARGV[2])
if limit > 0 then
  local notes = redis.call('HGETALL', KEYS[1])
  for i = 1, #notes, 2 do
    local count, holds_until = string.match(notes[i + 1], '^(%d+) (%d+)$')
    if not count or tonumber(holds_until) < now then
      redis.call('HDEL', KEYS[1], notes[i])
    elseif notes[i] ~= ARGV[1] then
      readers = readers + count
    end
  end
  if readers > limit then return 0 end
end
if ARGV[2] == '0' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%s %d', ARGV[2], now + ARGV[4]))
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
end
return 1
