-- For wrk: each connection waits 0.5 to 1.5 times PACE_MILLISECONDS before its next request. The wait is no part of the latency.
dofile(debug.getinfo(1, "S").source:sub(2):match(".*/") .. "report.lua")

local pace = tonumber(os.getenv("PACE_MILLISECONDS")) or 20

function delay()
    return math.random(math.floor(pace / 2), math.floor(pace * 3 / 2))
end
