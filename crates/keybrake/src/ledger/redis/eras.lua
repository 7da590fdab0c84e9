-- What is remembered of the log: its eras, and which of its events were lost and said again. docs/decisions/0010.

-- What a client remembers of the ledger: how often it had been opened by hand, in which era it was, and the number of
-- the last event.
local function memory(r)
  return { hand = r.number(), epoch = r.text(), seq = r.number() }
end

-- The eras before the present one, oldest first. Not more of them are kept: a client that slept through so many counts
-- as one that misses events.
local ERAS = 64

local function eras_before(p)
  local eras = {}
  for epoch, from, start in string.gmatch(redis.call('HGET', p.meta, 'eras') or '', '(%x+):(%d+):(%d+)') do
    eras[#eras + 1] = { epoch = epoch, from = tonumber(from), start = tonumber(start) }
  end
  return eras
end

local function begins(text, with)
  return string.sub(text, 1, #with) == with
end

-- Lost events of an era that are here again under other numbers stand in fields of this name and a number: ranges in
-- blocks of so many events, because thousands may be said again one by one.
local BLOCK = 1000
local function have(epoch)
  return 'have:' .. epoch .. ':'
end

-- A version that nobody has a copy of, also of what was lost after this one.
local function beyond(version)
  return whole(math.max(server_ms(), tonumber(version) + 1))
end

-- Begins an era with the events that are here, in this run of the server. Its own are numbered after `start`.
local function begin_era(p, l, run, epoch, start)
  local eras = eras_before(p)
  eras[#eras + 1] = { epoch = l.epoch, from = l.from, start = l.start }
  local texts = {}
  for i = 1, #eras do
    local era = eras[i]
    if i > #eras - ERAS then
      texts[#texts + 1] = era.epoch .. ':' .. whole(era.from) .. ':' .. whole(era.start)
    else
      local fields = redis.call('HGETALL', p.recovery)
      for n = 1, #fields, 2 do
        if begins(fields[n], have(era.epoch)) then redis.call('HDEL', p.recovery, fields[n]) end
      end
    end
  end
  l.epoch, l.from, l.start, l.of = epoch, l.seq, start, short(run)
  l.seq = start
  -- A version of the stops that nobody has a copy of: those that were lost counted on as this one would.
  l.sv = beyond(l.sv)
  local era = epoch .. ':' .. whole(l.from) .. ':' .. whole(start) .. ':' .. l.of
  redis.call('HSET', p.meta, 'eras', table.concat(texts, ','), 'era', era, 'seq', whole(start), 'sv',
             l.sv)
  renew_edition(p, run)
end

-- How many of the events are here that there were in this era, and after which number its own begin: while it lasts the
-- log only grows, and what any later one began with must have been all of it. Nothing for an era that is not known here.
local function kept(p, l, epoch)
  if epoch == l.epoch then return l.seq, l.start end
  local eras = eras_before(p)
  local least = l.from
  for i = #eras, 1, -1 do
    if eras[i].epoch == epoch then return least, eras[i].start end
    least = math.min(least, eras[i].from)
  end
  return nil
end

-- Ranges of numbers, `first-last,first-last,...` in order, as a table and back.
local function ranges_of(text)
  local ranges = {}
  for first, last in string.gmatch(text or '', '(%d+)-(%d+)') do
    ranges[#ranges + 1] = { tonumber(first), tonumber(last) }
  end
  return ranges
end

-- Ranges in any order, as ranges in order of which none meets another.
local function merged(ranges)
  table.sort(ranges, function(a, b) return a[1] < b[1] end)
  local out = {}
  for _, range in ipairs(ranges) do
    local last = out[#out]
    if last and range[1] <= last[2] + 1 then
      out[#out] = { last[1], math.max(last[2], range[2]) }
    else
      out[#out + 1] = range
    end
  end
  return out
end

-- The parts of a range that are not among others.
local function gaps(first, last, ranges)
  local out = {}
  for _, range in ipairs(ranges) do
    if range[1] > last then break end
    if range[2] >= first then
      if range[1] > first then out[#out + 1] = { first, range[1] - 1 } end
      first = range[2] + 1
    end
  end
  if first <= last then out[#out + 1] = { first, last } end
  return out
end

-- Ranges of the fields that were read last, which are read again with every report.
local read = {}

local function ranges_in(p, field, text)
  local name = p.recovery .. field
  local known = read[name]
  if known and known.text == text then return known.ranges end
  local ranges = ranges_of(text)
  read[name] = { text = text, ranges = ranges }
  return ranges
end

-- Lost events of an era that are here again under other numbers.
local function covered(p, epoch)
  local fields, blocks, out = redis.call('HGETALL', p.recovery), {}, {}
  for i = 1, #fields, 2 do
    if begins(fields[i], have(epoch)) then
      local number = tonumber(string.sub(fields[i], #have(epoch) + 1))
      blocks[#blocks + 1] = { number = number, ranges = ranges_in(p, fields[i], fields[i + 1]) }
    end
  end
  table.sort(blocks, function(a, b) return a.number < b.number end)
  for _, block in ipairs(blocks) do
    for _, range in ipairs(block.ranges) do out[#out + 1] = range end
  end
  return out
end

-- Counts ranges of lost events as said again: era, first and last of each.
local function cover(p, said)
  local blocks, order = {}, {}
  for _, range in ipairs(said) do
    local first = range[2]
    while first <= range[3] do
      local number = math.floor(first / BLOCK)
      local last = math.min(range[3], number * BLOCK + BLOCK - 1)
      local field = have(range[1]) .. whole(number)
      if not blocks[field] then
        order[#order + 1] = field
        blocks[field] = { unpack(ranges_in(p, field, redis.call('HGET', p.recovery, field) or '')) }
      end
      table.insert(blocks[field], { first, last })
      first = last + 1
    end
  end
  for _, field in ipairs(order) do
    local ranges, texts = merged(blocks[field]), {}
    for i, range in ipairs(ranges) do texts[i] = whole(range[1]) .. '-' .. whole(range[2]) end
    local text = table.concat(texts, ',')
    redis.call('HSET', p.recovery, field, text)
    read[p.recovery .. field] = { text = text, ranges = ranges }
  end
end

-- Whether events are missing here that a client has seen, and that nobody has said again. Whoever opened the ledger by
-- hand has accepted what was missing then.
local function behind(p, l, known)
  if l.hand ~= known.hand then return l.hand < known.hand end
  if known.seq == 0 then return false end
  local here, start = kept(p, l, known.epoch)
  if not here then return true end
  return here < known.seq and #gaps(math.max(here, start) + 1, known.seq, covered(p, known.epoch)) > 0
end

-- Closes the ledger, in every version of the functions, until what was lost is there again or a person opens it.
local function close(p, l, seq)
  redis.call('HSET', p.meta, 'lost', whole(math.max(l.lost, seq)))
  l.lost, l.open = math.max(l.lost, seq), false
end

-- By era, the numbers that somebody has seen and that are not here: first and last.
local function needed(p)
  local needs = {}
  local fields = redis.call('HGETALL', p.recovery)
  for i = 1, #fields, 2 do
    local epoch = string.match(fields[i], '^need:(%x+)$')
    if epoch then needs[#needs + 1] = { epoch = epoch, range = ranges_of(fields[i + 1])[1] } end
  end
  table.sort(needs, function(a, b) return a.epoch < b.epoch end)
  return needs
end

-- Of those, what nobody has said again yet.
local function uncovered(p)
  local out = {}
  for _, need in ipairs(needed(p)) do
    for _, gap in ipairs(gaps(need.range[1], need.range[2], covered(p, need.epoch))) do
      out[#out + 1] = { need.epoch, gap[1], gap[2] }
    end
  end
  return out
end

local function flat(ranges, most)
  local out = {}
  for i = 1, math.min(#ranges, most) do
    local range = ranges[i]
    out[#out + 1] = range[1]
    out[#out + 1] = whole(range[2])
    out[#out + 1] = whole(range[3])
  end
  return out
end

-- A client that has been at work this shortly before counts as one that must report, in milliseconds.
local AT_WORK = 10000

-- Notes that a client is at work, and forgets those that no longer are.
local function at_work(p, now, client)
  redis.call('ZADD', p.clients, whole(now), client)
  local gone = redis.call('ZRANGEBYSCORE', p.clients, '-inf', whole(now - AT_WORK), 'LIMIT', '0', '8')
  for _, other in ipairs(gone) do redis.call('ZREM', p.clients, other) end
end
