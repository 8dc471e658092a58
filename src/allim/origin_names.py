"""The origins of web pages in settings: as browsers write them, and patterns for several."""

import re

_HOST = r"(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])"
_ORIGIN = re.compile(rf"https://{_HOST}(?!:443$)(?::\d{{1,5}})?|http://{_HOST}(?!:80$)(?::\d{{1,5}})?", re.ASCII)


def origin(value: str | None) -> str | None:
    """Check that it is one origin, or None. Raises: ValueError."""
    if value is not None and not _ORIGIN.fullmatch(value):
        raise ValueError(
            "must be an origin as browsers write it, such as https://app.example.org: "
            "small letters, no path, no default port"
        )
    return value


_APP_ORIGIN = re.compile(
    rf"(?:capacitor|ionic|tauri)://{_HOST}"  # an app's own pages, inside the web view that it brings along
    r"|chrome-extension://[a-p]{32}|(?:moz|safari-web)-extension://[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}",
    re.ASCII,
)
_WILDCARD = re.compile(r"(https?://)\*\.([a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z][a-z0-9-]*)((?::\d{1,5})?)", re.ASCII)


def _listed(value: str) -> str:
    if value in ("*", "null"):
        raise ValueError(f"must not be {value}: any site could read its visitors' private streams; name the origins")
    if _APP_ORIGIN.fullmatch(value):
        return value
    if "*" not in value:
        return origin(value) or value
    parts = _WILDCARD.fullmatch(value)
    if parts is None:
        raise ValueError("a * stands for the first label of a host, as in https://*.example.com, and nowhere else")
    if _is_public_suffix(parts[2]):
        raise ValueError(f"names under {parts[2]} belong to different owners: a * stands before a domain of your own")
    origin(f"{parts[1]}label.{parts[2]}{parts[3]}")
    return value


def _is_public_suffix(domain: str) -> bool:
    from publicsuffixlist import PublicSuffixList  # 0.2 s and 4 MB, which only a wildcard costs

    return bool(PublicSuffixList().is_public(domain))


def origins(values: tuple[str, ...]) -> tuple[str, ...]:
    """Check that each is an origin or a pattern. Raises: ValueError."""
    return tuple(map(_listed, values))
