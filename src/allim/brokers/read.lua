-- A page of what several topics hold after a position, in one atomic step. It ends where it is full, and says where:
-- everything up to there is in it.
-- KEYS: clock, then one history per topic. ARGV: run_id, heard, durable; after ('' reads only the clock), max_events,
-- max_bytes.
-- Gives {now, floor, {numbers of topics that may have lost entries after the position with a history that was removed},
-- until ('' when nothing is left after this page), kept (entries after the position, in this page and after it), {numbers of
-- topics whose history has lost entries after the position}, {{topic, position, prev, lines}, ...}}; the entries of one
-- topic are in order.

local after, events_left, bytes_left = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local FIRST = 8  -- entries of a topic read before their size is known: how far beyond max_bytes a page may go

local clock = load_clock()
if after == '' then
  return {text(clock.ms, clock.seq), clock.floor, {}, '', 0, {}, {}}
end
local after_ms, after_seq = parse(after)

local function is_after(ms, seq, than_ms, than_seq)
  return ms > than_ms or (ms == than_ms and seq > than_seq)
end

local function number(entry)
  return tonumber(entry[2][4]) or 0
end

local function is_text_after(position)
  local ms, seq = parse(position or '')
  return ms and is_after(ms, seq, after_ms, after_seq)
end

-- Which topics hold something newer, and from where on.
local kept, trimmed, expired, waiting = 0, {}, {}, {}
for topic = 2, #KEYS do
  local newest = redis.call('XREVRANGE', KEYS[topic], '+', '-', 'COUNT', 1)[1]
  local ms, seq = parse(newest and newest[1] or '0-0')
  if is_after(ms, seq, after_ms, after_seq) then
    local first = redis.call('XRANGE', KEYS[topic], '(' .. after, '+', 'COUNT', 1)[1]
    local oldest = redis.call('XRANGE', KEYS[topic], '-', '+', 'COUNT', 1)[1]
    local prev, removed = oldest[2][2], oldest[2][8] or clock.expired  -- without `e`: an earlier version's
    if is_text_after(prev) then
      trimmed[#trimmed + 1] = topic - 1
    elseif prev == '0-0' and is_text_after(removed) then
      expired[#expired + 1] = topic - 1
    end
    kept = kept + math.max(1, number(newest) - number(first) + 1)
    ms, seq = parse(first[1])
    waiting[#waiting + 1] = {topic = topic, ms = ms, seq = seq}
  elseif not newest and is_text_after(clock.expired) then
    expired[#expired + 1] = topic - 1
  end
end
table.sort(waiting, function(a, b) return is_after(b.ms, b.seq, a.ms, a.seq) end)

-- The earliest first, so that every page gets on. Where a topic is cut short, the page ends for all.
local found, end_ms, end_seq = {}, nil, nil
local function cut(ms, seq)
  if not end_ms or is_after(end_ms, end_seq, ms, seq) then
    end_ms, end_seq = ms, seq
  end
end
for _, history in ipairs(waiting) do
  if events_left <= 0 or bytes_left <= 0 then
    -- just before its first entry
    if history.seq > 0 then cut(history.ms, history.seq - 1) else cut(history.ms - 1, 999999999) end
    break
  end
  local history_key, from, entries, wanted = KEYS[history.topic], '(' .. after, nil, math.min(FIRST, events_left)
  repeat
    local bytes_before = bytes_left
    entries = redis.call('XRANGE', history_key, from, '+', 'COUNT', wanted)
    for _, entry in ipairs(entries) do
      local ms, seq = parse(entry[1])
      local lines = entry[2][6] or ''
      found[#found + 1] = {history.topic - 1, entry[1], entry[2][2] or '', lines, ms, seq}
      events_left, bytes_left = events_left - 1, bytes_left - #lines
      from = '(' .. entry[1]
    end
    local whole = #entries < wanted
    local average = (bytes_before - bytes_left) / math.max(1, #entries)
    wanted = math.min(events_left, math.ceil(bytes_left / math.max(1, average)))
  until whole or wanted <= 0
  if #entries > 0 and redis.call('XRANGE', history_key, from, '+', 'COUNT', 1)[1] then
    cut(found[#found][5], found[#found][6])
  end
end

local page = {}
for _, entry in ipairs(found) do
  if not (end_ms and is_after(entry[5], entry[6], end_ms, end_seq)) then
    page[#page + 1] = {entry[1], entry[2], entry[3], entry[4]}
  end
end
return {text(clock.ms, clock.seq), clock.floor, expired, end_ms and text(end_ms, end_seq) or '', kept, trimmed, page}
