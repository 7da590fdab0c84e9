-- One atomic step of a Keybrake ledger in Redis. docs/decisions/0008 says why it looks like this.
--
-- The rules run in the client, on copies of the ledger's records. A step arrives here as what they read, what they
-- found, and what they want to write. Everything that was read is compared and every finding is looked at again;
-- then either all of it is written, or nothing is and the answer says what is different now. So no rule stands here.
--
-- Amounts are whole numbers below 2^53 in size, which Lua's numbers hold exactly. They are printed with %.0f only:
-- Lua's own way of printing keeps 14 digits. All checks stand before the first write, because a script that fails
-- keeps what it wrote.

local MAX = 9007199254740991

-- Ledgers of this server that were opened since the server started, and those whose clients are reporting. Lost with the
-- process, and absent on a replica that is promoted: that is what makes a server that "just started" visible.
local opened = {}
local reports = {}

local function whole(n)
  return string.format('%.0f', n)
end

-- The keys that every function gets first, in this order.
local function places(keys)
  return { meta = keys[1], records = keys[2], counters = keys[3], stops = keys[4], deadlines = keys[5],
           open = keys[6], events = keys[7], holds = keys[8], issued = keys[9], provisional = keys[10],
           clients = keys[11], recovery = keys[12] }
end
local PLACES = 12

-- What this server's data goes on from as long as it stays the same: the process, and the history of its data, which is
-- named anew with every promotion. Only then is everything here that was written before. Nothing where a server does not
-- say which process it is.
local function identity()
  local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
  local history = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
  return run and run .. (history or '') or ''
end

local function short(run)
  return string.sub(run, 1, 12) .. string.sub(run, 41, 52)
end

-- Who has reported since this server's data is what it is, and since the ledger was opened last: `report` begins it.
local function phase_of(p, run)
  local phase = reports[p.meta]
  local is = phase and phase.run == run and phase.openings == redis.call('HGET', p.meta, 'openings')
  return is and phase or nil
end

local function server_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- An era of the log: which, how many events there were when it began, and the number after which its own begin. Those
-- are not the same when events were lost: no number that anybody has seen is used again.
local function era_of(text, run, from)
  local epoch, began, start, of = string.match(text or '', '^(%x+):(%d+):(%d+):(%x*)$')
  if epoch then return epoch, tonumber(began), tonumber(start), of end
  from = tonumber(from) or 0
  return string.sub(run or '', 1, 12), from, from, short(run or '')
end

-- Ledger time: never back. A test's ledger stands still at `fixed`.
local function ledger(p)
  local m = redis.call('HMGET', p.meta, 'seq', 'seen', 'gv', 'sv', 'fixed', 'id', 'lost', 'hand', 'run', 'from',
                       'open', 'era')
  local now
  if m[5] then
    now = tonumber(m[5])
  else
    now = server_ms()
  end
  local epoch, from, start, of = era_of(m[12], m[9], m[10])
  local seen = tonumber(m[2]) or 0
  if seen > now then now = seen end
  return { seq = tonumber(m[1]) or 0, now = now, seen = seen, gv = m[3] or '0', sv = m[4] or '0',
           fixed = m[5] and true or false, id = m[6] or '', hand = tonumber(m[8]) or 0,
           epoch = epoch, from = from, start = start, of = of, holds = tonumber(m[11]) or 0,
           lost = tonumber(m[7]) or 0, open = opened[p.meta] == m[9] and m[6] and not m[7] }
end

local function standing(l)
  return { whole(l.now), l.fixed and '1' or '0', l.gv, l.sv, whole(l.seq), l.open and '1' or '0',
           whole(l.hand), l.epoch, whole(l.from), whole(l.start) }
end

local function split(value)
  if not value then return 0, 0 end
  local colon = string.find(value, ':', 2, true)
  if not colon then return nil end
  return tonumber(string.sub(value, 1, colon - 1)), tonumber(string.sub(value, colon + 1))
end

-- Reads texts in order from the arguments.
local function reader(argv)
  local at = 0
  local r = {}
  function r.text() at = at + 1; return argv[at] end
  function r.number() at = at + 1; return tonumber(argv[at]) end
  return r
end

