"""Health of one stream, as the gate and the lamps see it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["StreamClock", "StreamFinding", "StreamHealth"]


@dataclass(frozen=True, slots=True)
class StreamFinding:
    """Something about a stream that looks wrong although its data can be read: it degrades what rests on it.

    Attributes
    ----------
    code : str
        Stable name, such as ``image_mirrored``.
    seen, value, limit, what_to_do : str
        What was seen, the value, what is usual, and what the person does.
    by_every_item : bool
        It says something of the sender only when every item of the stream has it: one item may have it by chance.
    """

    code: str
    seen: str
    value: str
    limit: str
    what_to_do: str
    by_every_item: bool = False

    @property
    def text(self) -> str:
        """All of it in one line, without the stream's name."""
        return f"{self.seen} ({self.value}; limit: {self.limit}). {self.what_to_do}"


@dataclass(frozen=True, slots=True)
class StreamClock:
    """Stamps of one device against the local clock; every number None before the first stamp.

    Attributes
    ----------
    offset_ms : float or None
        Sender's clock minus the local UTC clock, less the smallest delay seen: positive for a sender that is ahead.
        Against the local monotonic clock where UTC is not known.
    lag_ms : float or None
        Smallest delay of this device above the smallest of all devices of its source.
    jitter_ms : float or None
        95th percentile of the delay above the device's own smallest, over the last messages.
    drift_ppm : float or None
        How much faster the sender's clock runs; None before 10 s.
    steps : int
        How often the sender's clock was found to have been set, since the start.
    shift_ms : float or None
        How much later than before the device's data comes by now: near zero in health.
    """

    offset_ms: float | None
    lag_ms: float | None
    jitter_ms: float | None
    drift_ppm: float | None
    steps: int
    shift_ms: float | None


@dataclass(frozen=True, slots=True)
class StreamHealth:
    """One stream: a tool's poses or a device's images.

    ``state`` is one of ``waiting`` (nothing yet), ``live``, ``stale`` (age above the first limit), ``lost`` (the
    tracker says it does not see the tool, or silence although the link speaks), ``link_lost`` (socket closed or
    silent link). ``rejected`` counts poses whose time was not after the one before, ``refused`` those that were no
    rigid transform or not to be believed. ``reconnects`` is False where a lost connection waits for the operator.
    """

    name: str
    kind: str
    state: str
    rate_hz: float
    nominal_hz: float
    age_ms: float
    received: int
    dropped: int
    gaps: int
    stale_ms: float
    lost_ms: float
    detail: str = ""
    rejected: int = 0
    refused: int = 0
    clock: StreamClock | None = None
    findings: tuple[StreamFinding, ...] = ()
    reconnects: bool = True

    @property
    def reconnect_text(self) -> str:
        """How a lost connection comes back, for a person."""
        return "it reconnects by itself" if self.reconnects else "then press K to connect again"
