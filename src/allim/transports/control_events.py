"""The control events, which allim itself sends on every stream, for the catalogue. docs/protocol.md explains each."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from allim.catalogue import EventData, EventType
from allim.hub import CloseReason, ResetReason

_TOLD = tuple(str(reason) for reason in CloseReason if reason.told)


class _ControlData(EventData):
    model_config = ConfigDict(alias_generator=None)  # these members have underscores


class TopicReset(_ControlData):
    """A topic whose events are not complete, and why."""

    topic: str
    reason: ResetReason


class StreamOpen(_ControlData):
    """The user of the stream, and the verdict on its resume."""

    stream: Annotated[str, Field(description="Names this stream in the logs.")]
    user: Annotated[str, Field(description="The user of the stream: the `sub` of the token or ticket.")]
    replica: Annotated[str, Field(description="The replica that holds it.")]
    resume: Literal["new", "complete", "reset"]
    replayed: Annotated[int, Field(ge=0, description="Entries that history holds after the last event ID.")]
    resets: Annotated[list[TopicReset], Field(description="One for each topic that is not complete.")]
    heartbeat_s: Annotated[float, Field(description="Seconds between two heartbeats.")]


class StreamGap(_ControlData):
    """Topics of which events are lost to this stream."""

    topics: list[str]
    reason: Literal["origin", "trimmed"]


class StreamExpiring(_ControlData):
    """The end of the stream's token."""

    expires_in_s: Annotated[int, Field(ge=0)]


class StreamClose(_ControlData):
    """Why the stream ends, and whether a client should come back."""

    reason: Annotated[str, Field(json_schema_extra={"enum": [*_TOLD]})]
    reconnect: bool


class Heartbeat(_ControlData):
    """An empty object."""


OPEN = EventType(
    name="stream.open",
    model=StreamOpen,
    topic=None,
    summary="The stream is open. The first event of every stream.",
    description="`resume` is the verdict: with `reset`, load the state of the topics in `resets` over REST.",
    example={
        **{"stream": "f6843939fb6b1a6d", "user": "42", "replica": "replica-1", "resume": "new", "replayed": 0},
        **{"resets": [], "heartbeat_s": 15},
    },
)
HEARTBEAT = EventType(
    name="heartbeat",
    model=Heartbeat,
    topic=None,
    summary="The stream is alive.",
    description="It comes once per `heartbeat_s`. With an ID, everything before that position has been written.",
    example={},
)
GAP = EventType(
    name="stream.gap",
    model=StreamGap,
    topic=None,
    summary="Events of these topics are lost to this open stream.",
    description="Load the state anew over REST and go on listening.",
    example={"topics": ["user:42"], "reason": "origin"},
)
EXPIRING = EventType(
    name="stream.expiring",
    model=StreamExpiring,
    topic=None,
    summary="The stream's token expires soon.",
    description="Renew the session, and the stream goes on.",
    example={"expires_in_s": 60},
)
CLOSE = EventType(
    name="stream.close",
    model=StreamClose,
    topic=None,
    summary="The stream ends. It is the last event, if the end can be told.",
    description="With `reconnect` false, a client does not come back by itself.",
    example={"reason": "drain", "reconnect": True},
)
CONTROL_EVENTS = (OPEN, HEARTBEAT, GAP, EXPIRING, CLOSE)
