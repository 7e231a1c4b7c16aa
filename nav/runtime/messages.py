"""What a source delivers: decoded messages, each with its times, and the protocol that every source follows.

Nothing is re-stamped on the way: ``sender_ns`` stays as received, ``arrival_ns`` is taken once, when the last byte of
the message was read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nav.geometry.poses import PoseStatus
from nav.guidance.health import StreamFinding

__all__ = [
    "ImageMessage",
    "LinkMessage",
    "LinkState",
    "Message",
    "MessageSink",
    "PoseMessage",
    "Source",
    "StatusMessage",
    "TextMessage",
    "ToolReport",
    "UnusedMessage",
]


@dataclass(frozen=True, slots=True)
class Message:
    """Common part of all messages.

    Attributes
    ----------
    source : str
        Name of the source in the room configuration.
    sequence : int
        Number of the message within its source, from 0, never reused after a reconnect.
    arrival_ns : int
        Local monotonic clock (`nav.runtime.clock`) when the last byte was received.
    device : str
        Device name as on the wire.
    sender_ns : int or None
        The sender's stamp, UTC ns since 1970, None when it is zero (unused).
    metadata : dict
        Header metadata (v2+), text values.
    """

    source: str
    sequence: int
    arrival_ns: int
    device: str
    sender_ns: int | None
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ToolReport:
    """One tool in one report: ``matrix`` (4, 4) float64 mm as on the wire, or None when the tool is not seen.

    ``name`` is the transform name in full (``NeedleToTracker``), after the room's device-name mapping. ``problem`` says
    why the driver itself refused the matrix (then the status is INVALID). ``status_stated``: the sender stated the
    status; False: it stated none, which is read as OK.
    """

    name: str
    status: PoseStatus
    matrix: NDArray[np.float64] | None
    problem: str = ""
    status_stated: bool = False


@dataclass(frozen=True, slots=True)
class PoseMessage(Message):
    """TRANSFORM, POSITION (one tool) or TDATA (several)."""

    tools: tuple[ToolReport, ...] = ()


@dataclass(frozen=True, slots=True)
class ImageMessage(Message):
    """An image: ``array`` (k, j, i) or (k, j, i, components), ``mm_from_index`` (4, 4) at voxel centres.

    The driver has dealt with centre-of-image origin, endianness, and the RAS/LPS flag: ``mm_from_index`` is RAS-like mm
    in the frame the room's configuration names for this device. When only a part of a larger image was sent,
    ``index_offset`` is the (i, j, k) index of its first voxel there: ``mm_from_index`` includes it, a pixel calibration
    does not (add it to the index before applying one). ``findings``: what looks wrong in it although it can be read.
    """

    array: NDArray[np.generic] = field(default_factory=lambda: np.zeros((1, 1, 1), np.uint8))
    mm_from_index: NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    index_offset: tuple[int, int, int] = (0, 0, 0)
    findings: tuple[StreamFinding, ...] = ()


@dataclass(frozen=True, slots=True)
class StatusMessage(Message):
    """STATUS: code 1 is OK (PLUS sends it as keep-alive)."""

    code: int = 1
    subcode: int = 0
    error_name: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class TextMessage(Message):
    """STRING."""

    text: str = ""


@dataclass(frozen=True, slots=True)
class UnusedMessage(Message):
    """A well-framed message of a type this program does not use, or one whose content was refused (``problem``)."""

    type_name: str = ""
    problem: str = ""


class LinkState(Enum):
    """State of the connection itself."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    CLOSED = "closed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class LinkMessage(Message):
    """The link changed: connected, closed by the peer, framing error (then the socket is closed and reopened)."""

    state: LinkState = LinkState.CONNECTING
    detail: str = ""


class MessageSink(Protocol):
    """Where a source puts what it receives. Called from the source's own reader thread; must return at once."""

    def deliver(self, message: Message, raw: bytes | memoryview | None) -> None:
        """Take one message. ``raw`` holds the bytes as received, read-only (None for `LinkMessage`)."""


class Source(Protocol):
    """A source of messages with its own reader thread."""

    name: str

    def start(self, sink: MessageSink) -> None:
        """Start reading; returns at once. Connection trouble is delivered as `LinkMessage`, never raised here."""

    def stop(self) -> None:
        """Stop and join the reader thread (bounded: 2 s). Safe to call twice."""
