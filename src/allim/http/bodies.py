"""Reads a JSON body strictly: a body that two parsers could read differently is refused.

Source: RFC 8259, RFC 7493 (I-JSON).
"""

import json
import math
from collections import Counter
from itertools import islice
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel
from starlette.requests import ClientDisconnect, Request

from allim.errors import FieldError, Invalid, TooLarge
from allim.field_errors import MAX_ERRORS, invalid
from allim.http.problems import UnsupportedMediaType

MAX_BYTES = 64 * 1024
MAX_DEPTH = 64
MAX_CONTAINERS = 50_000  # arrays and objects in one body: each costs a microsecond and up, and two bytes to send


class Body(BaseModel):
    """The base of request and response bodies: camelCase members, unknown members refused, no type coercion."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        alias_generator=to_camel,
        validate_by_alias=True,
        validate_by_name=False,
        serialize_by_alias=True,
    )


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
"""A whole number, also written as `60.0`: in JSON that is the same number."""

Instant = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
"""RFC 3339 in UTC with milliseconds, as `utc` returns it."""


def form(pattern: str) -> Any:
    """Return the field that tells the OpenAPI document the form of a text, which a validator checks."""
    return Field(json_schema_extra={"pattern": f"^(?:{pattern})$"})


Model = TypeVar("Model", bound=BaseModel)


async def read_model(request: Request, model: type[Model], max_bytes: int = MAX_BYTES) -> Model:
    """Read the body as a `model`.

    Raises: as `read_json`; Invalid naming each wrong field.
    """
    return parse(model, await read_json(request, max_bytes))


def parse(model: type[Model], value: object, under: str = "") -> Model:
    """Validate a JSON value as a `model`; `under` is the path of the value in the body, such as `[3]`.

    Raises: Invalid naming each wrong field.
    """
    try:
        return model.model_validate(_with_few_unknown(model, value))
    except ValidationError as error:
        raise invalid(error, under) from None


def _with_few_unknown(model: type[BaseModel], value: object) -> object:
    """Return the value with at most MAX_ERRORS unknown members: pydantic would make an error for each."""
    if not isinstance(value, dict) or len(value) <= MAX_ERRORS:
        return value
    known = {field.alias for field in model.model_fields.values()}
    unknown = islice((name for name in value if name not in known), MAX_ERRORS)
    return {name: value[name] for name in (*(known & value.keys()), *unknown)}


async def read_json(request: Request, max_bytes: int = MAX_BYTES) -> object:
    """Read the body as a JSON value.

    Raises: TooLarge before more than `max_bytes` are kept; Invalid naming `body`; UnsupportedMediaType
    naming `Content-Type`.
    """
    body = await read_bytes(request, max_bytes)
    if not body.strip():
        raise Invalid.field("body", "is empty; send JSON")
    _check_content_type(request)
    return parse_json(body)


async def read_json_or_nothing(request: Request, max_bytes: int = MAX_BYTES) -> object:
    """Read the body as a JSON value; an empty body counts as `{}`.

    Raises: as `read_json`.
    """
    body = await read_bytes(request, max_bytes)
    if not body:
        return {}
    _check_content_type(request)
    return parse_json(body)


async def read_bytes(request: Request, max_bytes: int = MAX_BYTES) -> bytes:
    """Read the body, at most `max_bytes`.

    Raises: TooLarge, before reading if `Content-Length` is too large.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > max_bytes:
        raise _too_large(max_bytes)
    chunks: list[bytes] = []
    size, more = 0, True
    while more:  # `request.stream()` would do the same and double the cost
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        if not more and not chunks:
            return chunk  # most bodies arrive whole
        chunks.append(chunk)
    return b"".join(chunks)


def parse_json(body: bytes) -> object:
    """Parse the JSON value in `body`.

    Raises: Invalid naming `body`, with line and column if known. Besides malformed JSON it refuses duplicate names,
    NaN and infinities, lone surrogates, more than `MAX_DEPTH` levels, and more than `MAX_CONTAINERS` arrays and
    objects.
    """
    _check_structure(body)
    try:
        value = _decode(body.decode())
    except UnicodeDecodeError as error:
        raise Invalid.field("body", f"is not UTF-8 at byte {error.start + 1}") from None
    except json.JSONDecodeError as error:
        raise Invalid.field("body", f"is not JSON at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:  # an integer of thousands of digits
        raise Invalid.field("body", "has a number that is too long") from None
    _check_surrogates(body, value)
    return value


def _decode(text: str) -> object:
    # `decode` looks for white space with patterns, which takes as long as parsing most bodies.
    text = text.rstrip(" \t\r\n")
    try:
        value, end = _DECODER.scan_once(text, 0)  # type: ignore[attr-defined]
    except StopIteration:
        end = -1
    return value if end == len(text) else _DECODER.decode(text)  # raises an error with line and column


def _check_content_type(request: Request) -> None:
    content_type = request.headers.get("content-type", "")
    if content_type == "application/json":
        return
    media_type, _, parameters = content_type.partition(";")
    charset = parameters.replace(" ", "").replace('"', "").lower()
    if media_type.strip().lower() != "application/json" or charset not in {"", "charset=utf-8"}:
        message = "must be application/json"
        raise UnsupportedMediaType(f"Content-Type: {message}", [FieldError("Content-Type", message)])


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise Invalid.field("body", f"has the name {json.dumps(twice[:64])} twice in one object")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise Invalid.field("body", f"has {name}, which JSON does not know")


def _finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise Invalid.field("body", "has a number that is too large")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite_float)


def _check_structure(body: bytes) -> None:
    """Judge depth and number of containers on the bytes: building them first would cost as much as a body may cost.

    It is exact for JSON. Of anything else it counts at least the containers before the fault that the parser finds.
    Raises: Invalid.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return  # not even when all of them were nested
    unescaped = body.replace(rb"\\", b"").replace(rb"\"", b"")
    outside_strings = b"".join(unescaped.split(b'"')[::2])
    brackets = outside_strings.translate(_AS_ARRAYS, _NO_BRACKETS)
    if brackets.startswith(b"[" * (MAX_DEPTH + 1)):
        raise _too_deep()
    if brackets.count(b"[") > MAX_CONTAINERS:
        raise Invalid.field("body", f"has more than {MAX_CONTAINERS} arrays and objects")
    for _ in range(MAX_DEPTH):
        outer = brackets.replace(b"[]", b"")  # without the innermost
        if len(outer) == len(brackets):
            return  # nothing is left, or they do not match, which the parser explains
        brackets = outer
    if brackets:
        raise _too_deep()


_AS_ARRAYS = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def _check_surrogates(body: bytes, value: object) -> None:
    if b"\\u" not in body or b"\\ud" not in body.lower():
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Invalid.field("body", "has half of a surrogate pair, which is no character") from None


def _too_large(max_bytes: int) -> TooLarge:
    message = f"must have at most {max_bytes} bytes"
    return TooLarge(f"body: {message}", [FieldError("body", message)])


def _too_deep() -> Invalid:
    return Invalid.field("body", f"is nested more than {MAX_DEPTH} levels deep")
