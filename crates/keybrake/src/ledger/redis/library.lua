-- The functions of a Keybrake ledger in Redis. docs/decisions/0008 says why they look like this. Their text is in files
-- by subject, which are one text on the server, in this order: this one, what all of them use; eras.lua, what is
-- remembered of the log; step.lua, a step of the rules; look.lua, reading; recovery.lua, how a ledger is opened.
--
-- Amounts are whole numbers below 2^53 in size, which Lua's numbers hold exactly. They are printed with %d only: Lua's
-- own way of printing keeps 14 digits. All checks stand before the first write, because a script that fails
-- keeps what it wrote.

local MAX = 9007199254740991
local NONE = {}

-- Ledgers of this server that were opened since the server started, and those whose clients are reporting. Lost with the
-- process, and absent on a replica that is promoted: that is what makes a server that "just started" visible.
local opened = {}
local reports = {}

local function whole(n)
  return string.format('%d', n)
end

-- The keys that every function gets first, in this order; a step leaves out the later ones when it needs none of them.
local META, COUNTERS, EVENTS, DEADLINES, RECORDS, STOPS = 1, 2, 3, 4, 7, 8
local PLACES = 11
local function places(keys)
  return { meta = keys[1], counters = keys[2], events = keys[3], deadlines = keys[4], open = keys[5],
           recovery = keys[6], records = keys[7], stops = keys[8], issued = keys[9], provisional = keys[10],
           clients = keys[11] }
end

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
local function time(fixed, seen)
  return math.max(tonumber(fixed) or server_ms(), seen)
end

local function ledger(p)
  local m = redis.call('HMGET', p.meta, 'seq', 'seen', 'gv', 'sv', 'fixed', 'id', 'lost', 'hand', 'run', 'from',
                       'ed', 'era')
  local epoch, from, start, of = era_of(m[12], m[9], m[10])
  local seen = tonumber(m[2]) or 0
  return { seq = tonumber(m[1]) or 0, now = time(m[5] or nil, seen), seen = seen, gv = m[3] or '0', sv = m[4] or '0',
           fixed = m[5] and true or false, id = m[6] or '', hand = tonumber(m[8]) or 0,
           epoch = epoch, from = from, start = start, of = of, edition = m[11] or '',
           lost = tonumber(m[7]) or 0, open = opened[p.meta] == m[9] and m[6] and not m[7] }
end

local function standing(l)
  return { whole(l.now), l.fixed and '1' or '0', l.gv, l.sv, whole(l.seq), l.open and '1' or '0',
           whole(l.hand), l.epoch, whole(l.from), whole(l.start), l.edition }
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

-- Values of a hash by field, `false` where there is none. In parts, because unpack has a limit.
local function fields_of(key, fields, first, last)
  if first > last then return NONE end
  if last - first < 1000 then return redis.call('HMGET', key, unpack(fields, first, last)) end
  local found = {}
  for from = first, last, 1000 do
    local upto = math.min(from + 999, last)
    local part = redis.call('HMGET', key, unpack(fields, from, upto))
    for i = 1, upto - from + 1 do found[#found + 1] = part[i] end
  end
  return found
end

-- The same for records that are keys of their own, from one of the keys to another.
local function texts_of(keys, first, last)
  local found = {}
  for from = first, last, 1000 do
    local upto = math.min(from + 999, last)
    local part = redis.call('MGET', unpack(keys, from, upto))
    for i = 1, upto - from + 1 do found[#found + 1] = part[i] end
  end
  return found
end

-- How many of these keys there are.
local function existing(keys, first, last)
  local found = 0
  for from = first, last, 1000 do
    found = found + redis.call('EXISTS', unpack(keys, from, math.min(from + 999, last)))
  end
  return found
end

-- Gives what seldom changes a name that it never had: whoever knows the ledger by the one before looks again.
local renewals = 0
local function renew_edition(p, run)
  local t = redis.call('TIME')
  renewals = renewals + 1
  redis.call('HSET', p.meta, 'ed', string.sub(run, 1, 12) .. '-' .. t[1] .. '-' .. t[2] .. '-' .. whole(renewals))
end
