"""Variables of the environment, as settings of allim and of its domains read them."""

from typing import Annotated, Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator
from pydantic_settings import NoDecode

PREFIX = "ALLIM_"
_LIMITS = ("ge", "le", "min_length", "max_length")


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
"""A list, separated by commas."""


def http_url(value: str | None) -> str | None:
    """Check that it is an address over HTTP. Raises: ValueError."""
    parts = urlsplit(value or "http://none")
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.fragment:
        raise ValueError("must be an http:// or https:// address without user and fragment")
    return value


def line(variable: str, model: type[BaseModel], detail: Any) -> str:
    """Return a line that names the variable and its allowed values, without its value: it may be a secret.

    Shape: `detail` is one of the errors of pydantic's `ValidationError`.
    """
    own = str(detail["msg"]).removeprefix("Value error, ")
    if not detail["loc"]:  # an error of several variables, which names them
        return own
    return f"{variable}: {own if detail['type'] == 'value_error' else _allowed(model, str(detail['loc'][0]))}"


def _allowed(model: type[BaseModel], name: str) -> str:
    """Return the values that a field may have, by its type and its limits."""
    field = model.model_fields[name]
    kind = field.annotation
    if get_origin(kind) is Literal:
        *most, last = get_args(kind)
        return f"must be {', '.join(most)} or {last}"
    if kind is bool:
        return "must be true or false"
    limits = {limit: getattr(of, limit) for of in field.metadata for limit in _LIMITS if hasattr(of, limit)}
    if "max_length" in limits:
        return f"must have {limits.get('min_length', 0)} to {limits['max_length']} characters"
    if kind not in (int, float):
        return "is not valid"
    number = f"{'whole ' if kind is int else ''}number"
    if "ge" in limits and "le" in limits:
        return f"must be a {number} from {limits['ge']:,} to {limits['le']:,}"
    return f"must be a {number}"
