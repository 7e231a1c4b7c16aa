"""The only place that reads the time. Everything else is given a `Clock` or a reading of one."""

from __future__ import annotations

import threading
import time
from typing import Protocol

__all__ = ["Clock", "ManualClock", "SystemClock"]


class Clock(Protocol):
    """Where times come from."""

    def now_ns(self) -> int:
        """Local monotonic time, ns. Never steps; its zero has no meaning."""

    def utc_ns(self) -> int:
        """Wall-clock time, ns since 1970 UTC. May step; for file headers and stamps sent to others, never for ages."""


class SystemClock:
    """The machine's clocks. ``CLOCK_MONOTONIC`` is common to all processes of one machine."""

    def now_ns(self) -> int:
        """See `Clock`."""
        return time.monotonic_ns()

    def utc_ns(self) -> int:
        """See `Clock`."""
        return time.time_ns()


class ManualClock:
    """A clock that moves only when told: for tests, replays and virtual trials. Thread-safe.

    Parameters
    ----------
    start_ns : int
        First monotonic reading.
    utc_start_ns : int
        Wall-clock reading at that moment.
    """

    def __init__(self, start_ns: int = 0, utc_start_ns: int = 1_700_000_000_000_000_000) -> None:
        self._now_ns = start_ns
        self._utc_minus_now_ns = utc_start_ns - start_ns
        self._lock = threading.Lock()

    def now_ns(self) -> int:
        """See `Clock`."""
        with self._lock:
            return self._now_ns

    def utc_ns(self) -> int:
        """See `Clock`."""
        with self._lock:
            return self._now_ns + self._utc_minus_now_ns

    def advance(self, ns: int) -> int:
        """Move on by ``ns`` (at least 0) and return the new reading."""
        if ns < 0:
            raise ValueError(f"clock advanced by {ns} ns: a monotonic clock does not go back")
        with self._lock:
            self._now_ns += ns
            return self._now_ns

    def set(self, now_ns: int) -> None:
        """Move to a reading that is not before the present one."""
        with self._lock:
            if now_ns < self._now_ns:
                raise ValueError(f"clock set to {now_ns} ns, it already reads {self._now_ns} ns")
            self._now_ns = now_ns
