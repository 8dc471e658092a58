"""Structured logs: one line of JSON per event, with the replica's ID and the request's.

Values are escaped by JSON, so nothing a client sends can start a line of its own.
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

_CHATTY = ("uvicorn.error", "uvicorn.access", "httpx", "httpcore", "alembic", "aiosqlite", "sqlalchemy")
_MAX_VALUE_CHARS = 1000
_KEPT_END_CHARS = 400  # of a longer value: the end of a traceback names the error
_OURS = frozenset({"exception", "stack"})  # many lines, on purpose

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Of the request that is being answered; it stands in every line that is written meanwhile."""


def configure_logging(server_id: str, level: str = "info", *, pretty: bool = False) -> None:
    """Send every log line of the process, ours and the libraries', to standard error."""
    shared: list[Processor] = [
        _cap,
        structlog.stdlib.add_log_level,
        _stamp(server_id),
    ]
    rendering = _rendering(pretty)
    structlog.configure(  # straight to the stream: through `logging` a line costs four times as much
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=_lines,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # At a lower level they would log stored values, also the hashes of passwords.
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))


@contextmanager
def quiet() -> Iterator[None]:
    """Log nothing meanwhile: for a command that reports its errors itself."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**before)


class _Lines:
    """Writes lines to the current standard error."""

    def _write(self, line: str) -> None:
        # A full disk, a pipe without a reader: as under `logging`, a lost line ends neither a request nor the link.
        try:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):
            pass

    debug = info = warning = error = critical = exception = _write


def _lines(*_: Any) -> _Lines:
    return _Lines()


def _rendering(pretty: bool) -> list[Processor]:
    # Tracebacks without their variables, which hold tokens and passwords; both libraries' defaults show them.
    if pretty:
        plain = structlog.dev.plain_traceback
        return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [structlog.processors.ExceptionRenderer(tracebacks), structlog.processors.JSONRenderer(_encode)]


def _encode(event: EventDict, default: Callable[[Any], Any]) -> str:
    return "".join(_chunks(default)(event, 0))


@lru_cache(maxsize=4)
def _chunks(default: Callable[[Any], Any]) -> Callable[[Any, int], Sequence[str]]:
    """Return the encoder that `json.JSONEncoder(ensure_ascii=False, check_circular=False)` makes for each line."""
    make: Callable[..., Callable[[Any, int], Sequence[str]]] = json.encoder.c_make_encoder  # type: ignore[attr-defined]
    return make(None, default, json.encoder.encode_basestring, None, ": ", ", ", False, False, True)


def _stamp(server_id: str) -> Processor:
    """Add the time, the place and the request."""

    def stamp(_: Any, __: str, event: EventDict) -> EventDict:
        if (name := request_id.get()) is not None:
            event["request_id"] = name
        ns = time.time_ns()
        event["timestamp"] = f"{_second(ns // 10**9)}.{ns // 1000 % 10**6:06}Z"
        event["server_id"] = server_id
        return event

    return stamp


@lru_cache(maxsize=2)
def _second(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _cap(_: Any, __: str, event: EventDict) -> EventDict:
    """A value from outside may be long, and may hold control sequences of a terminal; a log line should not."""
    for key, value in event.items():
        if (
            isinstance(value, str)
            and not (value.isprintable() and len(value) <= _MAX_VALUE_CHARS)
            and key not in _OURS
        ):
            cut = value
            if len(value) > _MAX_VALUE_CHARS:
                cut = f"{value[: _MAX_VALUE_CHARS - _KEPT_END_CHARS]}…{value[-_KEPT_END_CHARS:]}"
            event[key] = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
    return event
