-- KEYS: signed_out and kicked of each holder. ARGV: `issued` of each. Returns a standing for each.

local standings = {}
for holder = 1, #ARGV do
  standings[holder] = standing(KEYS[holder * 2 - 1], KEYS[holder * 2], ARGV[holder])
end
return standings
