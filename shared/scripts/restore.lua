-- Bring a log back from the archive, in parts that become visible together. KEYS: log, its part, deliveries, kept request fields.
-- ARGV: seconds to expiry (0: more parts follow), how many entries; id, field, value of each; then field, value of the deliveries'
-- hash after their number; then field, value of the kept request's.
-- Returns 1: the log is there; 0: it was there already, or the part has expired; 2: more parts are needed.
local seconds, entries = tonumber(ARGV[1]), tonumber(ARGV[2])
if redis.call('XLEN', KEYS[1]) > 0 then
  redis.call('EXPIRE', KEYS[2], 0)
  return 0
end
local at = 3
for _ = 1, entries do
  redis.call('XADD', KEYS[2], ARGV[at], ARGV[at + 1], ARGV[at + 2])
  at = at + 3
end
redis.call('EXPIRE', KEYS[2], 60)
if seconds == 0 then return 2 end
local notes = tonumber(ARGV[at])
at = at + 1
for i = 1, #ARGV - at, 2 do
  redis.call('HSET', i <= 2 * notes and KEYS[3] or KEYS[4], ARGV[at + i - 1], ARGV[at + i])
end
redis.call('RENAME', KEYS[2], KEYS[1])
for _, key in ipairs({KEYS[1], KEYS[3], KEYS[4]}) do redis.call('EXPIRE', key, seconds) end
return 1
