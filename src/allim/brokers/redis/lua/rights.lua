-- Which commands this Redis user may not run. Runs none of them and changes nothing.
-- ARGV: how many words name the command, and the command as it would be sent, its words separated by spaces; for each.
-- Gives for each refused command its number and why: 'command', 'keys' (or channels), or 'unknown' to this Redis.

local function why_not(words, count)
  local known, allowed = pcall(redis.acl_check_cmd, unpack(words))
  if not known then
    return 'unknown'
  elseif not allowed then
    return redis.acl_check_cmd(unpack(words, 1, count)) and 'keys' or 'command'
  end
end

local refused = {}
if not redis.acl_check_cmd then  -- before Redis 7.0: nothing can be known
  return refused
end
for number = 1, #ARGV / 2 do
  local words = {}
  for word in ARGV[number * 2]:gmatch('%S+') do
    words[#words + 1] = word
  end
  local why = why_not(words, tonumber(ARGV[number * 2 - 1]))
  if why then
    refused[#refused + 1] = number
    refused[#refused + 1] = why
  end
end
return refused
