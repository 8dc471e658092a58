"""A domain as a package of a third party has it."""
