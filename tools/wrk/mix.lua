-- 90 % GET /user/{id}, 10 % POST /order: of ten requests of a thread nine read and one writes.
--   wrk -t1 -c64 -d10s --latency -s tools/wrk/mix.lua http://127.0.0.1:8000 -- FIRST_USER USERS FIRST_PRODUCT PRODUCTS
local here = debug.getinfo(1, "S").source:match("^@(.*/)")
dofile(here .. "orders.lua")
local init_orders, order = init, request
local turn = 0

function init(arguments)
   init_orders(arguments)
   tail = " HTTP/1.1\r\nHost: " .. wrk.host .. "\r\n\r\n"
end

function request()
   turn = (turn + 1) % 10
   if turn == 0 then
      return order()
   end
   return "GET /user/" .. math.random(first_user, last_user) .. tail
end
