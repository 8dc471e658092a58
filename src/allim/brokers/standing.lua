-- Whether a session may still be used. Put before the scripts that ask.
-- signed_out: exists when the session was ended. kicked: holds the Unix second up to which every session was.

local function standing(signed_out, kicked, issued_at)
  if redis.call('EXISTS', signed_out) == 1 then
    return 'signed_out'
  end
  local kicked_at = redis.call('GET', kicked)
  if kicked_at and tonumber(issued_at) <= tonumber(kicked_at) then
    return 'kicked'
  end
  return 'good'
end

local function now_us()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end
