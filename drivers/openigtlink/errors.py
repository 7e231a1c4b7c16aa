"""The two trees of errors: the bytes are wrong, or the peer is gone; and what cannot be sent."""

from __future__ import annotations

from typing import Self

__all__ = ["ContentError", "EncodeError", "PeerGone", "WireError"]


class WireError(ValueError):
    """The bytes are wrong.

    Attributes
    ----------
    what : str
        The field that is wrong.
    offset : int
        Byte within the message at which the wrong field starts.
    value, limit : object
        What stands there, and what may.
    """

    def __init__(self, what: str, *, offset: int, value: object, limit: object) -> None:
        self.what, self.offset, self.value, self.limit = what, offset, value, limit
        super().__init__(f"{what}: {value!r} at byte {offset}, allowed: {limit}")

    def moved(self, by: int) -> Self:
        """The same error, ``by`` bytes further on: in a file, or behind an extended header."""
        return type(self)(self.what, offset=self.offset + by, value=self.value, limit=self.limit) if by else self


class ContentError(WireError):
    """A well-framed message whose content is wrong; the stream itself is still in step."""


class PeerGone(ConnectionError):
    """The peer closed, reset or stalled the connection; ``pending`` bytes of an unfinished message are lost."""

    def __init__(self, why: str, pending: int = 0) -> None:
        self.pending = pending
        super().__init__(f"{why}; {pending} bytes of an unfinished message are lost" if pending else why)


class EncodeError(ValueError):
    """A message that cannot be put on the wire as it is; names the field, its value and the limit."""
