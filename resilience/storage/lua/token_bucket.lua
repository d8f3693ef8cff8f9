-- Decide several token buckets together, all or nothing. Mirrors resilience.core.limiter.decide.
--
-- KEYS[i]             one bucket per charge, all in one hash slot
-- ARGV[1]             now in microseconds, or '' to read the server's clock
-- ARGV[5i-3 .. 5i+1]  capacity, refill per tick, unit (all in parts), tick in microseconds, cost in parts
-- returns             {1 or 0, level after the decision of each bucket, in parts, as a string}
--
-- All numbers are whole and below 2^53, where a double is exact. They are written with %.0f because tostring()
-- keeps 14 digits only, and answered as strings because a number in a reply is cut to an integer of the client's making.
-- A denial, and a cost of 0, write nothing: they also work on a server that is full.
-- A bucket expires when it would be full anyway, rounded up: an early end would be a free refill. Under a clock that is
-- not the server's it is kept an hour longer, since the server's own clock decides when it expires.

-- Whole quotient and remainder. fmod is exact where a / b would round.
local function divide(a, b)
    local remainder = math.fmod(a, b)
    return (a - remainder) / b, remainder
end

local function divide_up(a, b)
    local quotient, remainder = divide(a, b)
    if remainder > 0 then
        return quotient + 1
    end
    return quotient
end

local now
local longer = 0
if ARGV[1] == '' then
    local time = redis.call('TIME') -- once: two calls in one script may differ
    now = time[1] * 1000000 + time[2]
else
    now = tonumber(ARGV[1])
    longer = 3600000
end

local allowed, any_cost = 1, false
local levels, stamps = {}, {}
for i, key in ipairs(KEYS) do
    local capacity, refill = tonumber(ARGV[5 * i - 3]), tonumber(ARGV[5 * i - 2])
    local unit, tick = tonumber(ARGV[5 * i - 1]), tonumber(ARGV[5 * i])
    local cost = tonumber(ARGV[5 * i + 1])
    local level, stamp = capacity, now
    local stored = redis.call('GET', key)
    if stored then
        local stored_level, stored_stamp, stored_unit = string.match(stored, '^(%d+) (%d+) (%d+)$')
        if stored_level then
            level, stamp = tonumber(stored_level), tonumber(stored_stamp)
            stored_unit = tonumber(stored_unit)
            if stored_unit ~= unit then
                level = divide(level, stored_unit) * unit
            end
            if now <= stamp then
                level, stamp = math.min(level, capacity), now
            else
                local ticks = divide(now - stamp, tick)
                if ticks >= divide_up(capacity, refill) then
                    level, stamp = capacity, now
                else
                    level = level + ticks * refill
                    stamp = stamp + ticks * tick
                    if level >= capacity then
                        level, stamp = capacity, now
                    end
                end
            end
        end
    end
    levels[i], stamps[i] = level, stamp
    if level < cost then
        allowed = 0
    end
    if cost > 0 then
        any_cost = true
    end
end

local reply = {allowed}
for i, key in ipairs(KEYS) do
    if allowed == 1 and any_cost then
        local capacity, refill = tonumber(ARGV[5 * i - 3]), tonumber(ARGV[5 * i - 2])
        local unit, tick = tonumber(ARGV[5 * i - 1]), tonumber(ARGV[5 * i])
        levels[i] = levels[i] - tonumber(ARGV[5 * i + 1])
        local ticks_to_full = divide_up(capacity - levels[i], refill)
        local milliseconds = divide_up(ticks_to_full * tick, 1000) + 1 + longer
        redis.call('SET', key, string.format('%.0f %.0f %.0f', levels[i], stamps[i], unit),
            'PX', string.format('%.0f', milliseconds))
    end
    reply[i + 1] = string.format('%.0f', levels[i])
end
return reply
