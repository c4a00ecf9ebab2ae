-- Append one entry under its explicit id and publish it, or do neither.
-- KEYS: log [, large fields of the request [, those that are kept]].
-- ARGV: channel (empty: publishes nothing), how many entries the log must hold, id, field, value [, seconds to expiry [, large field, its JSON, ...]].
-- The channel is no key: else Redis Cluster would refuse each append (TRYAGAIN) while the log's slot moves, since no such key exists.
-- Without field and value it appends nothing, and only checks that the log still has what the writer expects.
-- Returns the number of listeners if applied; otherwise {duplicate | gap | fenced, last id, entries} of the log.
-- In the common case XLEN alone shows that nobody else wrote and nothing was lost; XADD refuses what is not newer.
local key, id, field, value = KEYS[1], ARGV[3], ARGV[4], ARGV[5]
local held = redis.call('XLEN', key)
if held == tonumber(ARGV[2]) then
  if not field then return redis.call('PUBSUB', 'SHARDNUMSUB', ARGV[1])[2] end
  local added = redis.pcall('XADD', key, id, field, value)
  if type(added) == 'string' then
    if ARGV[6] then redis.call('EXPIRE', key, ARGV[6]) end
    if ARGV[7] then -- the first entry
      redis.call('HSET', KEYS[2], unpack(ARGV, 7))
      redis.call('EXPIRE', KEYS[2], ARGV[6])
    elseif KEYS[3] then -- the last one
      redis.call('EXPIRE', KEYS[2], 0)
      redis.call('EXPIRE', KEYS[3], ARGV[6])
    end
    if ARGV[1] == '' then return 0 end
    return redis.call('SPUBLISH', ARGV[1], id .. ' ' .. field .. ' ' .. value)
  end
  if not string.find(tostring(added.err), 'equal or smaller', 1, true) then return added end
end
local last = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
last = last and last[1] or '0-0'
local last_attempt, last_offset = string.match(last, '^(%d+)-(%d+)$')
local attempt, offset = string.match(id, '^(%d+)-(%d+)$')
last_attempt, last_offset, attempt, offset = tonumber(last_attempt), tonumber(last_offset), tonumber(attempt), tonumber(offset)
local status = 'gap'
if last_attempt > attempt then
  status = 'fenced'
elseif last_attempt == attempt and last_offset >= offset then
  status = 'duplicate'
end
return {status, last, held}
