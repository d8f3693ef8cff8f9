-- Leaves a text for one member and returns what every member has left.
-- For Redis 6.2 and later, and Valkey: fields of a hash have no time to live of their own there.
--
-- KEYS[1]  a hash: for every member the millisecond in which its text expires, a colon, and the text
-- ARGV[1]  the member
-- ARGV[2]  its text
-- ARGV[3]  for how long it is kept, in milliseconds
--
-- Returns the members and their texts by turns.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local expires = now + ARGV[3]
local last = expires
local found, gone = {}, {}
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f:', expires) .. ARGV[2])
local all = redis.call('HGETALL', KEYS[1])
for place = 1, #all, 2 do
  local colon = string.find(all[place + 1], ':', 1, true)
  local until_then = tonumber(string.sub(all[place + 1], 1, colon - 1))
  if until_then > now then
    found[#found + 1] = all[place]
    found[#found + 1] = string.sub(all[place + 1], colon + 1)
    last = math.max(last, until_then)
  else
    gone[#gone + 1] = all[place]
  end
end
for first = 1, #gone, 1000 do
  redis.call('HDEL', KEYS[1], unpack(gone, first, math.min(first + 999, #gone)))
end
redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', last))
return found
