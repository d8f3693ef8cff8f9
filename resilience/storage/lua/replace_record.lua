-- Replaces a record, if nobody else has replaced it meanwhile, and tells who follows it.
-- For Redis 6.2 and later, and Valkey.
--
-- KEYS[1]  the record
-- ARGV[1]  what it is taken to be: "+" and its text, or "-" for none
-- ARGV[2]  what it becomes, written likewise
-- ARGV[3]  for how long it is kept, in milliseconds
-- ARGV[4]  the channel of news; empty: nobody is told
-- ARGV[5]  the news
--
-- Returns 1 if it was replaced or else 0, what it was, written likewise, and the server's time: seconds, microseconds.

local time = redis.call('TIME')
local text = redis.call('GET', KEYS[1])
local held = text and '+' .. text or '-'
if held ~= ARGV[1] then
  return {0, held, time[1], time[2]}
end
if ARGV[2] == '-' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], string.sub(ARGV[2], 2), 'PX', ARGV[3])
end
if ARGV[4] ~= '' then
  redis.call('PUBLISH', ARGV[4], ARGV[5])
end
return {1, held, time[1], time[2]}
