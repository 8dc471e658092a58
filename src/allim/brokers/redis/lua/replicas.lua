-- Store a replica's card and return the others' cards. KEYS: replicas, a hash {replica: 'seen since keep nonce card'}:
-- when it was last and first seen, in ms, and after how many ms without a call it counts as gone.
-- ARGV: run_id, heard, durable; replica, nonce, keep_ms, card ('' when it leaves). Returns {since, {replica, since, card}
-- of each other...}. Stores nothing while Redis takes no writes.

local replica, nonce, keep_ms, card = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local now = now_ms()
local since, others = now, {}
local found = redis.call('HGETALL', KEYS[1])
for at = 1, #found, 2 do
  local name = found[at]
  local seen, began, keep, its_nonce, its_card = found[at + 1]:match('^(%d+) (%d+) (%d+) (%S+) (.*)$')
  if name == replica then
    since = its_nonce == nonce and tonumber(began) or now
  elseif seen and math.abs(now - tonumber(seen)) <= tonumber(keep) then  -- `abs`: the clock may have been set back
    others[#others + 1] = {name, tonumber(began), its_card}
  else
    redis.pcall('HDEL', KEYS[1], name)
  end
end
if card == '' then
  redis.pcall('HDEL', KEYS[1], replica)
else
  local entry = string.format('%.0f %.0f %s %s %s', now, since, keep_ms, nonce, card)
  redis.pcall('HSET', KEYS[1], replica, entry)
  redis.pcall('PEXPIRE', KEYS[1], 86400000)
end
return {since, others}
