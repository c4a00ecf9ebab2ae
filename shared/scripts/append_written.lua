-- Append messages to a written stream, end it, or both; or do nothing, and say why. May be repeated by a producer after a lost reply.
-- KEYS: log, channel, writer.
-- ARGV: field, value, number of messages in it (0: none), media type (empty: not compared), Stream-Seq (empty: none),
--   producer (empty: none), epoch, sequence number, most bytes, most messages, most producers [, terminal field, its value].
-- Returns nil: there is no such log; {'generated'}: a worker writes it; otherwise {status, id of the newest message, ...}:
--   appended: number of listeners, bytes of all messages | duplicate: newest sequence number, outcome (empty: not ended)
--   stale: newest epoch | first: a new epoch must begin at 0 | gap: expected sequence number | closed: outcome
--   type: media type | seq: newest Stream-Seq | full: what there is too much of (bytes, messages, producers)
-- The producer is looked at first: a repeated append is a success, whatever has happened since.
local log, channel, writer = KEYS[1], KEYS[2], KEYS[3]
local newest = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
if not newest or newest[2][1] == 'deleted' then return nil end
local stored = redis.call('HMGET', writer, 'type', 'life', 'bytes', 'messages', 'producers', 'seq', 'producer:' .. ARGV[6])
if not stored[1] then return {'generated'} end
local outcome, tail = '', newest[1]
-- The terminal events, as in shared/lifecycle.py.
if newest[2][1] == 'done' or newest[2][1] == 'failed' or newest[2][1] == 'cancelled' then
  outcome, tail = newest[2][1], redis.call('XREVRANGE', log, '+', '-', 'COUNT', 2)[2][1]
end
local value, count = ARGV[2], tonumber(ARGV[3])
local size, messages, producers = tonumber(stored[3]) + #value, tonumber(stored[4]) + count, tonumber(stored[5])

if ARGV[6] ~= '' then
  local epoch, sequence, known = tonumber(ARGV[7]), tonumber(ARGV[8]), stored[7]
  local expected = 0
  if known then
    local known_epoch, known_sequence = string.match(known, '^(%d+) (%d+)$')
    if epoch < tonumber(known_epoch) then return {'stale', tail, known_epoch} end
    if epoch > tonumber(known_epoch) then
      if sequence ~= 0 then return {'first', tail} end
    else
      if sequence <= tonumber(known_sequence) then return {'duplicate', tail, known_sequence, outcome} end
      expected = tonumber(known_sequence) + 1
    end
  else
    producers = producers + 1
  end
  if sequence ~= expected then return {'gap', tail, string.format('%.0f', expected)} end
end
if outcome ~= '' then return {'closed', tail, outcome} end
if ARGV[4] ~= '' and ARGV[4] ~= stored[1] then return {'type', tail, stored[1]} end
if ARGV[5] ~= '' and stored[6] then
  -- Byte by byte: Lua's own comparison follows the server's locale.
  local before, after, place = stored[6], ARGV[5], 1
  while place <= #before and string.byte(before, place) == string.byte(after, place) do place = place + 1 end
  if (string.byte(after, place) or 0) <= (string.byte(before, place) or 0) then return {'seq', tail, before} end
end
if size > tonumber(ARGV[9]) then return {'full', tail, 'bytes'} end
if messages > tonumber(ARGV[10]) then return {'full', tail, 'messages'} end
if producers > tonumber(ARGV[11]) then return {'full', tail, 'producers'} end

local attempt, offset = string.match(tail, '^(%d+)-(%d+)$')
offset = tonumber(offset) + count
local listeners = 0
if count > 0 then
  tail = string.format('%s-%d', attempt, offset)
  redis.call('XADD', log, tail, ARGV[1], value)
  listeners = redis.call('SPUBLISH', channel, tail .. ' ' .. ARGV[1] .. ' ' .. value)
end
if ARGV[12] then
  local id = string.format('%s-%d', attempt, offset + 1)
  redis.call('XADD', log, id, ARGV[12], ARGV[13])
  listeners = redis.call('SPUBLISH', channel, id .. ' ' .. ARGV[12] .. ' ' .. ARGV[13])
end
redis.call('HSET', writer, 'bytes', size, 'messages', messages, 'producers', producers)
if ARGV[5] ~= '' then redis.call('HSET', writer, 'seq', ARGV[5]) end
if ARGV[6] ~= '' then redis.call('HSET', writer, 'producer:' .. ARGV[6], ARGV[7] .. ' ' .. ARGV[8]) end
if stored[2] ~= '0' then
  redis.call('PEXPIRE', log, stored[2])
  redis.call('PEXPIRE', writer, stored[2])
end
return {'appended', tail, listeners, size}
