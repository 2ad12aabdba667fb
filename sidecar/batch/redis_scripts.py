"""What the store of batches does on the server: each operation is one script, and with that atomic.

The keys of a batch, all in one slot of a cluster:

    meta      hash: options, status, counts, times
    lines     stream, entry `NUMBER-0`; its consumer group deals the lines out. A line that is done is
              deleted: who deletes it has the first result
    ids       hash, custom_id to number, while the file is taken in
    begun     set: numbers of the lines that were begun
    workers   hash: until when a worker's lease holds (seconds of the server), its process, that one's birth
    results   stream, entry `POSITION-0`

A line that was claimed is in the group's list of pending entries, under the worker's name; under `-` where it
was given back or its worker died. The server's own clock measures leases: those of replicas may differ.
An error of `maxmemory` comes before the first write of a script, so that nothing of it is done;
`allow-oom` is for what frees, and for leases: a full store must not make the living look dead.
(valkey.io/topics/eval-intro, valkey.io/topics/streams-intro)
"""

from __future__ import annotations

from typing import Final

KEYS: Final = (b"meta", b"lines", b"ids", b"begun", b"workers", b"results")
GONE: Final = "GONE"
"""The error of a script whose batch is not there."""

_HEAD: Final = b"""
local meta, lines, ids, begun, workers, results = unpack(KEYS)
if redis.call('EXISTS', meta) == 0 then return redis.error_reply('GONE it is not there') end
local function now()
  local time = redis.call('TIME')
  return time[1] + time[2] / 1000000
end
local function keep(worker, lease, process)
  redis.call('HSET', workers, worker, string.format('%.3f %s', now() + lease, process))
  if redis.call('HGET', meta, 'status') == 'validating' then
    for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, 2 * lease) end
  end
end
local function id(number) return number .. '-0' end
local function number(id) return string.match(id, '^%d+') end
local function holds(worker, line)
  return #redis.call('XPENDING', lines, 'lines', id(line), id(line), 1, worker) > 0
end
local function free(line) redis.call('XCLAIM', lines, 'lines', '-', 0, id(line), 'JUSTID') end
local function forsake(worker)
  while true do
    local held = redis.call('XPENDING', lines, 'lines', '-', '+', 200, worker)
    if #held == 0 then break end
    for _, entry in ipairs(held) do free(number(entry[1])) end
  end
  redis.call('HDEL', workers, worker)
  redis.call('XGROUP', 'DELCONSUMER', lines, 'lines', worker)
end
"""
_OVER: Final = b"if redis.call('EXISTS', lines) == 0 then return {} end\n"
_ALWAYS: Final = b"#!lua flags=allow-oom\n"

# Worker, lease, process, options, created.
CREATE: Final = b"""
local meta, lines, workers = KEYS[1], KEYS[2], KEYS[5]
redis.call('HSET', meta, 'options', ARGV[4], 'status', 'validating', 'reason', '', 'created', ARGV[5],
  'total', 0, 'ok', 0, 'failed', 0, 'unknown', 0, 'position', 0)
redis.call('XGROUP', 'CREATE', lines, 'lines', '0', 'MKSTREAM')
local time = redis.call('TIME')
redis.call('HSET', workers, ARGV[1],
  string.format('%.3f %s', time[1] + time[2] / 1000000 + ARGV[2], ARGV[3]))
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, 2 * ARGV[2]) end
return 1"""

# Lease; then number, custom_id, repeatable, request of each line. Gives number and first of each duplicate.
ADD: Final = (
    _HEAD
    + b"""
local duplicates = {}
for at = 2, #ARGV, 4 do
  local line, name = ARGV[at], ARGV[at + 1]
  if redis.call('HSETNX', ids, name, line) == 1 then
    redis.call('XADD', lines, id(line), 'i', name, 'r', ARGV[at + 2], 'q', ARGV[at + 3])
  else
    local first = redis.call('HGET', ids, name)
    if first ~= line then
      duplicates[#duplicates + 1] = line
      duplicates[#duplicates + 1] = first
    end
  end
end
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, 2 * ARGV[1]) end
return duplicates"""
)

# Total.
ACCEPT: Final = (
    _HEAD
    + b"""
if redis.call('HGET', meta, 'status') == 'validating' then
  redis.call('HSET', meta, 'status', 'running', 'total', ARGV[1])
  redis.call('UNLINK', ids)
  for _, key in ipairs(KEYS) do redis.call('PERSIST', key) end
end
return 1"""
)

DELETE: Final = (
    _ALWAYS
    + b"""
local there = redis.call('EXISTS', KEYS[1])
redis.call('UNLINK', unpack(KEYS))
return there"""
)

# Status, reason.
END: Final = (
    _HEAD
    + b"""
local known = redis.call('HMGET', meta, 'status', 'reason', 'finished')
if known[1] ~= 'running' or known[2] ~= '' or known[3] then return 0 end
redis.call('HSET', meta, 'status', ARGV[1], 'reason', ARGV[2])
return 1"""
)

