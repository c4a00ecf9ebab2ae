-- Read the ids of the newest entries of logs. Reads only. KEYS: logs; in a cluster of one slot.
-- Returns an id for each: empty where there is no log, and 0-1 for a key that is no stream, whose first entry cannot be read.
local ids = {}
for number, key in ipairs(KEYS) do
  local newest = redis.pcall('XREVRANGE', key, '+', '-', 'COUNT', 1)
  if newest.err and not string.find(tostring(newest.err), 'WRONGTYPE', 1, true) then return newest end
  ids[number] = newest.err and '0-1' or newest[1] and newest[1][1] or ''
end
return ids
