-- Have streams that were taken looked at again at other times, except those for which a look was asked meanwhile.
-- KEYS: external writers. ARGV: until when they were taken (ms, as `due` noted it), then a time (ms) and a stream id for each.
-- Returns nothing.
for i = 2, #ARGV, 2 do
  local noted = redis.call('ZSCORE', KEYS[1], ARGV[i + 1])
  if noted and tonumber(noted) == tonumber(ARGV[1]) then redis.call('ZADD', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
