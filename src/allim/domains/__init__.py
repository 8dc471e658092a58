"""Domains. Each owns one subject; none imports another. `domain` is their contract."""
