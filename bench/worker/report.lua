-- For wrk: one line of JSON at the end, times in ms. No `response` function: that would cost wrk time on every answer.
function done(summary, latency)
    local errors = summary.errors
    io.write(string.format(
        '{"requests": %d, "seconds": %.3f, "connect": %d, "read": %d, "write": %d, "timeout": %d, "status": %d, ' ..
        '"p50": %.3f, "p99": %.3f, "max": %.3f}\n',
        summary.requests, summary.duration / 1e6,
        errors.connect, errors.read, errors.write, errors.timeout, errors.status,
        latency:percentile(50) / 1000, latency:percentile(99) / 1000, latency.max / 1000))
end
