-- How a ledger is made and opened, and how its clients recover what its server lost: docs/decisions/0010.

-- How many ranges of missing events are told.
local TOLD = 64

-- The ledger's own record, whether it is open, and which events are missing that somebody has seen.
local function about(keys)
  local p = places(keys)
  local l = ledger(p)
  return { l.open and '1' or '0', redis.call('HGETALL', p.meta), standing(l), flat(uncovered(p), TOLD) }
end

-- Makes a ledger where there is none: ARGV are names and values of its own record. An existing one stays as it is.
local function create(keys, argv)
  local p = places(keys)
  if redis.call('EXISTS', p.meta) == 0 then
    local run = identity()
    redis.call('HSET', p.meta, 'run', run, unpack(argv))
    renew_edition(p, run)
    opened[p.meta] = run
  end
  return about(keys)
end

-- Numbers of events that are left out when some were lost, so that those who have not reported yet have seen none that
-- is used from then on.
local AHEAD = 10000

-- Events up to `most` have been seen, and the last one here is below that: what follows is numbered higher, and begins
-- with an event that says where the gap begins. Answers its number.
local function leave_gap(p, l, run, epoch, most, event)
  local before = l.seq
  begin_era(p, l, run, epoch, most + AHEAD)
  l.seq = l.seq + 1
  local now = math.max(l.now, l.seen)
  redis.call('XADD', p.events, whole(l.seq) .. '-0', 'd', event, 't', whole(now), 'g', whole(before))
  redis.call('HSET', p.meta, 'seq', whole(l.seq), 'seen', whole(now))
  return l.seq
end

local function opens(p, run)
  for _, need in ipairs(needed(p)) do redis.call('HDEL', p.recovery, 'need:' .. need.epoch) end
  redis.call('HDEL', p.meta, 'lost', 'anew')
  redis.call('HSET', p.meta, 'run', run)
  redis.call('HINCRBY', p.meta, 'openings', '1')
  renew_edition(p, run)
  opened[p.meta] = run
  reports[p.meta] = nil
  read = {}
end

-- Makes a ledger again whose data is gone, so that it can be told again: closed, and everything up to a number missing.
-- ARGV: that number; the era that its archive stands for; the name of an era to begin; then names and values of its own
-- record, the id first. What is there stays, but for a ledger in which nothing ever happened: whoever came before the
-- restore made it.
local function anew(keys, argv)
  local p = places(keys)
  local l = ledger(p)
  local upto, archived, epoch, id = argv[1], argv[2], argv[3], argv[5]
  if l.id == id or l.seq > 0 then return about(keys) end
  if redis.call('EXISTS', p.events, p.counters) > 0 then
    return redis.error_reply('KBCORRUPT the record of the ledger is gone, and its counters or its log are not')
  end
  for _, key in ipairs({ p.meta, p.records, p.recovery }) do
    local fields = redis.call('HGETALL', key)
    for i = 1, #fields, 2 do redis.call('HDEL', key, fields[i]) end
  end
  opened[p.meta], reports[p.meta] = nil, nil
  -- Versions that nobody has copies of.
  local version = whole(server_ms())
  redis.call('HSET', p.meta, unpack(argv, 4))
  redis.call('HSET', p.meta, 'seq', '0', 'gv', version, 'sv', version, 'lost', upto, 'anew', '1',
             'era', epoch .. ':0:0:')
  renew_edition(p, identity())
  redis.call('HSET', p.recovery, 'need:' .. archived, '1-' .. upto)
  return about(keys)
end

-- Opens a ledger. ARGV: the ledger's id; why: 'same' if it is still what it was when it was opened last, and only this
-- version of the functions is new to it, 'person' when a person takes what is there; the name of an era to begin if one
-- has to; and the event that says so.
local function open(keys, argv)
  local p = places(keys)
  local l = ledger(p)
  local id, why, epoch, event = unpack(argv)
  local run = identity()
  if id ~= l.id or l.open then return about(keys) end
  if why == 'person' then
    -- Caps that were lost are not said again, and keys are known by them: nobody has a copy of this version.
    redis.call('HSET', p.meta, 'gv', beyond(l.gv))
    redis.call('HINCRBY', p.meta, 'hand', '1')
    if l.lost > l.seq then
      leave_gap(p, l, run, epoch, l.lost, event)
    else
      -- What was written before may not all be here: its numbers are not used again in the same era.
      begin_era(p, l, run, epoch, l.seq)
    end
  elseif l.lost > 0 or run == '' or redis.call('HGET', p.meta, 'run') ~= run then
    return about(keys)
  end
  opens(p, run)
  return about(keys)
