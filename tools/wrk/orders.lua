-- POST /order, one unit each, users and products uniform over a range. The products need stock.
--   wrk -t1 -c64 -d10s --latency -s tools/wrk/orders.lua http://127.0.0.1:8000 --
--       FIRST_USER USERS FIRST_PRODUCT PRODUCTS
dofile(debug.getinfo(1, "S").source:match("^@(.*/)") .. "report.lua")

function init(arguments)
   first_user = number_argument(arguments, 1, 1)
   last_user = first_user + number_argument(arguments, 2, 1000) - 1
   first_product = number_argument(arguments, 3, 1)
   last_product = first_product + number_argument(arguments, 4, 1000) - 1
   seed_random()
   head = "POST /order HTTP/1.1\r\nHost: " .. wrk.host .. "\r\nContent-Type: application/json\r\nContent-Length: "
end

function request()
   local body = '{"command":"place order","product_id":' .. math.random(first_product, last_product)
      .. ',"user_id":' .. math.random(first_user, last_user) .. ',"quantity":1}'
   return head .. #body .. "\r\n\r\n" .. body
end
