"""The REST machinery: routing, bodies, problems, paging, origins, and the routes that belong to no domain."""
