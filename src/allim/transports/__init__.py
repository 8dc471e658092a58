"""Ways to a reader. One so far: server-sent events."""
