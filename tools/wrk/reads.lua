-- GET /user/{id}, ids uniform over a range.
--   wrk -t1 -c64 -d10s --latency -s tools/wrk/reads.lua http://127.0.0.1:8000 -- FIRST_ID COUNT
dofile(debug.getinfo(1, "S").source:match("^@(.*/)") .. "report.lua")

function init(arguments)
   first_id = number_argument(arguments, 1, 1)
   last_id = first_id + number_argument(arguments, 2, 1000) - 1
   seed_random()
   tail = " HTTP/1.1\r\nHost: " .. wrk.host .. "\r\n\r\n"
end

function request()
   return "GET /user/" .. math.random(first_id, last_id) .. tail
end
