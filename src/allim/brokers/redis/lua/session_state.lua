-- Whether a session may still be used. Prepended to the scripts that check it.
-- signed_out: exists if the session has ended. kicked: holds the moment of the user's last kick.
-- issued: "kick <moment>", the last kick before the token was issued, which does not depend on clocks; or, if the token does
-- not tell it, the Unix second of its issue by the clock of its issuer.

local function is_kicked(kicked_at, issued)
  local after_kick = issued:match('^kick (.+)$')
  if after_kick then
    return tonumber(after_kick) < kicked_at
  end
  return tonumber(issued) <= kicked_at
end

local function session_state(signed_out, kicked, issued)
  if redis.call('EXISTS', signed_out) == 1 then
    return 'signed_out'
  end
  local kicked_at = redis.call('GET', kicked)
  if kicked_at and is_kicked(tonumber(kicked_at), issued) then
    return 'kicked'
  end
  return 'good'
end
