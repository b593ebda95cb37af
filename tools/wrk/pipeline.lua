-- As reads.lua, but DEPTH requests go out together and their answers come back together.
--   wrk -t1 -c64 -d10s -s tools/wrk/pipeline.lua http://127.0.0.1:8000 -- FIRST_ID COUNT DEPTH
-- wrk counts the requests in what `request` returns, so its rate is that of the single requests; its latency is that
-- of the whole pipeline.
dofile(debug.getinfo(1, "S").source:match("^@(.*/)") .. "report.lua")

function init(arguments)
   first_id = number_argument(arguments, 1, 1)
   last_id = first_id + number_argument(arguments, 2, 1000) - 1
   depth = number_argument(arguments, 3, 16)
   seed_random()
   tail = " HTTP/1.1\r\nHost: " .. wrk.host .. "\r\n\r\n"
end

function request()
   local parts = {}
   for n = 1, depth do
      parts[n] = "GET /user/" .. math.random(first_id, last_id) .. tail
   end
   return table.concat(parts)
end
