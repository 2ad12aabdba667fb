-- Arguments: method, path, bytes of request body, "varying" or "same".
-- Prints one line that bench/load.py reads.
local method, path, size, varying

function init(args)
   method, path, size, varying = args[1], args[2], tonumber(args[3]), args[4] == "varying"
   wrk.method = method
   wrk.path = path
   wrk.headers["User-Agent"] = "bench/1"
   wrk.headers["Accept"] = "*/*"
   wrk.headers["Accept-Encoding"] = "gzip, deflate"
   if size > 0 then
      wrk.headers["Content-Type"] = "application/json"
      wrk.body = string.rep("x", size)
   end
   if varying then
      local head = wrk.format(method, path):sub(1, -3)
      local count = 0
      local prefix = string.format("%08x%08x", os.time(), math.random(0, 0x7ffffff))
      -- A global `request` is what makes wrk ask for each request anew.
      request = function()
         count = count + 1
         local id = string.format("%s%016x", prefix, count)
         return head .. "traceparent: 00-" .. id .. "-" .. id:sub(17) .. "-01\r\nX-Request-ID: " .. id .. "\r\n\r\n"
      end
   end
end

function done(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format("BENCH %d %d %d %d %d %d %d %d\n", summary.requests, summary.duration, summary.bytes,
      errors.status, errors.connect + errors.read + errors.write + errors.timeout,
      latency:percentile(50), latency:percentile(99), latency.mean))
end