# Worker, lease, process, how many lines and how many bytes at most.
# Gives number, custom_id, repeatable, request, in doubt of each line.
CLAIM: Final = (
    _HEAD
    + _OVER
    + b"""
local worker, most, bytes = ARGV[1], tonumber(ARGV[4]), tonumber(ARGV[5])
keep(worker, ARGV[2], ARGV[3])
local known = redis.call('HGETALL', workers)
for at = 1, #known, 2 do
  if tonumber(string.match(known[at + 1], '^%S+')) < now() then forsake(known[at]) end
end
local taken, size, largest, full = {}, 0, 0, false
local function room()
  if full then return 0 end
  if #taken == 0 then return math.min(1, most) end
  return math.min(most - #taken, 16, math.floor((bytes - size) / math.max(1, largest)))
end
local function take(entries)
  for _, entry in ipairs(entries) do
    local line, fields = number(entry[1]), entry[2]
    local length = #fields[6]
    full = full or (#taken > 0 and size + length > bytes)
    if full then
      free(line)
    else
      size, largest = size + length, math.max(largest, length)
      taken[#taken + 1] =
        {line, fields[2], fields[4], fields[6], redis.call('SISMEMBER', begun, line)}
    end
  end
end
while room() > 0 do
  local left = redis.call('XPENDING', lines, 'lines', '-', '+', room(), '-')
  if #left == 0 then break end
  for _, entry in ipairs(left) do take(redis.call('XCLAIM', lines, 'lines', worker, 0, entry[1])) end
end
while room() > 0 do
  local read = redis.call('XREADGROUP', 'GROUP', 'lines', worker, 'COUNT', room(), 'STREAMS', lines, '>')
  if not read then break end
  take(read[1][2])
end
return taken"""
)

# Worker, numbers that it knows of. What it holds beside them is given back: the reply to a claim was lost.
RECOVER: Final = (
    _HEAD
    + _OVER
    + b"""
local known, after = {}, '-'
for at = 2, #ARGV do known[ARGV[at]] = true end
while true do
  local held = redis.call('XPENDING', lines, 'lines', after, '+', 200, ARGV[1])
  if #held == 0 then return {} end
  for _, entry in ipairs(held) do
    if not known[number(entry[1])] then free(number(entry[1])) end
    after = '(' .. entry[1]
  end
end"""
)

# Worker, numbers. Gives those that it still holds.
BEGIN: Final = (
    _HEAD
    + _OVER
    + b"""
local still = {}
for at = 2, #ARGV do
  if holds(ARGV[1], ARGV[at]) then
    redis.call('SADD', begun, ARGV[at])
    still[#still + 1] = ARGV[at]
  end
end
return still"""
)

# Worker, numbers.
RELEASE: Final = (
    _ALWAYS
    + _HEAD
    + _OVER
    + b"""
for at = 2, #ARGV do
  if holds(ARGV[1], ARGV[at]) then
    free(ARGV[at])
    redis.call('SREM', begun, ARGV[at])
  end
end
return {}"""
)

# Worker, lease, process. Gives 1 where the batch is not over.
RENEW: Final = (
    _ALWAYS
    + _HEAD
    + _OVER
    + b"""
keep(ARGV[1], ARGV[2], ARGV[3])
return 1"""
)

# Workers that are dead, or leave.
FORSAKE: Final = (
    _ALWAYS
    + _HEAD
    + _OVER
    + b"""
for _, worker in ipairs(ARGV) do forsake(worker) end
return {}"""
)

# The time, seconds for which what is over is kept; then number, outcome, text of each result.
# Gives the numbers of those that were the first of their lines. `HINCRBY` of nothing asks for `maxmemory`.
FINISH: Final = (
    _HEAD
    + b"""
local position = redis.call('HINCRBY', meta, 'position', 0)
local fresh = {}
for at = 3, #ARGV, 3 do
  local line = ARGV[at]
  if redis.call('XDEL', lines, id(line)) == 1 then
    redis.call('XACK', lines, 'lines', id(line))
    redis.call('SREM', begun, line)
    position = position + 1
    redis.call('XADD', results, id(string.format('%.0f', position)), 't', ARGV[at + 2])
    redis.call('HINCRBY', meta, ARGV[at + 1], 1)
    fresh[#fresh + 1] = line
  end
end
redis.call('HSET', meta, 'position', string.format('%.0f', position))
local known = redis.call('HMGET', meta, 'total', 'ok', 'failed', 'unknown', 'reason', 'finished', 'status')
if not known[6] and known[7] ~= 'validating' and known[1] - known[2] - known[3] - known[4] == 0 then
  redis.call('HSET', meta, 'finished', ARGV[1])
  if known[5] == '' then redis.call('HSET', meta, 'status', 'completed') end
  redis.call('UNLINK', lines, begun, workers)
  redis.call('EXPIRE', meta, ARGV[2])
  redis.call('EXPIRE', results, ARGV[2])
end
return fresh"""
)

# Position, how many results and how many bytes at most. Gives position and text of each.
RESULTS: Final = (
    _HEAD
    + b"""
local after, most, bytes = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local taken, size, largest = {}, 0, 0
while #taken < most do
  local room = 1
  if #taken > 0 then room = math.min(most - #taken, 16, math.floor((bytes - size) / math.max(1, largest))) end
  if room < 1 then break end
  local read = redis.call('XRANGE', results, id(string.format('%.0f', after + 1)), '+', 'COUNT', room)
  if #read == 0 then break end
  for _, entry in ipairs(read) do
    local text = entry[2][2]
    if #taken > 0 and size + #text > bytes then return taken end
    after, size, largest = tonumber(number(entry[1])), size + #text, math.max(largest, #text)
    taken[#taken + 1] = {number(entry[1]), text}
  end
end
return taken"""
)