end

-- Whether the last event is in the log, or archives have what was removed from it. Otherwise the ledger's own record has
-- come back without the rest, and nothing of it counts as being here.
local function has_last_event(p, l)
  if l.seq == 0 or redis.call('HGET', p.records, 'archives') then return true end
  return #redis.call('XRANGE', p.events, whole(l.seq) .. '-0', '+', 'COUNT', '1') > 0
end

-- From the first report on, it is waited so long for the others that were at work; and while events are missing, so
-- long after the last was said again. In milliseconds.
local PATIENCE = 3000
local PAUSE = 1000

-- What a client has seen, while the ledger is closed or the client was away. ARGV: the ledger's id;
-- the name of an era to begin if one has to; the event that says that numbers were left out; the client; how often the
-- ledger had been opened by hand; the largest number that is known to have been used; then how many eras, and of each:
-- which, the number after which its own events begin, and the last that was seen. A client without eras has no memory:
-- it only asks. '1' at the end: it has come to say again what it knows from elsewhere. Then it opens nothing, since what
-- came after that is not known there; and what it tells of is missing only while the ledger is closed.
--
-- The ledger opens when nothing that was seen is missing, and all who were at work have reported or were waited for.
-- Answers as `about` does, then the events that this client has seen and that are missing, the number of the event that
-- was written, how many have not reported, and for how many milliseconds they are waited for.
local function report(keys, argv)
  local p = places(keys)
  local l = ledger(p)
  local r = reader(argv)
  local id, epoch, event, client, hand = r.text(), r.text(), r.text(), r.text(), r.number()
  local run = identity()
  local most, claims, missing = r.number(), r.number(), {}
  if id ~= l.id then return about(keys) end
  local lacks = 0
  local needs = {}
  local whole_log = has_last_event(p, l)
  for _ = 1, claims do
    local of, start, upto = r.text(), r.number(), r.number()
    local here = whole_log and kept(p, l, of) or 0
    local first = math.max(here, start) + 1
    if first <= upto then
      needs[#needs + 1] = { of, first, upto }
      lacks = math.max(lacks, upto)
      for _, gap in ipairs(gaps(first, upto, covered(p, of))) do
        missing[#missing + 1] = { of, gap[1], gap[2] }
      end
    end
  end
  local noted = 0
  local restores = r.text() == '1'
  if claims > 0 or restores then
    -- Who missed an opening by hand has nothing to add to what is missing: a person has accepted it.
    if hand >= l.hand and #missing > 0 and not (restores and l.open) then
      for _, need in ipairs(needs) do
        local field = 'need:' .. need[1]
        local known = ranges_of(redis.call('HGET', p.recovery, field))[1] or { need[2], need[3] }
        local first, last = math.min(known[1], need[2]), math.max(known[2], need[3])
        redis.call('HSET', p.recovery, field, whole(first) .. '-' .. whole(last))
      end
      close(p, l, lacks)
      most = math.max(most, lacks)
    end
    if claims > 0 and hand > l.hand then redis.call('HSET', p.meta, 'hand', whole(hand)); renew_edition(p, run) end
    if most > l.seq then
      noted = leave_gap(p, l, run, epoch, most, event)
    elseif l.of ~= short(run) then
      begin_era(p, l, run, epoch, l.seq)
    end
    local phase = phase_of(p, run)
    if not l.open and not phase then
      phase = { since = server_ms(), moved = 0, waits = {}, witness = nil, reported = {}, run = run,
                openings = redis.call('HGET', p.meta, 'openings') }
      local gone = redis.call('ZRANGEBYSCORE', p.clients, '-inf', whole(l.seen - AT_WORK), 'LIMIT', '0', '100000')
      for _, other in ipairs(gone) do redis.call('ZREM', p.clients, other) end
      for _, other in ipairs(redis.call('ZRANGE', p.clients, '0', '-1')) do phase.waits[other] = true end
      reports[p.meta] = phase
    end
    if phase then
      if claims > 0 and not restores then phase.witness = phase.witness or server_ms() end
      if not phase.reported[client] then phase.moved = server_ms() end
      phase.reported[client], phase.waits[client] = true, nil
    end
  end
  local phase = phase_of(p, run)
  local waits, left = 0, 0
  if phase and not l.open then
    for _ in pairs(phase.waits) do waits = waits + 1 end
    local lost = #uncovered(p) > 0
    local now = server_ms()
    -- A clock that was set back makes nobody wait longer.
    phase.since, phase.moved = math.min(phase.since, now), math.min(phase.moved, now)
    phase.witness = phase.witness and math.min(phase.witness, now)
    if waits > 0 then left = math.max(0, phase.since + PATIENCE - now) end
    if lost then left = math.max(left, phase.moved + PAUSE - now) end
    -- Who was at work is not known where the data was gone: everybody is waited for.
    if phase.witness and redis.call('HGET', p.meta, 'anew') then
      left = math.max(left, phase.witness + PATIENCE - now)
    end
    if phase.witness and left == 0 and not lost then opens(p, run) end
  end
  local answer = about(keys)
  answer[5], answer[6], answer[7], answer[8] = flat(missing, 100000), whole(noted), whole(waits), whole(left)
  return answer
end

-- Keeps the log: notes up to where archives have it, and removes what a client has found to be removable. ARGV: the
-- ledger's id; what the client remembers; the archives and the checkpoints that it decided on; the archives as they are
-- to be, or nothing; the number of the first event that stays, or nothing; a new checkpoint, whose key is named after the
-- places, and the list with it, or nothing.
local function keep(keys, argv)
  local p = places(keys)
  local l = ledger(p)
  local r = reader(argv)
  local id, known = r.text(), memory(r)
  if not l.open or id ~= l.id then return { 'closed', standing(l) } end
  if behind(p, l, known) then
    close(p, l, known.seq)
    return { 'closed', standing(l) }
  end
  local archives, checkpoints, noted, from = r.text(), r.text(), r.text(), r.text()
  local made, list = r.text(), r.text()
  local is = redis.call('HMGET', p.records, 'archives', 'checkpoints')
  if (is[1] or '') ~= archives or (is[2] or '') ~= checkpoints then
    return { 'moved', standing(l), is[1] or '', is[2] or '' }
  end
  if noted ~= '' then redis.call('HSET', p.records, 'archives', noted) end
  if made ~= '' then
    redis.call('SET', keys[PLACES + 1], made)
    redis.call('HSET', p.records, 'checkpoints', list)
  end
  if from ~= '' then redis.call('XTRIM', p.events, 'MINID', from .. '-0') end
  return { 'done', standing(l) }
end

-- Commands of these functions, and of their clients beside them, that the caller may not run on the ledger's keys. Functions
-- run with their caller's rights; what is missing would be found out in the middle of a step.
local function rights(keys)
  local missing = {}
  if not redis.acl_check_cmd then return missing end
  local p, text = places(keys), keys[PLACES + 1]
  local function needs(...)
    local asked, may = pcall(redis.acl_check_cmd, ...)
    if asked and not may then missing[#missing + 1] = string.lower((...)) end
  end
  needs('EXISTS', p.meta)
  needs('HDEL', p.meta, 'f')
  needs('HGET', p.meta, 'f')
  needs('HGETALL', p.meta)
  needs('HINCRBY', p.meta, 'f', '1')
  needs('HMGET', p.meta, 'f')
  needs('HSCAN', p.records, '0')
  needs('HSET', p.meta, 'f', 'v')
  needs('MGET', text)
  needs('SET', text, 'v')
  needs('TIME')
  needs('XADD', p.events, '1-0', 'f', 'v')
  needs('XRANGE', p.events, '-', '+')
  needs('ZADD', p.deadlines, '1', 'm')
  needs('ZRANGE', p.deadlines, '0', '-1')
  needs('ZRANGEBYSCORE', p.deadlines, '-inf', '+inf')
  needs('ZREM', p.deadlines, 'm')
  return missing
end

local function register(name, callback, flags)
  redis.register_function { function_name = 'keybrake_' .. name .. '_@digest@', callback = callback, flags = flags }
end
register('commit', commit, {})
register('reassert', reassert, {})
register('report', report, {})
register('create', create, {})
register('anew', anew, {})
-- A server that has no memory left is opened all the same, so that it can be looked at.
register('open', open, { 'allow-oom' })
-- It is what gives memory back, so it runs on a server that has none left.
register('keep', keep, { 'allow-oom' })
register('look', look, { 'no-writes' })
register('snapshot', snapshot, { 'no-writes' })
register('about', about, { 'no-writes' })
register('rights', rights, { 'no-writes' })
