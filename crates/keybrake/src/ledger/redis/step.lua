-- One atomic step. The rules run in the client, on copies of the ledger's records. A step arrives here as what they read,
-- what they found, and what they want to write. Everything that was read is compared and every finding is looked at
-- again; then either all of it is written, or nothing is and the answer says what is different now. So no rule stands here.

-- Of what is present, what differs from what was read: number and present text, '' where there is none.
local function different(present, count, read)
  local out = {}
  for i = 1, count do
    local is = present[i] or ''
    if is ~= read(i) then
      out[#out + 1] = whole(i)
      out[#out + 1] = is
    end
  end
  return out
end

-- The same of records that stand in pairs of name and text after `at`.
local function other_fields_of(records, argv, at, count)
  local names = {}
  for i = 1, count do names[i] = argv[at + 2 * i - 1] end
  local present = fields_of(records, names, 1, count)
  return different(present, count, function(i) return argv[at + 2 * i] end)
end

-- Deadlines that have passed and that the step does not deal with. Its listings stand in the arguments after `at`.
local function overdue(deadlines, now, argv, at, listing_count)
  local dealt, count = {}, 0
  for i = 1, listing_count do
    if tonumber(argv[at + 3 * i - 2]) == DEADLINES then
      dealt[argv[at + 3 * i - 1]] = true
      count = count + 1
    end
  end
  local due = redis.call('ZRANGEBYSCORE', deadlines, '-inf', whole(now), 'LIMIT', '0', whole(count + 1))
  for _, call in ipairs(due) do
    if not dealt[call] then
      return redis.call('ZRANGEBYSCORE', deadlines, '-inf', whole(now), 'LIMIT', '0', '256')
    end
  end
  return NONE
end

-- The earliest of all deadlines.
local function earliest(deadlines)
  return tonumber(redis.call('ZRANGE', deadlines, '0', '0', 'WITHSCORES')[2]) or MAX
end

-- Whether every finding about a counter is still true: `findings` are texts like `1<=500`, with the counter's number
-- first.
local function findings_hold(findings, used, held, differ)
  for number, finding, limit in string.gmatch(findings, '(%d+)([^%d%s-]+)(-?%d*)') do
    local i = tonumber(number)
    limit = tonumber(limit)
    if finding == '<=' then
      if used[i] + held[i] > limit then return false end
    elseif finding == '>' then
      if used[i] + held[i] <= limit then return false end
    elseif finding == 'u>' then
      if used[i] <= limit then return false end
    elseif finding == 'u<' then
      if used[i] >= limit then return false end
    elseif finding == 'u>=' then
      if used[i] < limit then return false end
    elseif differ[i] then
      return false
    end
  end
  return true
end

-- What counters become that are not what the step was drafted on: changed by the same differences, if every finding is
-- still true. The step's arguments have, after `at`, their names; then what they were; then what they were to be, or ''
-- if that is the same; then the findings. Answers what they become, by their numbers, or nothing if a finding no longer
-- holds; or why it cannot be told.
local function counted(argv, at, count, counters)
  local used, held, differ, after = {}, {}, {}, {}
  for i = 1, count do
    local name, was, becomes = argv[at + i], argv[at + count + i], argv[at + 2 * count + i]
    local u, h = split(counters[i])
    if not u or not h then return nil, 'KBCORRUPT the counter ' .. name .. ' cannot be read' end
    used[i], held[i], differ[i] = u, h, (counters[i] or '0:0') ~= was
    if becomes ~= '' then
      local was_used, was_held = split(was)
      local more_used, more_held = split(becomes)
      u, h = u + (more_used - was_used), h + (more_held - was_held)
      if u > MAX or u < -MAX or h > MAX or h < -MAX then
        return nil, 'KBOVERFLOW the counter ' .. name .. ' would overflow'
      end
    end
    after[i] = string.format('%d:%d', u, h)
  end
  return findings_hold(argv[at + 3 * count + 1], used, held, differ) and after
end

-- What a step is answered for which the ledger is closed; nothing if it is open. `rare` is, with blanks between, the
-- ledger's id, what the client remembers, and the versions that it knows.
local function closed(keys, rare, again)
  local p = places(keys)
  local l = ledger(p)
  local id, hand, epoch, seq = string.match(rare, '^(%S*) (%d+) (%x*) (%d+)')
  local known = { hand = tonumber(hand), epoch = epoch, seq = tonumber(seq) }
  if id ~= l.id or not (l.open or again and phase_of(p, identity())) then return { 'closed', standing(l) } end
  -- The client has seen events that are not here: this is older data. Nobody writes on it until that is resolved.
  if not again and behind(p, l, known) then
    close(p, l, known.seq)
    return { 'closed', standing(l) }
  end
end

-- The versions of the groups and the stops that a step rests on, and '1' if it says all that it rests on.
local function versions_of(rare)
  return string.match(rare, '(%d+) (%d+) (%d)$')
end

-- What is different now, for a step that is not written. Of the records that are keys of their own: number and present
-- text, '' where there is none. After `at` stands what those were of which there was one; they are the last.
local function other_texts_of(keys, place_count, argv, at, absent, present)
  local texts = texts_of(keys, place_count + 1, place_count + absent + present)
  return different(texts, absent + present, function(i)
    return i > absent and argv[at + i - absent] or ''
  end)
end

local function present_counters(counters, count)
  local present = {}
  for i = 1, count do present[i] = counters[i] or '0:0' end
  return present
end

-- The stops, if the step rests on older ones and the place where they are is among its keys.
local function other_stops(keys, place_count, rare)
  local _, sv = versions_of(rare)
  if place_count < PLACES or sv == redis.call('HGET', keys[META], 'sv') then return NONE end
  return redis.call('HGETALL', keys[STOPS])
end

-- What a step writes seldom: records that many steps read, stops, and with them the edition. From `at` on: how many
-- fields, names and texts; how many stops, scopes and texts; how much higher the groups' version is; the new edition.
local function write_seldom(keys, argv, at)
  local count = tonumber(argv[at])
  for i = 1, count do redis.call('HSET', keys[RECORDS], argv[at + 2 * i - 1], argv[at + 2 * i]) end
  at = at + 2 * count + 1
  local stops = tonumber(argv[at])
  for i = 1, stops do
    local scope, text = argv[at + 2 * i - 1], argv[at + 2 * i]
    if text == '' then redis.call('HDEL', keys[STOPS], scope) else redis.call('HSET', keys[STOPS], scope, text) end
  end
  at = at + 2 * stops + 1
  if stops > 0 then redis.call('HINCRBY', keys[META], 'sv', '1') end
  if argv[at] ~= '0' then redis.call('HINCRBY', keys[META], 'gv', argv[at]) end
  if argv[at + 1] ~= '' then redis.call('HSET', keys[META], 'ed', argv[at + 1]) end
  return at + 2
end

-- What was said again is here: from `at` on, how many ranges of events, and of each its era, first and last.
local function say_again(p, argv, at)
  local phase, ranges = phase_of(p, identity()), {}
  if phase then phase.moved = server_ms() end
  for i = 1, tonumber(argv[at]) do
    local base = at + 3 * i
    ranges[i] = { argv[base - 2], tonumber(argv[base - 1]), tonumber(argv[base]) }
  end
  cover(p, ranges)
end

-- KEYS: places, then the records that are keys of their own: first those of which there was none.
-- ARGV: see `commit` in commit.rs, which writes it in this order. It is read by index, in one pass, because this is the
-- function that every decision waits for. What most steps do not need stands at the end and may be missing.
local function step(keys, argv, again)
  local m = redis.call('HMGET', keys[META], 'ed', 'run', 'seq', 'seen', 'due', 'open', 'lost', 'fixed')
  local seq, seen, due = tonumber(m[3]) or 0, tonumber(m[4]) or 0, tonumber(m[5]) or 0
  local now = time(m[8] or nil, seen)
  -- The edition changes with the ledger's id, its eras, its stops, and the records that are left out of the step.
  local same, l = m[1] == argv[1], nil
  if again or m[7] or m[8] or not same or opened[keys[META]] ~= m[2] or seq < tonumber(argv[2]) then
    local answer = closed(keys, argv[8], again)
    if answer then return answer end
    l = ledger(places(keys))
  end

  -- The counters: mostly they are what the step was drafted on, and become what it says.
  local place_count, at = tonumber(argv[9]), 10
  local count = tonumber(argv[at])
  local counters, after, as_drafted, fits = NONE, NONE, true, true
  local names = at
  at = at + count
  if count > 0 then
    counters = fields_of(keys[COUNTERS], argv, names + 1, at)
    for i = 1, count do
      if (counters[i] or '0:0') ~= argv[at + i] then as_drafted = false end
    end
    if not as_drafted then
      local problem
      after, problem = counted(argv, names, count, counters)
      if problem then return redis.error_reply(problem) end
      fits = after and true or false
    end
  end
  local seen_counters = at
  at = at + 2 * count + 2

  -- The records that are keys of their own.
  local absent, present = tonumber(argv[at]), tonumber(argv[at + 1])
  local first_text = at + 1
  local texts_stand = true
  if absent > 0 then
    texts_stand = existing(keys, place_count + 1, place_count + absent) == 0
  end
  if present > 0 then
    local texts = texts_of(keys, place_count + absent + 1, place_count + absent + present)
    for i = 1, present do
      if texts[i] ~= argv[first_text + i] then texts_stand = false end
    end
  end
  at = first_text + present + 1

  -- Writes, still only read from the arguments: where each list begins, and how many it has.
  local new_texts, new_text_count = at, tonumber(argv[at])
  at = at + 3 * new_text_count + 1
  local listings, listing_count = at, tonumber(argv[at])
  at = at + 3 * listing_count + 1
  local log, log_count = at, tonumber(argv[at])
  at = at + 2 * log_count + 1

  -- Does everything still stand?
  local timely = now >= tonumber(argv[3]) and now < tonumber(argv[4])
  local fields, field_count, other_fields = at, tonumber(argv[at] or 0), NONE
  if field_count > 0 then other_fields = other_fields_of(keys[RECORDS], argv, at, field_count) end
  at = at + 2 * field_count + 1
  if not same then
    -- A step that says all that it rests on needs no edition.
    local gv, sv, all = versions_of(argv[8])
    same = all == '1' and gv == l.gv and sv == l.sv
  end
  local looked = argv[5] == '1' and now >= due
  local lapsed = looked and overdue(keys[DEADLINES], now, argv, listings, listing_count) or NONE
  if not (fits and texts_stand and timely and same and #other_fields == 0 and #lapsed == 0) then
    return { 'moved', standing(l or ledger(places(keys))), other_fields,
             other_texts_of(keys, place_count, argv, first_text, absent, present), present_counters(counters, count),
             lapsed, other_stops(keys, place_count, argv[8]) }
  end

  -- From here on only writes.
  if count > 0 then
    local new, n = {}, 0
    for i = 1, count do
      local text = argv[seen_counters + count + i]
      if text ~= '' then
        new[n + 1], new[n + 2], n = argv[names + i], as_drafted and text or after[i], n + 2
      end
    end
    for from = 1, n, 1000 do redis.call('HSET', keys[COUNTERS], unpack(new, from, math.min(from + 999, n))) end
  end
  for i = 1, new_text_count do
    local base = new_texts + 3 * i
    local key, text, kept = keys[place_count + argv[base - 2]], argv[base - 1], argv[base]
    if kept == '' then redis.call('SET', key, text) else redis.call('SET', key, text, 'PX', kept) end
  end
  local earlier = due
  for i = 1, listing_count do
    local base = listings + 3 * i
    local list, member, score = tonumber(argv[base - 2]), argv[base - 1], argv[base]
    if score == '' then
      redis.call('ZREM', keys[list], member)
    else
      redis.call('ZADD', keys[list], score, member)
      if list == DEADLINES then earlier = math.min(earlier, tonumber(score)) end
    end
  end
  local at_ms = whole(now)
  for i = 1, log_count do
    local text, shown, stamp = argv[log + 2 * i - 1], argv[log + 2 * i], at_ms
    if shown ~= '' then
      shown = tonumber(shown)
      local text_of = argv[seen_counters + count + shown]
      if text_of == '' then text_of = argv[seen_counters + shown] end
      stamp = at_ms .. ',' .. (as_drafted and text_of or after[shown])
    end
    redis.call('XADD', keys[EVENTS], string.format('%d-0', seq + i), 'd', text, 't', stamp)
  end
  if argv[at] then at = write_seldom(keys, argv, at) end
  if looked then earlier = earliest(keys[DEADLINES]) end
  if earlier ~= due then
    redis.call('HSET', keys[META], 'seq', whole(seq + log_count), 'seen', at_ms, 'open',
               whole((tonumber(m[6]) or 0) + argv[7]), 'due', whole(earlier))
  else
    redis.call('HSET', keys[META], 'seq', whole(seq + log_count), 'seen', at_ms, 'open',
               whole((tonumber(m[6]) or 0) + argv[7]))
  end
  if argv[6] ~= '' then at_work(places(keys), now, argv[6]) end
  if again then say_again(places(keys), argv, at) end
  if as_drafted and not l then return { 'done', now, seq + log_count } end
  if as_drafted then
    after = {}
    for i = 1, count do
      local text = argv[seen_counters + count + i]
      after[i] = text ~= '' and text or argv[seen_counters + i]
    end
  end
  return { 'done', l and standing(ledger(places(keys))) or now, seq + log_count, after }
end

local function commit(keys, argv)
  return step(keys, argv, false)
end

-- A step that says again what may have been lost. It runs while the ledger is closed, once somebody has reported; and it
-- ends with the events that it stands for.
local function reassert(keys, argv)
  return step(keys, argv, true)
end
