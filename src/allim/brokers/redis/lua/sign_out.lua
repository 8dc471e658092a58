-- End a session. KEYS: signed_out. ARGV: keep_ms. An entry that is kept longer already stays so.

if not redis.call('SET', KEYS[1], '1', 'PX', ARGV[1], 'NX') then
  redis.call('PEXPIRE', KEYS[1], ARGV[1], 'GT')
end
return 1
