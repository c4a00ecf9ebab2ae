-- Bring the usage of a stream's principal to what its receipt says: the counts that the stream had before are replaced, never added.
-- KEYS: looks, entries, usage of the day, usage of all on that day, principals of the day; state, running of the principal; of all.
-- ARGV: stream id, principal, its entry, time to the next look (ms), seconds to expiry, seconds to the expiry of the usage,
-- model, most models, 1 if its last look is over, then count, value, ... (none: the stream has no log, and has had none).
-- The entry has `closed`: no look counts anything more, only a deletion that is repeated, since its log was there until now.
-- Returns 1: done; 0: the stream's entry is closed, or is forgotten already: each stream has one before its log begins, and one
-- that has none after its last look was counted.
local id = ARGV[1]
local stored = redis.call('HGET', KEYS[2], id)
local before = stored and cjson.decode(stored) or {bytes = 0, bytes_until_end = 0}
local entry = cjson.decode(ARGV[3])
local is_repeated_deletion = entry.closed and ARGV[10]
if before.closed and not is_repeated_deletion or not stored and ARGV[9] == '1' then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local released = before.bytes_until_end + (entry.closed and before.bytes or 0)
entry.bytes = entry.closed and 0 or before.bytes
entry.bytes_until_end = 0
for who = 1, 2 do
  local state, running = KEYS[2 * who + 4], KEYS[2 * who + 5]
  redis.call('ZREM', running, id)
  local bytes = tonumber(redis.call('HGET', state, 'bytes') or 0)
  if released > 0 and bytes > 0 then redis.call('HSET', state, 'bytes', string.format('%d', math.max(0, bytes - released))) end
end
if ARGV[10] then
  local model = before.model or ARGV[7]
  local columns = (#ARGV - 9) / 2
  if not before.counts and redis.call('HEXISTS', KEYS[3], 'streams ' .. model) == 0 and (redis.call('HLEN', KEYS[3]) - 2) / columns >= tonumber(ARGV[8]) then
    model = 'other'
  end
  entry.model, entry.counts = model, {}
  for i = 10, #ARGV, 2 do
    local count, value = ARGV[i], tonumber(ARGV[i + 1])
    local change = string.format('%d', value - (before.counts and before.counts[count] or 0))
    redis.call('HINCRBY', KEYS[3], count .. ' ' .. model, change)
    if count == 'generated' then
      redis.call('HINCRBY', KEYS[3], 'generated', change)
      redis.call('HINCRBY', KEYS[4], 'generated', change)
    end
    entry.counts[count] = value
  end
  redis.call('HSET', KEYS[3], 'principal', ARGV[2])
  redis.call('ZADD', KEYS[5], 0, ARGV[2])
  for i = 3, 5 do redis.call('EXPIRE', KEYS[i], ARGV[6]) end
else -- nothing was generated, and nothing that was counted is taken back
  entry.model, entry.counts = before.model, before.counts
end
if entry.closed and not entry.counts then
  redis.call('ZREM', KEYS[1], id)
  redis.call('HDEL', KEYS[2], id)
  return 1
end
redis.call('ZADD', KEYS[1], now + ARGV[4], id)
redis.call('EXPIRE', KEYS[1], ARGV[5])
redis.call('HSET', KEYS[2], id, cjson.encode(entry))
redis.call('EXPIRE', KEYS[2], ARGV[5])
return 1
