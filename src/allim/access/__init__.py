"""Access: which identity a request has, what it may read and publish, and how often. Knows no route."""
