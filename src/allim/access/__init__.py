"""Access: the identity of a request, its permission to read and publish, and its rate limits. Knows no route."""
