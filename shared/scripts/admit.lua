-- Enter a stream into the accounts of its principal and of all, unless a limit forbids it. Runs before the log begins; may be repeated.
-- KEYS: looks, entries; of the principal, then of all: state, running, usage of the day.
-- ARGV: stream id, its entry, bytes of the request, time to the first look (ms), seconds to expiry;
-- of the principal, then of all: creates per minute, streams at once, bytes of requests, tokens per day (0: no limit).
-- Returns 0: entered; {limit, 1: the principal's or 2: that for all, time until it may pass (ms; 0: not known)}: refused.
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local buckets = {}
for who = 1, 2 do
  local state, running, usage = KEYS[3 * who], KEYS[3 * who + 1], KEYS[3 * who + 2]
  local creates, streams = tonumber(ARGV[4 * who + 2]), tonumber(ARGV[4 * who + 3])
  local bytes, tokens = tonumber(ARGV[4 * who + 4]), tonumber(ARGV[4 * who + 5])
  if tokens > 0 and tonumber(redis.call('HGET', usage, 'generated') or 0) >= tokens then return {'tokens', who, 0} end
  if bytes > 0 and tonumber(redis.call('HGET', state, 'bytes') or 0) + ARGV[3] > bytes then return {'bytes', who, 0} end
  if streams > 0 and redis.call('ZCARD', running) >= streams then return {'streams', who, 0} end
  if creates > 0 then -- a token bucket: as many as the limit at once, then one as soon as its share of the minute has passed
    local level, at = string.match(redis.call('HGET', state, 'bucket') or '', '^(%S+) (%S+)$')
    level = at and math.min(creates, level + math.max(0, now - at) * creates / 60000) or creates
    if level < 1 then return {'creates', who, math.ceil((1 - level) * 60000 / creates)} end
    buckets[who] = string.format('%.6f %d', level - 1, now)
  end
end
for who = 1, 2 do
  local state, running = KEYS[3 * who], KEYS[3 * who + 1]
  if buckets[who] then redis.call('HSET', state, 'bucket', buckets[who]) end
  redis.call('HINCRBY', state, 'bytes', ARGV[3])
  redis.call('EXPIRE', state, ARGV[5])
  redis.call('ZADD', running, now, ARGV[1])
  redis.call('EXPIRE', running, ARGV[5])
end
redis.call('ZADD', KEYS[1], now + ARGV[4], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[5])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[5])
return 0
