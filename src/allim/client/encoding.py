"""Write published data as JSON, as pydantic does, and name the place that cannot be written."""

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

MAX_DEPTH = 64  # the server's own
_DECIMAL = re.compile(rb'[:\[,]"-?s?(?:NaN|Infinity)"[,\]}]')  # pydantic's form of a Decimal that is not finite


def encode(body: object) -> bytes:
    """Return the JSON of a request's body.

    Raises: TypeError for a value that JSON cannot hold, ValueError for a number that is not finite. Both name the
    place, such as `[3].data.price`.
    """
    try:
        content = _write(body)
    except (ValueError, TypeError, RecursionError) as error:
        raise _fault(body, "") or TypeError(f"body: cannot be written as JSON: {error}") from error
    if _DECIMAL.search(content) and (fault := _fault(body, "")) is not None:
        raise fault
    return content


def _write(value: object) -> bytes:
    # pydantic by itself writes null for a number of a model that is not finite.
    jsonable = _jsonable(value)
    return json.dumps(jsonable, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _jsonable(value: object) -> Any:
    from pydantic_core import to_jsonable_python  # late: a subscriber alone needs httpx and no more

    return to_jsonable_python(value)


def _fault(value: object, path: str, depth: int = 0) -> TypeError | ValueError | None:
    """Return the path and the fault of the first value that cannot be written."""
    if depth > MAX_DEPTH:
        where = path.removeprefix(".")[:80]
        return ValueError(f"{where}…: is nested more than {MAX_DEPTH} levels deep, or holds itself")
    for name, child in _children(value):
        if (fault := _fault(child, path + name, depth + 1)) is not None:
            return fault
    return _own_fault(value, path.removeprefix("."))


def _own_fault(value: object, path: str) -> TypeError | ValueError | None:
    if isinstance(value, float | Decimal):
        finite = value.is_finite() if isinstance(value, Decimal) else math.isfinite(value)
        return None if finite else ValueError(f"{path}: {value} is no number in JSON")
    try:
        jsonable = _jsonable(value)
        json.dumps(jsonable, ensure_ascii=False).encode()
    except (ValueError, TypeError) as error:
        return TypeError(f"{path}: a value of type {type(value).__name__} cannot be written as JSON: {error}")
    # A model also writes computed fields, and renames fields.
    return None if type(jsonable) is type(value) else _fault(jsonable, path)


def _children(value: Any) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        yield from ((f".{_name(key)}", child) for key, child in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"[{index}]", child) for index, child in enumerate(value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from ((f".{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value))
    elif hasattr(type(value), "__pydantic_fields__"):
        yield from ((f".{name}", child) for name, child in vars(value).items())


def _name(key: object) -> str:
    return str(key)[:64].encode(errors="backslashreplace").decode()
