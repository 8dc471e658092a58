-- Called by a replica over its new link, before it subscribes: tells which Redis process it followed until now. Positions
-- from there may be unknown here (a partitioned master that still accepted writes), or known and older than the floor.
-- KEYS: clock. ARGV: run_id, heard, durable; the run_id it followed, or ''; the newest position it heard there.

local clock = load_clock()
local followed = ARGV[4]
if followed ~= '' and followed ~= ARGV[1] and ARGV[3] ~= '1' then
  local heard_ms, heard_seq = parse(ARGV[5])
  local floor_ms, floor_seq = parse(clock.floor)
  if heard_ms > floor_ms or (heard_ms == floor_ms and heard_seq > floor_seq) then
    begin_origin(clock, now_ms())
  end
end
return clock.floor
