-- What a listed stream is, without what was asked of it. Reads only. KEYS: log.
-- ARGV: how many bytes of each value are wanted at most, the id with which the newest attempt begins.
-- {the beginning of `accepted`, that of the attempt's first entry}; empty where there is none. A request may have a megabyte:
-- it stays here.
local accepted = redis.call('XRANGE', KEYS[1], '0-1', '0-1')[1]
local begun = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])[1]
return {accepted and string.sub(accepted[2][2], 1, ARGV[1]) or '', begun and string.sub(begun[2][2], 1, ARGV[1]) or ''}
