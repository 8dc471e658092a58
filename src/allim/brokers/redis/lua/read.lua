-- Read a page of the entries of several topics after a position, in order, in one atomic step. The page holds all entries
-- up to its end.
-- KEYS: clock, then one history per topic. ARGV: run_id, heard, durable; after ('' reads only the clock), max_events,
-- max_bytes.
-- Returns {now, floor, {numbers of topics whose removed history may have held entries after the position}, until ('' if
-- nothing follows this page), kept (entries after the position, on this page and after it), {numbers of topics whose
-- history has lost entries after the position}, {{topic, position, prev, lines}, ...}}.

local after, events_left, bytes_left = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])

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

-- A merge of all topics. For each topic a few entries are read ahead: its share of the rest of the page, judged by the
-- size of its earlier entries. So at most as many entries are read in vain as the page holds, in any order of publishes.
local waiting = {}  -- topics with an entry read ahead; the one with the earliest entry is last

local function read_ahead(topic, wanted)
  topic.entries, topic.at, topic.bytes = redis.call('XRANGE', topic.key, topic.from, '+', 'COUNT', wanted), 0, 0
  topic.exhausted = #topic.entries < wanted
  for _, entry in ipairs(topic.entries) do
    topic.bytes = topic.bytes + #(entry[2][6] or '')
  end
  local last = topic.entries[#topic.entries]
  topic.from = last and '(' .. last[1]
end

local function share(topic)
  local average = math.max(1, topic.bytes / #topic.entries)
  local left = math.min(events_left, bytes_left / average)
  return math.max(1, math.ceil(left / (#waiting + 1)))
end

-- Insert the topic into `waiting` by its next entry, if it has one.
local function advance(topic)
  if topic.at == #topic.entries then
    if topic.exhausted then
      return
    end
    read_ahead(topic, share(topic))
  end
  topic.at = topic.at + 1
  local entry = topic.entries[topic.at]
  if not entry then
    return
  end
  topic.ms, topic.seq = parse(entry[1])
  local low, high = 1, #waiting + 1
  while low < high do
    local middle = math.floor((low + high) / 2)
    local other = waiting[middle]
    if is_after(other.ms, other.seq, topic.ms, topic.seq) then low = middle + 1 else high = middle end
  end
  table.insert(waiting, low, topic)
end

local function is_text_after(position)
  local ms, seq = parse(position or '')
  return ms and is_after(ms, seq, after_ms, after_seq)
end

-- A loss shows in the first entry after the position. If its `prev` is after the position too, entries between were
-- trimmed. If it is the first of its history and `e` is after the position, a removed history may have held some. For a
-- topic without a history, `expired` of the clock decides.
local kept, trimmed, expired = 0, {}, {}
for index = 2, #KEYS do
  local topic = {key = KEYS[index], index = index - 1, from = '(' .. after}
  read_ahead(topic, 1)
  local first = topic.entries[1]
  if first then
    local prev, removed = first[2][2], first[2][8] or clock.expired  -- without `e`: an earlier version's
    if is_text_after(prev) then
      trimmed[#trimmed + 1] = topic.index
    elseif prev == '0-0' and is_text_after(removed) then
      expired[#expired + 1] = topic.index
    end
    local newest = redis.call('XREVRANGE', topic.key, '+', '-', 'COUNT', 1)[1]
    kept = kept + math.max(1, number(newest) - number(first) + 1)
    advance(topic)
  elseif is_text_after(clock.expired) and not redis.call('XREVRANGE', topic.key, '+', '-', 'COUNT', 1)[1] then
    expired[#expired + 1] = topic.index
  end
end

local page = {}
while #waiting > 0 and events_left > 0 and bytes_left > 0 do
  local topic = table.remove(waiting)
  local entry = topic.entries[topic.at]
  local lines = entry[2][6] or ''
  page[#page + 1] = {topic.index, entry[1], entry[2][2] or '', lines}
  events_left, bytes_left = events_left - 1, bytes_left - #lines
  advance(topic)
end
local until_ = #waiting > 0 and page[#page][2] or ''
return {text(clock.ms, clock.seq), clock.floor, expired, until_, kept, trimmed, page}
