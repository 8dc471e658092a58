"""The settings of snapshots."""

from pydantic import Field

from allim.domains.settings import EQUAL, DomainSettings, renamed


class SnapshotSettings(DomainSettings):
    """Units: `step_ms` in milliseconds, added to each of the three steps."""

    per_min: int = Field(20, ge=1, le=100_000, json_schema_extra=EQUAL)
    step_ms: int = Field(0, ge=0, le=60_000, json_schema_extra=renamed("ALLIM_SNAPSHOT_STEP_MS"))
