"""The server: one replica under uvicorn, its sockets, its HTTP protocol, and the fast path before the application."""
