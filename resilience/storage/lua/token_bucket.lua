-- Decide questions about token buckets in the order in which they were asked, each question all or nothing.
-- Mirrors advance, decide and give_back of resilience.core.limiter. A question is one step or several; a step is one
-- charge, or one refund, on one bucket.
--
-- KEYS[i]      the buckets that the steps are about, each once, all in one hash slot
-- ARGV[1]      now in microseconds, or '' to read the server's clock
-- ARGV[2]      which bucket each step is about: two bytes a step, low byte first, from 0; '' when step i is about KEYS[i]
-- ARGV[3]      which terms each step has, likewise; '' when all have the same
-- ARGV[4...]   terms: 'kind capacity refill unit tick amount bound', in parts, the tick in microseconds. The kinds are
--                c  a charge of amount, if bound is left after it; the last of its question
--                m  likewise, and the next step belongs to the same question
--                r  a refund of amount ('-' fills the bucket), if the level is bound or more ('-' at any level)
-- returns      {one character a step: 1 when its question was allowed, else 0; then the level after each step, in parts}
--
-- A bucket is kept as three doubles: level, stamp, unit (struct.unpack '<ddd'). Texts would cost a third of a decision.
-- All numbers are whole and below 2^53, where a double is exact, and so are the integers of a reply, and a number that is
-- an argument of a command (17 digits; tostring() would keep 14).
-- A denial, and a cost of 0, write nothing: they also work on a server that is full, and on a replica. But a denial stores
-- buckets that are stamped later than now at now: the clock went backwards, and they would gain nothing until it is back.
-- A bucket expires when it would be full anyway, rounded up: an early end would be a free refill. Under a clock that is
-- not the server's it is kept an hour longer, since the server's own clock decides when it expires.

local byte, fmod, match, max, min = string.byte, math.fmod, string.match, math.max, math.min
local pack, unpack_value = struct.pack, struct.unpack

local LARGEST = 9007199254740992
local LONGEST = 1e15 -- milliseconds that a key is kept at most: 30,000 years
local AT_ONCE = 4000 -- keys in one MGET: unpack has an end at about 8,000

local now
local longer = 0
if ARGV[1] == '' then
    local time = redis.call('TIME') -- once: two calls in one script may differ
    now = time[1] * 1000000 + time[2]
else
    now = tonumber(ARGV[1])
    longer = 3600000
end

-- Quotients in whole numbers. fmod is exact where a / b would round.
local function divide_up(a, b)
    local remainder = fmod(a, b)
    if remainder > 0 then
        return (a - remainder) / b + 1
    end
    return (a - remainder) / b
end

local function divide_down(a, b)
    local remainder = fmod(a, b)
    if remainder < 0 then
        remainder = remainder + b
    end
    return (a - remainder) / b
end

local kinds, capacities, refills, units, ticks, amounts, bounds = {}, {}, {}, {}, {}, {}, {}
for i = 4, #ARGV do
    local kind, capacity, refill, unit, tick, amount, bound = match(ARGV[i], '^(%l) (%d+) (%d+) (%d+) (%d+) (%S+) (%S+)$')
    local t = i - 3
    kinds[t], capacities[t], refills[t] = kind, tonumber(capacity), tonumber(refill)
    units[t], ticks[t] = tonumber(unit), tonumber(tick)
    amounts[t], bounds[t] = tonumber(amount), tonumber(bound) -- nil for '-'
end

