-- Renew the leases that this worker still has, or hand them back. KEYS: queue.
-- ARGV: group, worker, seconds to expiry, how long ago the leases are to count as renewed (ms), queue entry ids ...
-- Returns the ids of lost leases: another worker has taken them over, and XCLAIM without this check would take them back.
redis.call('EXPIRE', KEYS[1], ARGV[3])
local lost = {}
for i = 5, #ARGV do
  local mine = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])
  if #mine == 0 then
    lost[#lost + 1] = ARGV[i]
  else
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'IDLE', ARGV[4], 'JUSTID')
  end
end
return lost
