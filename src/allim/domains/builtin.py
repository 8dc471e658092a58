"""The domains that come with allim, by name. A new one is a line here."""

BUILT_IN = {
    "accounts": "allim.domains.accounts:DOMAIN",
    "keys": "allim.domains.keys:DOMAIN",
    "snapshots": "allim.domains.snapshots:DOMAIN",
    "page": "allim.domains.page:DOMAIN",
}

EXTRAS = {"accounts": "accounts", "keys": "storage", "snapshots": "accounts"}
"""The extra that a domain needs, by its name."""
