"""Whether a stream comes through as its replica writes it: at once, whole, and frame by frame.

It reads as a browser does: for the first frame, and then for two heartbeats at the interval that the first frame
announces. A proxy that buffers holds frames back, or passes several together.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from email.utils import parsedate_to_datetime

import httpx

from allim.client import Message, Parser
from allim.doctor.finding import Finding
from allim.errors import causes
from allim.hub.clock import SKEW_S

FIRST_FRAME_S = 2.0  # within which a replica's first frame is here, if nothing holds it back
HEARTBEATS = 2
LATE_S = 2.0  # and half an interval: by how much a heartbeat may be late
CONNECT_S = 10.0
_PLAIN = {"accept": "text/event-stream", "accept-encoding": "identity"}
_UNCOMPRESSED = "switch compression off for text/event-stream on the way: it may keep events back"
_UNBUFFER = "switch buffering off on the way: proxy_buffering off in nginx, as in nginx/nginx.conf.template"
_NO_REPLICA = "see that replicas run, that they are ready (/readyz), and that the proxy looks for them where they are"


class _Refused(Exception):
    """The stream does not come as it should. Shape: `status` is the HTTP status that refused it, else 0."""

    def __init__(self, detail: str, advice: str, status: int = 0) -> None:
        super().__init__(detail)
        self.detail, self.advice, self.status = detail, advice, status


async def examine_stream(url: str, token: str, own: str, expected_heartbeat_s: float) -> Finding:
    """Follow a stream for two heartbeats.

    Shape: `own` is a token of this shell's secret key that is good by any clock, "" if `token` was given;
    `expected_heartbeat_s` counts until the first frame announces the interval.
    """
    try:
        return Finding("stream", True, await _followed(url, token, expected_heartbeat_s))
    except _Refused as refused:
        if refused.status == httpx.codes.UNAUTHORIZED and own:
            return await _of_token(url, own, refused)
        return Finding("stream", False, refused.detail, refused.advice)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return Finding("stream", False, *_of_connection(url, error))


async def examine_compression(url: str, token: str) -> Finding:
    """Return whether a browser, which offers to decompress, gets its first frame at once too."""
    headers = {"authorization": f"Bearer {token}", "accept-encoding": "gzip, deflate"}
    encoding = ""
    try:
        async with (
            asyncio.timeout(FIRST_FRAME_S),
            httpx.AsyncClient(headers=headers) as http,
            http.stream("GET", _events(url)) as response,
        ):
            encoding = response.headers.get("content-encoding", "")
            await anext(response.aiter_bytes())
    except (TimeoutError, httpx.RequestError, StopAsyncIteration):
        detail = f"a browser gets no frame within {FIRST_FRAME_S:.0f} s; Content-Encoding: {encoding or 'none'}"
        return Finding("compression", False, detail, _UNCOMPRESSED)
    detail = f"a proxy compresses streams: {encoding}" if encoding else "streams are not compressed"
    return Finding("compression", True, detail, _UNCOMPRESSED if encoding else "")


async def _followed(url: str, token: str, expected_heartbeat_s: float) -> str:
    """Return the findings about a stream without a fault.

    Raises: _Refused; httpx.HTTPError, httpx.InvalidURL.
    """
    began = time.monotonic()
    async with httpx.AsyncClient(timeout=httpx.Timeout(CONNECT_S, read=None)) as http:
        headers = {**_PLAIN, "authorization": f"Bearer {token}"}
        patience_s = FIRST_FRAME_S + 2 * expected_heartbeat_s
        try:
            async with (
                asyncio.timeout(patience_s) as limit,
                http.stream("GET", _events(url), headers=headers) as answer,
            ):
                await _check_head(answer)
                async with aclosing(_arrivals(answer)) as arrivals:
                    opening, opened_s = await _first(arrivals, began)
                    limit.reschedule(None)
                    told = await _heartbeats(arrivals, float(opening.data["heartbeat_s"]))
        except TimeoutError:
            raise _Refused(f"no frame within {patience_s:.0f} s", _UNBUFFER) from None
    if opened_s > FIRST_FRAME_S:
        raise _Refused(f"the first frame came after {opened_s:.1f} s, which is late: it was held back", _UNBUFFER)
    return f"{opening.type} after {opened_s * 1000:.0f} ms from {opening.data['replica']}, then {told}"


async def _check_head(answer: httpx.Response) -> None:
    """Raises: _Refused for an answer that is no event stream as a replica begins it."""
    status = answer.status_code
    if status != httpx.codes.OK:
        await answer.aread()
        raise _Refused(_said(answer), _advice_on(answer), status)
    kind = answer.headers.get("content-type", "no media type")
    if not kind.startswith("text/event-stream"):
        raise _Refused(f"the answer is no event stream but {kind}", "give the address of nginx or of a replica")
    if encoding := answer.headers.get("content-encoding", ""):
        raise _Refused(f"the stream is compressed, which was not asked for: {encoding}", _UNCOMPRESSED)


async def _first(arrivals: AsyncGenerator[Message, None], began: float) -> tuple[Message, float]:
    """`stream.open`, and after how many seconds it came.

    Raises: _Refused.
    """
    async for message in arrivals:
        if message.type != "stream.open":
            break
        return message, time.monotonic() - began
    raise _Refused("the proxy answers in place of a replica: no replica takes the stream", _NO_REPLICA)


async def _heartbeats(arrivals: AsyncGenerator[Message, None], every_s: float) -> str:
    """Wait for heartbeats; say how they came.

    Raises: _Refused when they come late or together.
    """
    last = time.monotonic()
    gaps: list[float] = []
    while len(gaps) < HEARTBEATS:
        try:
            async with asyncio.timeout(1.5 * every_s + LATE_S):
                message = await anext(arrivals)
        except TimeoutError:
            silent_s = time.monotonic() - last
            raise _Refused(f"no heartbeat for {silent_s:.0f} s; one is due every {every_s:g} s", _UNBUFFER) from None
        except (StopAsyncIteration, httpx.TransportError):
            open_s = sum(gaps) + time.monotonic() - last
            advice = "see the replica's and the proxy's logs, and the read time-out of the proxy"
            raise _Refused(f"the stream ended after {open_s:.0f} s, before two heartbeats", advice) from None
        if message.type != "heartbeat":
            continue
        now = time.monotonic()
        gaps.append(now - last)
        last = now
    if gaps[-1] < every_s / 4:
        detail = f"two heartbeats came together ({gaps[-1]:.1f} s apart, not {every_s:g}): something collects frames"
        raise _Refused(detail, _UNBUFFER)
    return f"{HEARTBEATS} heartbeats, {gaps[-1]:.1f} s apart"


async def _arrivals(answer: httpx.Response) -> AsyncGenerator[Message, None]:
    parser = Parser()
    async for chunk in answer.aiter_raw():
        for message in parser.feed(chunk):
            yield message


async def _of_token(url: str, own: str, refused: _Refused) -> Finding:
    """Tell a wrong clock from a wrong secret key: by a token that is good by any clock."""
    async with httpx.AsyncClient(timeout=httpx.Timeout(CONNECT_S)) as http:
        answer = await http.head(_events(url), headers={"authorization": f"Bearer {own}"})
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        advice = (
            "give this shell the replicas' ALLIM_SECRET_KEY; their log says why it is refused: credentials refused"
        )
        return Finding("stream", False, f"{refused.detail} (the secret key is another)", advice)
    ahead_s = _clock_ahead_s(answer)
    by = "" if abs(ahead_s) <= SKEW_S else f" by {abs(ahead_s):.0f} s"
    detail = f"{refused.detail} (the secret key is right, and the clocks differ{by})"
    return Finding("stream", False, detail, "set the clocks of this machine and of the replicas, by NTP")


def _clock_ahead_s(answer: httpx.Response) -> float:
    """How far this machine's clock is ahead of the one that dated the answer; 0 when that is not told."""
    try:
        return time.time() - parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, ValueError):
        return 0.0


