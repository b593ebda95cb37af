-- What the scripts of this directory share: the machine-readable line at the end of a run, and small helpers.
-- Each script loads it with dofile, because wrk gives a script no search path of its own.

-- Return argument `index` of the script (what follows `--` on the command line of wrk) as a number.
function number_argument(arguments, index, default)
   return tonumber(arguments[index]) or default
end

-- Every thread draws its own random numbers; wrk would start all of them with the same seed.
local threads_started = 0
function setup(thread)
   threads_started = threads_started + 1
   thread:set("thread_number", threads_started)
end

function seed_random()
   math.randomseed(20240229 + 7919 * thread_number)
   for _ = 1, 8 do math.random() end
end

-- wrk calls this once, in the main state, after its own text.
function done(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format(
      'wrk-json {"seconds":%.6f,"requests":%d,"bytes":%d,"connect_errors":%d,"read_errors":%d,"write_errors":%d,'
      .. '"status_errors":%d,"timeouts":%d,"p50_ms":%.4f,"p90_ms":%.4f,"p99_ms":%.4f,"p999_ms":%.4f,"max_ms":%.4f}\n',
      summary.duration / 1e6, summary.requests, summary.bytes, errors.connect, errors.read, errors.write,
      errors.status, errors.timeout, latency:percentile(50) / 1e3, latency:percentile(90) / 1e3,
      latency:percentile(99) / 1e3, latency:percentile(99.9) / 1e3, latency.max / 1e3))
end
