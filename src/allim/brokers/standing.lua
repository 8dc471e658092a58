-- Whether a session may still be used. Put before the scripts that ask.
-- signed_out: exists when the session was ended. kicked: holds the moment of the user's last kick.
-- issued: "kick <moment>", the last kick before the token was issued, which no clock can make wrong; or, when the token does
-- not say, the Unix second in which it was issued by the clock of its issuer.

local function is_kicked(kicked_at, issued)
  local after_kick = issued:match('^kick (.+)$')
  if after_kick then
    return tonumber(after_kick) < kicked_at
  end
  return tonumber(issued) <= kicked_at
end

local function standing(signed_out, kicked, issued)
  if redis.call('EXISTS', signed_out) == 1 then
    return 'signed_out'
  end
  local kicked_at = redis.call('GET', kicked)
  if kicked_at and is_kicked(tonumber(kicked_at), issued) then
    return 'kicked'
  end
  return 'good'
end