def _events(url: str) -> str:
    return url.rstrip("/") + "/events"


def _said(answer: httpx.Response) -> str:
    detail = ""
    if answer.headers.get("content-type", "").startswith("application/problem+json"):
        detail = str(answer.json().get("detail", ""))
    phrase = httpx.codes.get_reason_phrase(answer.status_code)
    return f"HTTP {answer.status_code} {phrase}{f': {detail}' if detail else ''}"


def _advice_on(answer: httpx.Response) -> str:
    status = answer.status_code
    if answer.is_redirect:
        return f"give the address that it leads to: {answer.headers.get('location', '')}"
    if status in (502, 503, 504):
        return _NO_REPLICA
    return {
        204: "an operator has kicked this user",
        401: "the replica's log says why: credentials refused; and `allim doctor --token-file FILE` without --url",
        403: "the token does not grant these topics",
        404: "there is no /events: give the address of nginx or of a replica, with its path if it has one",
        429: "wait, or raise the limit that the log and allim_refusals_total name",
    }.get(status, "see the logs of the replica and of the proxy")


def _of_connection(url: str, error: Exception) -> tuple[str, str]:
    """A fault on the way to the server, and a remedy."""
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
        return f"{url} is no http:// or https:// address", "give --url as a browser has it: https://app.example.org"
    if isinstance(error, httpx.TimeoutException):
        return (
            f"{url} does not answer within {CONNECT_S:.0f} s",
            "see that a server runs there and no firewall is between",
        )
    for cause in _all_causes(error):
        if isinstance(cause, socket.gaierror):
            return f"{url}: there is no host of this name", "correct the host in --url"
        if isinstance(cause, ssl.SSLCertVerificationError):
            said = cause.verify_message or str(cause)
            return (
                f"{url}: its certificate is not trusted: {said}",
                "mend the certificate, or name its authority in SSL_CERT_FILE",
            )
        if isinstance(cause, ssl.SSLError):
            return f"{url}: no TLS there: {cause.reason or cause}", "http:// in --url, or the port that speaks TLS"
        if isinstance(cause, ConnectionRefusedError):
            return f"{url} refuses the connection", "start nginx or a replica there, or correct --url"
    if isinstance(error, httpx.RemoteProtocolError):
        return (
            f"{url} does not answer as HTTP does: {error}",
            "https:// in --url for a port that speaks TLS; else the log there",
        )
    return f"{url}: {str(error) or type(error).__name__}", "correct --url, and see that a server runs there"


def _all_causes(error: BaseException) -> Iterator[BaseException]:
    for cause in causes(error):
        yield cause
        if isinstance(cause, BaseExceptionGroup):
            for part in cause.exceptions:
                yield from _all_causes(part)
