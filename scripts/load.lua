-- The load of bench-vs-etcd and check-faults, for wrk: one thread a node, so that connections spread over all nodes.
-- Arguments after "--": system (a3 or etcd), operation, keys, offset, then the nodes as host:port. Operations: put,
-- quorum, one (keys at random), load (each key once and in order, from the offset on; the result says how far it came,
-- because wrk ends only when its time is up).
-- Every request is made before the clock starts: what is measured is the server, not this file.

local threads = {}

function setup(thread)
  thread:set("id", #threads)
  table.insert(threads, thread)
end

local alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

local function base64(text)
  local out = {}
  for i = 1, #text, 3 do
    local a, b, c = text:byte(i, i + 2)
    local bits = a * 65536 + (b or 0) * 256 + (c or 0)
    for place = 0, 3 do
      local digit = math.floor(bits / 64 ^ (3 - place)) % 64
      local filled = place < 2 or (place == 2 and b) or (place == 3 and c)
      table.insert(out, filled and alphabet:sub(digit + 1, digit + 1) or "=")
    end
  end
  return table.concat(out)
end

local function random_text(bytes)
  local out = {}
  for i = 1, bytes do
    out[i] = alphabet:byte(math.random(1, 62))
  end
  return string.char(unpack(out))
end

local make = {
  a3 = function(operation, key, value)
    if operation == "put" then
      return wrk.format("PUT", "/kv/" .. key, { ["Content-Type"] = "application/octet-stream" }, value)
    end
    return wrk.format("GET", "/kv/" .. key .. (operation == "one" and "?consistency=one" or ""))
  end,
  etcd = function(operation, key, value)
    local json = { ["Content-Type"] = "application/json" }
    if operation == "put" then
      local body = string.format('{"key":"%s","value":"%s"}', base64(key), base64(value))
      return wrk.format("POST", "/v3/kv/put", json, body)
    end
    local body = string.format('{"key":"%s"%s}', base64(key), operation == "one" and ',"serializable":true' or "")
    return wrk.format("POST", "/v3/kv/range", json, body)
  end,
}

local requests, loading
-- More than a thread can send in one slice of loading.
local slice = 100000

function init(args)
  local system, operation, keys, offset, nodes = args[1], args[2], tonumber(args[3]), tonumber(args[4]), #args - 4
  local node = args[5 + id % nodes]
  math.randomseed(os.time() * 16 + id)
  wrk.thread.addr = wrk.lookup(node:match("^(.*):(%d+)$"))[1]
  wrk.headers["Host"] = node
  loading = operation == "load"
  -- wrk asks the first thread for one request that it only looks at.
  requests, sent = {}, id == 0 and -1 or 0
  local last = loading and math.min(keys, (offset + slice) * nodes) - 1 or keys - 1
  for i = loading and offset * nodes + id or 0, last, loading and nodes or 1 do
    -- Values differ between keys and between runs, so that a put never writes what is there.
    local value = (loading or operation == "put") and random_text(100) or nil
    table.insert(requests, make[system](loading and "put" or operation, string.format("key-%07d", i), value))
  end
end

function request()
  if loading then
    sent = sent + 1
    return requests[math.max(1, math.min(sent, #requests))]
  end
  return requests[math.random(1, #requests)]
end

function done(summary, latency)
  local errors, loaded = summary.errors, slice
  for _, thread in ipairs(threads) do
    loaded = math.min(loaded, thread:get("sent"))
  end
  io.write(string.format(
    'RESULT {"requests":%d,"seconds":%f,"p50_ms":%f,"p99_ms":%f,"failed":%d,"sent":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout, loaded))
end
