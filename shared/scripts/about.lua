-- Read what the console lists of a stream, without the request, which may have a megabyte. Reads only. KEYS: log.
-- ARGV: the most bytes of each value, the id with which the newest attempt begins.
-- Returns {beginning of `accepted`, beginning of the attempt's first entry}; empty where there is none.
local accepted = redis.call('XRANGE', KEYS[1], '0-1', '0-1')[1]
local begun = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])[1]
return {accepted and string.sub(accepted[2][2], 1, ARGV[1]) or '', begun and string.sub(begun[2][2], 1, ARGV[1]) or ''}
