-- KEYS: signed_out and kicked of each holder. ARGV: `issued` of each. Returns a state for each.

local states = {}
for holder = 1, #ARGV do
  states[holder] = session_state(KEYS[holder * 2 - 1], KEYS[holder * 2], ARGV[holder])
end
return states
