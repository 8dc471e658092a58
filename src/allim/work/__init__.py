"""Durable background work for domains: jobs as rows with leases, retries, due times and schedules. This is its door."""

from allim.work.job import Job, LeaseLost
from allim.work.store import DeadJob
from allim.work.work import AT_ONCE, Hints, Work

__all__ = ["AT_ONCE", "DeadJob", "Hints", "Job", "LeaseLost", "Work"]
