-- Put a request at the end of the queue, unless the queue is full. KEYS: queue. ARGV: stream id, most entries, seconds to expiry.
-- Returns the queue entry's id, or nil if the queue is full.
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[2]) then return nil end
local id = redis.call('XADD', KEYS[1], '*', 'id', ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return id
