"""Health of one stream, as the gate and the lamps see it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["StreamHealth"]


@dataclass(frozen=True, slots=True)
class StreamHealth:
    """One stream: a tool's poses or a device's images.

    ``state`` is one of ``waiting`` (nothing yet), ``live``, ``stale`` (age above the first limit), ``lost`` (the
    tracker says it does not see the tool, or silence although the link speaks), ``link_lost`` (socket closed or
    silent link).
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
