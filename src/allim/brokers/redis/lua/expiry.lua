-- Removal of histories, and a record of it. Prepended after clock.lua.
-- Redis' own expiry would delete a history unrecorded, so nothing could tell later whether it held an event.
-- Here a script removes a history, and in the same step raises `expired` of the clock to the newest position that the
-- history held: a reader at or after `expired` has lost nothing by any removal.
-- The sorted set `expiry` holds each topic with a history, scored by the millisecond of the server's clock in which the
-- history is due. The last publisher's TTL counts.

local MOST_REMOVED = 200  -- at a time: takes 1.3 to 2 ms, for which other commands wait
local SHARD = KEYS[1]:sub(1, -1 - #'clock')
local EXPIRY, HISTORY = SHARD .. 'expiry', SHARD .. 'history:'

-- Remove up to `most` histories that are due, the oldest first. This frees memory, so it must work when Redis is full: the
-- first write needs no memory, and after its first write a script is not refused any more.
local function remove_due(clock, server_ms, most)
  local due = redis.call('ZRANGEBYSCORE', EXPIRY, '-inf', string.format('%.0f', server_ms), 'LIMIT', 0, most)
  if #due == 0 then
    return
  end
  local histories, removed_ms, removed_seq = {}, parse(clock.expired)
  for at, topic in ipairs(due) do
    histories[at] = HISTORY .. topic
    local newest = redis.call('XREVRANGE', histories[at], '+', '-', 'COUNT', 1)[1]
    local ms, seq = parse(newest and newest[1] or '0-0')
    if ms > removed_ms or (ms == removed_ms and seq > removed_seq) then
      removed_ms, removed_seq = ms, seq
    end
  end
  if type(redis.pcall('ZREM', EXPIRY, unpack(due))) == 'table' then
    return  -- Redis takes no write at all at the moment: nothing is removed
  end
  clock.expired = text(removed_ms, removed_seq)
  redis.call('HSET', clock.key, 'expired', clock.expired)
  redis.call('UNLINK', unpack(histories))
end

-- Record when the histories that were written are due. For each new history up to two that are due are removed, so the
-- number of histories stays bounded without a timer.
-- newest: the table of publish.lua, by history; the third item of an entry is true for a new history.
local function note_expiry(clock, newest, server_ms, ttl_s)
  local due, made = string.format('%.0f', server_ms + ttl_s * 1000), 0
  for history, last in pairs(newest) do
    redis.call('ZADD', EXPIRY, due, history:sub(#HISTORY + 1))
    redis.call('PERSIST', history)  -- an older version set a TTL
    made = made + (last[3] and 1 or 0)
  end
  if made > 0 then  -- last: the histories that were just written are not due any more
    remove_due(clock, server_ms, math.min(2 * made, MOST_REMOVED))
  end
end
