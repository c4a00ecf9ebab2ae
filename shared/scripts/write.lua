-- Append one entry of an external writer behind the entry that it expects to be the last, and renew its lease; or only look.
-- KEYS: log, channel, lease, large fields of the request, those that are kept.
-- ARGV: last id expected (empty: look only), id, field, value, 1 for a terminal event, 1 to renew the lease, lease (ms; empty: as
-- before), how long no gateway may listen (ms; empty: as before; -1: for ever), value of `cancelled`, seconds to expiry of an ended
-- log, most entries, most bytes of values.
-- Returns {status, last id, its field, its value, listeners}. Status: applied, looked; ended, differs (nothing is written); full;
-- cancelled (no gateway listened for too long: ended here); unknown (the lease's values are missing: give them); missing (no log).
local log, channel, lease = KEYS[1], KEYS[2], KEYS[3]
local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
if not last then return {'missing', '0-0', '', '', 0} end
local last_id, field, value = last[1], last[2][1], last[2][2]
-- The terminal events, as in shared/lifecycle.py.
if field == 'done' or field == 'failed' or field == 'cancelled' or field == 'deleted' then
  return {'ended', last_id, field, value, 0}
end
local about = redis.call('HMGET', lease, 'ms', 'alone_ms', 'bytes', 'alone_since')
local ms = ARGV[7] ~= '' and ARGV[7] or about[1]
local alone_ms = ARGV[8] ~= '' and ARGV[8] or about[2]
if not (ms and alone_ms) then return {'unknown', last_id, field, value, 0} end

local function finish(id, ended_field, ended_value)
  redis.call('XADD', log, id, ended_field, ended_value)
  redis.call('EXPIRE', log, ARGV[10])
  redis.call('EXPIRE', KEYS[4], 0)
  redis.call('EXPIRE', KEYS[5], ARGV[10])
  redis.call('EXPIRE', lease, 0)
  return redis.call('SPUBLISH', channel, id .. ' ' .. ended_field .. ' ' .. ended_value)
end

local status, listeners = 'looked', nil
if ARGV[1] ~= '' then
  local bytes = tonumber(about[3] or 0) + #ARGV[4]
  if last_id ~= ARGV[1] then
    status = 'differs'
  elseif ARGV[5] == '1' then
    return {'applied', ARGV[2], ARGV[3], '', finish(ARGV[2], ARGV[3], ARGV[4])}
  elseif redis.call('XLEN', log) >= tonumber(ARGV[11]) - 1 or bytes > tonumber(ARGV[12]) then
    return {'full', last_id, field, value, 0}
  else
    local added = redis.pcall('XADD', log, ARGV[2], ARGV[3], ARGV[4])
    if type(added) ~= 'string' then return added end
    redis.call('HSET', lease, 'bytes', bytes)
    listeners = redis.call('SPUBLISH', channel, ARGV[2] .. ' ' .. ARGV[3] .. ' ' .. ARGV[4])
    status, last_id, field, value = 'applied', ARGV[2], ARGV[3], ''
  end
end
listeners = listeners or redis.call('PUBSUB', 'SHARDNUMSUB', channel)[2]
if ARGV[6] == '1' then
  redis.call('HSET', lease, 'ms', ms, 'alone_ms', alone_ms)
  redis.call('PEXPIRE', lease, ms)
end
-- From here on only what keeps its expiry: a hash that no lease is set for is not made.
if about[1] or ARGV[6] == '1' then
  if listeners > 0 then
    if about[4] then redis.call('HDEL', lease, 'alone_since') end
  elseif alone_ms ~= '-1' then
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    if not about[4] then
      redis.call('HSET', lease, 'alone_since', now)
    elseif now - tonumber(about[4]) >= tonumber(alone_ms) then
      local id = string.format('%d-0', tonumber(string.match(last_id, '^(%d+)-')) + 1)
      finish(id, 'cancelled', ARGV[9])
      return {'cancelled', id, 'cancelled', ARGV[9], 0}
    end
  end
end
return {status, last_id, field, value, listeners}