-- The buckets as they stand; no level is a full bucket. What is no bucket of ours counts as full too.
local levels, stamps, parts, stored = {}, {}, {}, {}
for first = 1, #KEYS, AT_ONCE do
    local values = redis.call('MGET', unpack(KEYS, first, min(first + AT_ONCE - 1, #KEYS)))
    for i, value in ipairs(values) do
        if value then
            local k = first + i - 1
            stored[k] = true
            if #value == 24 then
                local level, stamp, unit = unpack_value('<ddd', value)
                if level >= -LARGEST and level <= LARGEST and stamp >= 0 and unit >= 1 then
                    levels[k], stamps[k], parts[k] = level, stamp, unit
                end
            end
        end
    end
end

-- The level and stamp of bucket k at `now`, under terms t.
local function advance(k, t)
    local level, capacity = levels[k], capacities[t]
    if not level then
        return capacity, now
    end
    local stamp, unit = stamps[k], units[t]
    if parts[k] ~= unit then
        level = divide_down(level, parts[k]) * unit
    end
    if level < 0 then
        level = max(level, capacity - LARGEST)
    end
    if now <= stamp then
        return min(level, capacity), now
    end
    if level >= capacity then
        return capacity, now
    end
    local remainder = fmod(now - stamp, ticks[t])
    local gained, refill = (now - stamp - remainder) / ticks[t], refills[t]
    -- Compared in ticks: the product of ticks and refill may be beyond what a double holds.
    if gained >= divide_up(capacity - level, refill) then
        return capacity, now
    end
    return level + gained * refill, now - remainder
end

local changed, last_terms = {}, {}
local function write(k, t, level, stamp)
    if not last_terms[k] then
        changed[#changed + 1] = k
    end
    last_terms[k] = t
    levels[k], stamps[k], parts[k] = level, stamp, units[t]
end

local buckets_of, terms_of = ARGV[2], ARGV[3]
local steps = #KEYS
if buckets_of ~= '' then
    steps = #buckets_of / 2
end
local flags, reply = {}, {''}
local bucket_at, terms_at, level_at, stamp_at = {}, {}, {}, {}
local step = 1
while step <= steps do
    local first, allowed, spends, kind = step, true, false, nil
    repeat
        local k, t = step, 1
        if buckets_of ~= '' then
            local low, high = byte(buckets_of, 2 * step - 1, 2 * step)
            k = low + 256 * high + 1
        end
        if terms_of ~= '' then
            local low, high = byte(terms_of, 2 * step - 1, 2 * step)
            t = low + 256 * high + 1
        end
        local level, stamp = advance(k, t)
        kind = kinds[t]
        if kind == 'r' then
            local capacity = capacities[t]
            if not bounds[t] or level >= bounds[t] then
                level = level + (amounts[t] or capacity - level)
            end
            if level >= capacity then
                level = capacity
                write(k, t, nil, nil)
            else
                write(k, t, level, stamp)
            end
        else
            local amount = amounts[t]
            if amount > 0 then
                spends = true
                if amount > capacities[t] or level - amount < bounds[t] then
                    allowed = false
                end
            end
        end
        bucket_at[step], terms_at[step], level_at[step], stamp_at[step] = k, t, level, stamp
        step = step + 1
    until kind ~= 'm' or step > steps
    for i = first, step - 1 do
        local level = level_at[i]
        if allowed and spends then
            local t = terms_at[i]
            level = level - amounts[t]
            write(bucket_at[i], t, level, stamp_at[i])
        elseif not allowed then
            local k = bucket_at[i]
            if levels[k] and stamps[k] > now then
                write(k, terms_at[i], level, stamp_at[i])
            end
        end
        flags[i] = allowed and '1' or '0'
        reply[i + 1] = level
    end
end

for _, k in ipairs(changed) do
    local level = levels[k]
    if level then
        local t = last_terms[k]
        -- Divided before it is multiplied: the product in microseconds may be beyond what a double holds, its quotient is no
        -- whole number then, and the server refuses it in the middle of the call.
        local missing, tick = divide_up(capacities[t] - level, refills[t]), ticks[t]
        local milliseconds = tick < 1000 and divide_up(missing, 1000 / tick) or missing * (tick / 1000)
        local kept = min(milliseconds + 1 + longer, LONGEST)
        redis.call('SET', KEYS[k], pack('<ddd', level, stamps[k], parts[k]), 'PX', kept)
    elseif stored[k] then
        redis.call('DEL', KEYS[k])
    end
end
reply[1] = table.concat(flags)
return reply
