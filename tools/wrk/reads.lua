-- GET /user/{id}, ids uniform over a range.
--   wrk -t1 -c64 -d10s --latency -s tools/wrk/reads.lua http://127.0.0.1:8000 -- FIRST_ID COUNT
dofile(debug.getinfo(1, "S").source:match("^@(.*/)") .. "report.lua")

-- Over a small range the requests are drawn before the clock starts: wrk has to be cheaper than what it measures.
-- Over a large one that would take too much memory.
local DRAWN = 65536

function init(arguments)
   first_id = number_argument(arguments, 1, 1)
   count = number_argument(arguments, 2, 1000)
   seed_random()
   tail = " HTTP/1.1\r\nHost: " .. wrk.host .. "\r\n\r\n"
   if count > DRAWN then
      return
   end
   local drawn, turn = {}, 0
   for n = 1, DRAWN do
      drawn[n] = draw()
   end
   request = function()
      turn = turn % DRAWN + 1
      return drawn[turn]
   end
end

function draw()
   return "GET /user/" .. math.random(first_id, first_id + count - 1) .. tail
end

request = draw