-- Present values of records by field, `false` where there is none. In parts, because unpack has a limit.
local function fields_of(key, fields)
  local found = {}
  for from = 1, #fields, 1000 do
    local upto = math.min(from + 999, #fields)
    local part = redis.call('HMGET', key, unpack(fields, from, upto))
    for i = 1, upto - from + 1 do found[from + i - 1] = part[i] end
  end
  return found
end

local function texts_of(keys)
  local found = {}
  for from = 1, #keys, 1000 do
    local upto = math.min(from + 999, #keys)
    local part = redis.call('MGET', unpack(keys, from, upto))
    for i = 1, upto - from + 1 do found[from + i - 1] = part[i] end
  end
  return found
end

-- Writes names and values, one after the other, into a hash.
local function set_fields(key, fields)
  for from = 1, #fields, 1000 do
    redis.call('HSET', key, unpack(fields, from, math.min(from + 999, #fields)))
  end
end

-- What differs from what was read: index and present value, '' where there is none.
local function differences(expected, present)
  local out = {}
  for i = 1, #expected do
    local is = present[i] or ''
    if is ~= expected[i] then
      out[#out + 1] = whole(i)
      out[#out + 1] = is
    end
  end
  return out
end

-- Deadlines that have passed and that the step does not deal with.
local function overdue(p, now, dealt, count)
  local due = redis.call('ZRANGEBYSCORE', p.deadlines, '-inf', whole(now), 'LIMIT', '0', tostring(count + 1))
  for _, call in ipairs(due) do
    if not dealt[call] then
      return redis.call('ZRANGEBYSCORE', p.deadlines, '-inf', whole(now), 'LIMIT', '0', '256')
    end
  end
  return {}
end

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
  local era = epoch .. ':' .. whole(l.from) .. ':' .. whole(start) .. ':' .. l.of
  redis.call('HSET', p.meta, 'eras', table.concat(texts, ','), 'era', era, 'seq', whole(start))
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

-- KEYS: places, then the records that are keys of their own.
-- ARGV: see `commit` in wire.rs, which writes it in this order. It is read by index, in one pass, because this is the
-- function that every decision waits for.
local function step(keys, argv, again)
  local p = places(keys)
  local l = ledger(p)
  local now = l.now
  local guessed, slack, from, upto = tonumber(argv[1]), tonumber(argv[2]), tonumber(argv[3]), tonumber(argv[4])
  local gv, sv, looks_at_deadlines, id = argv[5], argv[6], argv[7], argv[8]
  local known = { hand = tonumber(argv[9]), epoch = argv[10], seq = tonumber(argv[11]) }
  local client = argv[12]
  if id ~= l.id or not (l.open or again and phase_of(p, identity())) then return { 'closed', standing(l) } end
  -- The client has seen events that are not here: this is older data. Nobody writes on it until that is resolved.
  if not again and behind(p, l, known) then
    close(p, l, known.seq)
    return { 'closed', standing(l) }
  end
  local at = 13

  local field_count = tonumber(argv[at])
  local fields, expected_fields = {}, {}
  for i = 1, field_count do fields[i] = argv[at + 2 * i - 1]; expected_fields[i] = argv[at + 2 * i] end
  at = at + 2 * field_count + 1
  local text_count = tonumber(argv[at])
  local texts, expected_texts = {}, {}
  for i = 1, text_count do texts[i] = keys[PLACES + i]; expected_texts[i] = argv[at + i] end
  at = at + text_count + 1

  local name_count = tonumber(argv[at])
  local names, used_before, held_before, used_after, held_after, changed = {}, {}, {}, {}, {}, {}
  local fits = true
  for i = 1, name_count do names[i] = argv[at + 3 * i - 2] end
  local counters = name_count > 0 and fields_of(p.counters, names) or {}
  for i = 1, name_count do
    local used, held = split(counters[i])
    if not used or not held then
      return redis.error_reply('KBCORRUPT the counter ' .. names[i] .. ' cannot be read')
    end
    local more_used, more_held = tonumber(argv[at + 3 * i - 1]), tonumber(argv[at + 3 * i])
    used_before[i], held_before[i] = used, held
    used_after[i], held_after[i] = used + more_used, held + more_held
    changed[i] = more_used ~= 0 or more_held ~= 0
    if math.abs(used_after[i]) > MAX or math.abs(held_after[i]) > MAX then
      return redis.error_reply('KBOVERFLOW the counter ' .. names[i] .. ' would overflow')
    end
  end
  at = at + 3 * name_count + 1
  local guard_count = tonumber(argv[at])
  for g = 1, guard_count do
    local i, finding, limit = tonumber(argv[at + 3 * g - 2]), argv[at + 3 * g - 1], argv[at + 3 * g]
    if finding == 'total<=' then
      if used_before[i] + held_before[i] > tonumber(limit) then fits = false end
    elseif finding == 'total>' then
      if used_before[i] + held_before[i] <= tonumber(limit) then fits = false end
    elseif finding == 'used>' then
      if used_before[i] <= tonumber(limit) then fits = false end
    elseif (counters[i] or '0:0') ~= limit then
      fits = false
    end
  end
  at = at + 3 * guard_count + 1

  local holder_count = tonumber(argv[at])
  local holders, more = {}, {}
  for i = 1, holder_count do
    local base = at + 4 * i
    holders[i], more[i] = argv[base - 3], argv[base - 2]
    local finding = argv[base - 1]
    if finding ~= '' then
      local limit = tonumber(argv[base])
      local open = tonumber(redis.call('HGET', p.holds, holders[i]) or '0')
      if (finding == '<' and open >= limit) or (finding == '>=' and open < limit) then fits = false end
    end
  end
  at = at + 4 * holder_count + 1

  -- Writes, still only read from the arguments: where each list begins, and how many it has.
  local new_fields, new_field_count = at, tonumber(argv[at])
  at = at + 2 * new_field_count + 1
  local new_texts, new_text_count = at, tonumber(argv[at])
  at = at + 3 * new_text_count + 1
  local new_stops, new_stop_count = at, tonumber(argv[at])
  at = at + 2 * new_stop_count + 1
  local listings, listing_count = at, tonumber(argv[at])
  local dealt, dealt_count = {}, 0
  for i = 1, listing_count do
    if argv[listings + 3 * i - 2] == 'deadlines' then
      dealt[argv[listings + 3 * i - 1]] = true
      dealt_count = dealt_count + 1
    end
  end
  at = at + 3 * listing_count + 1
  local more_groups, more_open, log_count = tonumber(argv[at]), tonumber(argv[at + 1]), tonumber(argv[at + 2])
  local log, said = at + 2, at + 2 + log_count + 1

  -- Does everything still stand?
  local late = now - guessed
  local timely = from <= now and now < upto
  if l.fixed then timely = timely and late == 0 else timely = timely and late <= slack and late >= -slack end
  local other_fields = field_count > 0 and differences(expected_fields, fields_of(p.records, fields)) or {}
  local other_texts = text_count > 0 and differences(expected_texts, texts_of(texts)) or {}
  local due = looks_at_deadlines == '1' and overdue(p, now, dealt, dealt_count) or {}
  if not (fits and timely and gv == l.gv and sv == l.sv and #other_fields == 0 and #other_texts == 0 and #due == 0) then
    local present = {}
    for i = 1, name_count do present[i] = counters[i] or '0:0' end
    local stops = sv ~= l.sv and redis.call('HGETALL', p.stops) or {}
    local open = holder_count > 0 and fields_of(p.holds, holders) or {}
    for i = 1, holder_count do open[i] = open[i] or '0' end
    return { 'moved', standing(l), other_fields, other_texts, present, due, stops, open }
  end

  -- From here on only writes.
  local values, pairs_of_counters = {}, {}
  for i = 1, name_count do
    values[i] = string.format('%.0f:%.0f', used_after[i], held_after[i])
    if changed[i] then
      pairs_of_counters[#pairs_of_counters + 1] = names[i]
      pairs_of_counters[#pairs_of_counters + 1] = values[i]
    end
  end
  set_fields(p.counters, pairs_of_counters)
  for i = 1, holder_count do
    if more[i] ~= '0' then redis.call('HINCRBY', p.holds, holders[i], more[i]) end
  end
  for i = 1, new_field_count do
    redis.call('HSET', p.records, argv[new_fields + 2 * i - 1], argv[new_fields + 2 * i])
  end
  for i = 1, new_text_count do
    local base = new_texts + 3 * i
    local key, text, kept = texts[tonumber(argv[base - 2])], argv[base - 1], argv[base]
    if kept == '' then redis.call('SET', key, text) else redis.call('SET', key, text, 'PX', kept) end
  end
  for i = 1, new_stop_count do
    local scope, text = argv[new_stops + 2 * i - 1], argv[new_stops + 2 * i]
    if text == '' then redis.call('HDEL', p.stops, scope) else redis.call('HSET', p.stops, scope, text) end
  end
  for i = 1, listing_count do
    local base = listings + 3 * i
    local list, member, score = p[argv[base - 2]], argv[base - 1], argv[base]
    if score == '' then redis.call('ZREM', list, member) else redis.call('ZADD', list, score, member) end
  end
  local at_ms = whole(now)
  if log_count > 0 then
    local usage = table.concat(values, ',')
    for i = 1, log_count do
      redis.call('XADD', p.events, whole(l.seq + i) .. '-0', 'd', argv[log + i], 't', at_ms, 'u', usage)
    end
  end
  local meta = {}
  if log_count > 0 then meta[1] = 'seq'; meta[2] = whole(l.seq + log_count) end
  if now > l.seen then meta[#meta + 1] = 'seen'; meta[#meta + 1] = at_ms end
  if more_groups ~= 0 then meta[#meta + 1] = 'gv'; meta[#meta + 1] = whole(tonumber(l.gv) + more_groups) end
  if new_stop_count > 0 then meta[#meta + 1] = 'sv'; meta[#meta + 1] = whole(tonumber(l.sv) + 1) end
  if more_open ~= 0 then meta[#meta + 1] = 'open'; meta[#meta + 1] = whole(l.holds + more_open) end
  if #meta > 0 then redis.call('HSET', p.meta, unpack(meta)) end
  if client ~= '' then at_work(p, now, client) end
  if again then
    local phase, ranges = phase_of(p, identity()), {}
    if phase then phase.moved = server_ms() end
    for i = 1, tonumber(argv[said]) do
      local base = said + 3 * i
      ranges[#ranges + 1] = { argv[base - 2], tonumber(argv[base - 1]), tonumber(argv[base]) }
    end
    cover(p, ranges)
  end
  l.seq = l.seq + log_count
  return { 'done', standing(l), values }
end

local function commit(keys, argv)
  return step(keys, argv, false)
end

-- A step that says again what may have been lost. It runs while the ledger is closed, once somebody has reported; and at
-- the end of its arguments are the events that it stands for: how many ranges, then era, first and last of each.
local function reassert(keys, argv)
  return step(keys, argv, true)
end

-- ARGV: number of fields, the fields, number of counters, the counters, number of holders, the holders, '1' for the
-- stops too.
local function look(keys, argv)
  local p = places(keys)
  local r = reader(argv)
  local function list()
    local names = {}
    for i = 1, r.number() do names[i] = r.text() end
    return names
  end
  local function found(key, names)
    local values = #names > 0 and fields_of(key, names) or {}
    for i = 1, #names do values[i] = values[i] or '' end
    return values
  end
  local l = ledger(p)
  local fields = found(p.records, list())
  local counters = found(p.counters, list())
  local holders = found(p.holds, list())
  local texts = {}
  for i = PLACES + 1, #keys do texts[i - PLACES] = keys[i] end
  local present = #texts > 0 and texts_of(texts) or {}
  for i = 1, #texts do present[i] = present[i] or '' end
  local stops = r.text() == '1' and redis.call('HGETALL', p.stops) or {}
  return { 'seen', standing(l), fields, present, counters, holders, stops }
end

-- All counters at one event number, and the buckets of the rolling windows.
local function snapshot(keys)
  local p = places(keys)
  local counters = redis.call('HGETALL', p.counters)
  local windows = {}
  for i = 1, #counters, 2 do
    if string.sub(counters[i], 1, 1) == '~' then windows[#windows + 1] = 'g:' .. string.sub(counters[i], 2) end
  end
  local buckets = fields_of(p.records, windows)
  local records = {}
  for i = 1, #windows do
    records[2 * i - 1] = windows[i]
    records[2 * i] = buckets[i] or ''
  end
  return { 'seen', standing(ledger(p)), counters, records }
end
