-- Reading: nothing is written here.

-- ARGV: number of fields, the fields, number of counters, the counters, '1' for the stops too.
local function look(keys, argv)
  local p = places(keys)
  local r = reader(argv)
  local function list()
    local names = {}
    for i = 1, r.number() do names[i] = r.text() end
    return names
  end
  local function found(key, names)
    local values = fields_of(key, names, 1, #names)
    for i = 1, #names do values[i] = values[i] or '' end
    return values
  end
  local l = ledger(p)
  local fields = found(p.records, list())
  local counters = found(p.counters, list())
  local texts = texts_of(keys, PLACES + 1, #keys)
  for i = 1, #keys - PLACES do texts[i] = texts[i] or '' end
  local stops = r.text() == '1' and redis.call('HGETALL', p.stops) or {}
  return { 'seen', standing(l), fields, texts, counters, stops }
end

-- All counters at one event number, and the buckets of the rolling windows.
local function snapshot(keys)
  local p = places(keys)
  local counters = redis.call('HGETALL', p.counters)
  local windows = {}
  for i = 1, #counters, 2 do
    if string.sub(counters[i], 1, 1) == '~' then windows[#windows + 1] = 'g:' .. string.sub(counters[i], 2) end
  end
  local buckets = fields_of(p.records, windows, 1, #windows)
  local records = {}
  for i = 1, #windows do
    records[2 * i - 1] = windows[i]
    records[2 * i] = buckets[i] or ''
  end
  return { 'seen', standing(ledger(p)), counters, records }
end
