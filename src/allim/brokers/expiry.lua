-- Removal of histories, and a record of it. Put after clock.lua.
-- Redis' own expiry would delete a history without a trace, so that it would not be known afterwards whether it held something.
-- Here a history is removed by a script, which in the same step raises `expired` of the clock to the newest position that
-- the history held: a reader that stands at or after `expired` has lost nothing by any removal.
-- The sorted set `expiry` holds each topic that has a history, by the millisecond of the server's clock in which the
-- history is due. The last publisher's TTL counts.

local MOST_REMOVED = 200  -- at once, in 1.3 to 2 ms: how long others wait for it
local SHARD = KEYS[1]:sub(1, -1 - #'clock')
local EXPIRY, HISTORY = SHARD .. 'expiry', SHARD .. 'history:'

-- Remove up to `most` histories that are due, the oldest first. It frees memory, so it must go on when Redis is full: the
-- first write takes none, and after the first write a script may go on.
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
    return  -- Redis takes no write at all at the moment: all of it stays
  end
  clock.expired = text(removed_ms, removed_seq)
  redis.call('HSET', clock.key, 'expired', clock.expired)
  redis.call('UNLINK', unpack(histories))
end

-- Histories were written: they are due so long from now. A topic that had none makes the store larger, so for each of those
-- two that are due go: the number of histories does not depend on how often they are looked for.
-- newest: the table of publish.lua, by history; the third item of an entry says that the history is new.
local function note_expiry(clock, newest, server_ms, ttl_s)
  local due, made = string.format('%.0f', server_ms + ttl_s * 1000), 0
  for history, last in pairs(newest) do
    redis.call('ZADD', EXPIRY, due, history:sub(#HISTORY + 1))
    redis.call('PERSIST', history)  -- a version before this one let Redis delete it
    made = made + (last[3] and 1 or 0)
  end
  if made > 0 then  -- only now that none of those that were written is due any more
    remove_due(clock, server_ms, math.min(2 * made, MOST_REMOVED))
  end
end
