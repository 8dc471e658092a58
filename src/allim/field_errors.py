"""Names wrong fields in plain sentences: pydantic's errors as `Invalid`, with paths as the sender wrote them."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

from pydantic import ValidationError

from allim.errors import FieldError, Invalid

MAX_ERRORS = 20


def invalid(error: ValidationError, under: str = "") -> Invalid:
    """Convert pydantic's errors to plain sentences.

    Shape: `under` is the path of the checked value itself, such as `[3]`; empty for a whole body.
    The message never repeats the value, because it may be a password.
    """
    return invalid_fields(
        FieldError(path_of(under, found["loc"]), _message(cast("dict[str, Any]", found)))
        for found in error.errors(include_url=False, include_input=False)[:MAX_ERRORS]
    )


def invalid_fields(fields: Iterable[FieldError]) -> Invalid:
    """Return the error that names these fields, each with its message."""
    named = tuple(fields)
    return Invalid("; ".join(f"{field}: {message}" for field, message in named), named)


def path_of(under: str, location: Sequence[int | str]) -> str:
    """Return the path of a field inside the value at the path `under`: `data.lines[2].name`."""
    path = under
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            # The sender chose this name; a short one is enough to find it again.
            path += ("." if path else "") + part[:64]
    return path or "body"


def _message(found: dict[str, Any]) -> str:
    context: dict[str, Any] = found.get("ctx", {})
    if found["type"] == "value_error":
        return str(context["error"])
    template = _MESSAGES.get(found["type"])
    return template.format(**context) if template else "is not allowed: " + str(found["msg"])


_MESSAGES = {
    "missing": "is required",
    "extra_forbidden": "is not a known field",
    "string_type": "must be a string",
    "string_unicode": "must be well-formed text",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "has characters or a form that are not allowed",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be a JSON object",
    "model_attributes_type": "must be a JSON object",
    "too_long": "must have at most {max_length} items",
    "too_short": "must have at least {min_length} items",
}
