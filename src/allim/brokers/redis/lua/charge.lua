-- Charge all demands or none; none for a holder whose session has ended.
-- KEYS: signed_out and kicked of the holder, if there is one; then one per demand. ARGV: the holder's `issued`, or '';
-- limit, period_us and cost of each.
-- Returns {session state, a quota of each...}; the state alone if Redis takes no writes.

local first = 1
if ARGV[1] ~= '' then
  first = 3
  local state = session_state(KEYS[1], KEYS[2], ARGV[1])
  if state ~= 'good' then
    return {state}
  end
end
local reply = {'good'}
local _, failed = charge(reply, first, 2, #KEYS - first + 1, now_us())
return failed and not takes_no_write(failed) and failed or reply
