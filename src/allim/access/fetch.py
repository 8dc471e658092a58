"""Read a small HTTP answer within a limit of bytes; the caller sets the deadline."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx


async def read_bounded(client: "httpx.AsyncClient", request: "httpx.Request", max_bytes: int) -> bytes:
    """Return the body of an answer with status 200. Redirects are not followed.

    Raises: ValueError for another status, a compressed answer or one of more than `max_bytes`; httpx.HTTPError.
    """
    response = await client.send(request, stream=True, follow_redirects=False)
    content = bytearray()
    try:
        if response.status_code != 200:
            raise ValueError(f"HTTP status {response.status_code}")
        if "content-encoding" in response.headers:
            raise ValueError("compressed, which was not asked for: a few bytes may become very many")
        async for chunk in response.aiter_bytes():
            content += chunk
            if len(content) > max_bytes:
                raise ValueError(f"more than {max_bytes} bytes")
    finally:
        await response.aclose()
    return bytes(content)
