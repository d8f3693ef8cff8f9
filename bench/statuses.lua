-- For wrk: counts answers by status, and prints one line of JSON at the end.
local threads = {}

function setup(thread)
    table.insert(threads, thread)
end

function init()
    counts = {}
end

function response(status)
    counts[status] = (counts[status] or 0) + 1
end

function done(summary, latency)
    local total = {}
    for _, thread in ipairs(threads) do
        for status, count in pairs(thread:get("counts")) do
            total[status] = (total[status] or 0) + count
        end
    end
    local statuses = {}
    for status, count in pairs(total) do
        table.insert(statuses, string.format('"%d": %d', status, count))
    end
    local errors = summary.errors
    io.write(string.format(
        '{"statuses": {%s}, "requests": %d, "seconds": %.3f, "connect": %d, "read": %d, "write": %d, "timeout": %d, ' ..
        '"p50": %.2f, "p90": %.2f, "p99": %.2f, "max": %.2f}\n',
        table.concat(statuses, ", "), summary.requests, summary.duration / 1e6,
        errors.connect, errors.read, errors.write, errors.timeout,
        latency:percentile(50) / 1000, latency:percentile(90) / 1000, latency:percentile(99) / 1000, latency.max / 1000))
end
