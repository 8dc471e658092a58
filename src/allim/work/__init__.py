"""Durable background work for domains: jobs as rows with leases, retries, due times and schedules.

This is its door; docs/work.md says how a domain uses it.
"""

from pathlib import Path

from allim.work.job import Job, LeaseLost
from allim.work.store import DeadJob
from allim.work.work import AT_ONCE, Hints, Work, dead_jobs, retry_jobs

MIGRATIONS = Path(__file__).parent / "migrations"

__all__ = [
    "AT_ONCE",
    "MIGRATIONS",
    "DeadJob",
    "Hints",
    "Job",
    "LeaseLost",
    "Work",
    "dead_jobs",
    "retry_jobs",
]
