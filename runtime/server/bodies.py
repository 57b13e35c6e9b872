"""How much a body may hold, before it is parsed: in Python, a few bytes of JSON become many times as much memory."""

from .errors import ApiError

MOST_PARTS = 2**16
"""Objects, lists, and members of objects: 4,096 messages of tool calls, as clients write them, have less."""

_MARKS = (b"{", b"[", b":")


def check_parts(body: bytes) -> None:
    """Refuse a body of JSON that would take far more time and memory than its bytes.

    Raises:
        ApiError: it holds more objects, lists and members than the limit (status 413).

    """
    if _marks(body) <= MOST_PARTS:  # most bodies: the texts need not be told apart
        return
    # Without escapes, every other quote ends a text.
    outside = body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2]
    count = _marks(b"".join(outside))
    if count > MOST_PARTS:
        raise ApiError(
            413,
            f"the request's body has {count:,} objects, lists and members, more than the limit of {MOST_PARTS:,}; "
            "make it smaller",
            code="request_too_large",
        )


def _marks(text: bytes) -> int:
    return sum(map(text.count, _MARKS))
