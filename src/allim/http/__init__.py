"""What every route shares: identity, bodies, problems, paging, health. Knows no room."""
