-- Let a name point to a stream, or to none, if it still points to the stream that the caller expects.
-- KEYS: name. ARGV: id that it is expected to point to (empty: none), new id (empty: none), ms to expiry.
-- Returns the id that it points to now; empty: none.
local held = redis.call('GET', KEYS[1]) or ''
if held ~= ARGV[1] then return held end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
return ARGV[2]
