"""What a stream's own course tells of it: repeated poses, metres for millimetres, stamps that stand still.

Pure bookkeeping without a clock, fed message by message: live guidance, replay and the inspection of a server
use the same rules.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from nav.guidance.health import StreamFinding

__all__ = [
    "IDENTITY_PROBLEM",
    "HeldWatch",
    "RepeatWatch",
    "ScaleWatch",
    "StampWatch",
    "is_exact_identity",
]

#: Why an exact identity without a status is no pose.
IDENTITY_PROBLEM = (
    "exact identity without a status: taken as not seen (if it is a pose: identity_is_lost = false; to learn the "
    "status from PLUS: header_version = 2)"
)

#: A run of equal poses longer than this is a long one ...
LONG_RUN_NS = 100_000_000
#: ... and a stream whose last `RUNS` runs hold no more than `FEW_LONG_RUNS` long ones has measurement noise: its
#: poses do not repeat unless the sender repeats them. Known after `ENOUGH_RUNS`.
RUNS = 128
ENOUGH_RUNS = 100
FEW_LONG_RUNS = 2

#: No marker is measured within this of the tracker's origin, pose after pose, unless the unit is the metre.
SMALLEST_MM = 2.0
SCALE_POSES = 50

#: So many messages without a stamp, or with the same one, before it is said.
STAMP_MESSAGES = 20
#: What happened once (stamps ran backwards, a clock was set) is said for so long.
NOTICE_NS = 5_000_000_000

#: A stream "only on change" that sends without a pause of `HELD_PAUSE_NS` for so long, so many poses, does not.
HELD_SPAN_NS = 10_000_000_000
HELD_PAUSE_NS = 500_000_000
HELD_POSES = 100

_IDENTITY = np.eye(4)


def is_exact_identity(matrix: NDArray[np.float64]) -> bool:
    """Is every value of a (4, 4) matrix exactly that of the identity?

    No tracker measures a tool at its own origin, turned by nothing, to the last bit; senders use the identity for a
    tool that is not seen (PLUS with ``SendValidTransformsOnly="FALSE"``) and for one that was never set.
    """
    return bool(np.array_equal(matrix, _IDENTITY))


class RepeatWatch:
    """Notices a sender that repeats the last pose with new stamps.

    A pose measured by a tracker has noise in its last bits. How long a bit-identical run may last before it is no
    measurement depends on the tracker (some round, some are asked more often than they measure), so it is learned
    from the stream: `has_noise`.
    """

    def __init__(self) -> None:
        self._content = b""
        self._since_ns = 0
        self._newest_ns = 0
        self._refused, self._refused_ns = b"", 0
        self._long: deque[bool] = deque(maxlen=RUNS)

    def take(self, content: bytes, acquired_ns: int) -> None:
        """One valid pose: its bits (empty: not checked) and local acquisition time, ns."""
        if content != self._content or not content:
            if self._content:
                self._long.append(self._newest_ns - self._since_ns > LONG_RUN_NS)
            self._content, self._since_ns = content, self._first_ns(content, acquired_ns)
            self._refused = b""
        self._newest_ns = acquired_ns

    def refuse(self, content: bytes, acquired_ns: int) -> None:
        """A pose that came too late to be used: sent again with a new stamp, it is no newer than it was here.

        Known until another pose is taken.
        """
        if content and content not in (self._content, self._refused):
            self._refused, self._refused_ns = content, acquired_ns

    def _first_ns(self, content: bytes, acquired_ns: int) -> int:
        return min(acquired_ns, self._refused_ns) if content and content == self._refused else acquired_ns

    def run_ns(self, content: bytes, acquired_ns: int) -> int:
        """For how long the same bits have been coming if ``content`` came at ``acquired_ns``; 0 for new bits."""
        since_ns = self._since_ns if content == self._content else self._first_ns(content, acquired_ns)
        return max(acquired_ns - since_ns, 0) if content else 0

    @property
    def length_ns(self) -> int:
        """Length of the present run, from its first to its newest pose."""
        return self._newest_ns - self._since_ns if self._content else 0

    @property
    def since_ns(self) -> int:
        """Acquisition of the first pose of the present run."""
        return self._since_ns

    @property
    def has_noise(self) -> bool:
        """Have the stream's poses practically always differed?"""
        return len(self._long) >= ENOUGH_RUNS and sum(self._long) <= FEW_LONG_RUNS


class ScaleWatch:
    """Notices poses in metres: every translation within `SMALLEST_MM` of the origin, though the tool moves."""

    def __init__(self) -> None:
        self._count = 0
        self._largest = 0.0
        self._low = np.full(3, np.inf)
        self._high = np.full(3, -np.inf)

    def take(self, matrix: NDArray[np.float64]) -> None:
        """One valid pose, (4, 4) in what should be mm."""
        if self._largest > SMALLEST_MM:
            return  # once beyond: these are mm
        t = matrix[:3, 3]
        self._count += 1
        self._largest = max(self._largest, float(np.abs(t).max()))
        self._low, self._high = np.minimum(self._low, t), np.maximum(self._high, t)

    def finding(self) -> StreamFinding | None:
        """``pose_metres`` when it looks so."""
        if self._count < SCALE_POSES or self._largest > SMALLEST_MM or not (self._high > self._low).any():
            return None
        return StreamFinding(
            "pose_metres",
            f"every one of {self._count} translations lies close to the origin: metres for millimetres?",
            f"{self._largest:.3g} at most",
            f"beyond {SMALLEST_MM:g} mm",
            "Let the sender send mm",
        )


class StampWatch:
    """Notices stamps that are missing, stand still or run backwards."""

    def __init__(self) -> None:
        self._missing = 0
        self._stuck = 0
        self._last_ns: int | None = None
        self._back_ns: int | None = None
        self._back_ms = 0.0
        self.backwards = 0

    def take(self, sender_ns: int | None, arrival_ns: int) -> None:
        """One message of one device: its stamp (None or 0: none) and local arrival, ns."""
        if not sender_ns:
            self._missing += 1
            return
        self._missing = 0
        last = self._last_ns
        if last is not None:
            self._stuck = self._stuck + 1 if sender_ns == last else 0
            if sender_ns < last:
                self.backwards += 1
                self._back_ns, self._back_ms = arrival_ns, (last - sender_ns) * 1e-6
        self._last_ns = sender_ns

    def findings(self, now_ns: int) -> list[StreamFinding]:
        """``stamp_missing``, ``stamp_stuck``, ``stamp_backwards``."""
        found = []
        if self._missing >= STAMP_MESSAGES:
            found.append(
                StreamFinding(
                    "stamp_missing",
                    "no time stamps: ages count from arrival, delays before it are not seen",
                    f"{self._missing} messages",
                    f"{STAMP_MESSAGES} messages",
                    'Let the sender stamp, or set stamps = "arrival"',
                )
            )
        elif self._stuck >= STAMP_MESSAGES:
            found.append(
                StreamFinding(
                    "stamp_stuck",
                    "the time stamp stands still",
                    f"{self._stuck + 1} messages",
                    f"{STAMP_MESSAGES} messages",
                    'Check the sender, or set stamps = "arrival"',
                )
            )
        if self._back_ns is not None and now_ns - self._back_ns <= NOTICE_NS:
            found.append(
                StreamFinding(
                    "stamp_backwards",
                    f"time stamps ran backwards, {self.backwards} times so far; such data is not used",
                    f"-{self._back_ms:.3g} ms",
                    "forward only",
                    "Check the sender's clock; give each device one sender only",
                )
            )
        return found


class HeldWatch:
    """Notices a tool with ``hold_last`` whose poses come steadily all the same."""

    def __init__(self) -> None:
        self._since_ns = 0
        self._last_ns: int | None = None
        self._count = 0

    def take(self, arrival_ns: int) -> None:
        """One pose arrived."""
        if self._last_ns is None or arrival_ns - self._last_ns > HELD_PAUSE_NS:
            self._since_ns, self._count = arrival_ns, 0
        self._last_ns = arrival_ns
        self._count += 1

    def finding(self) -> StreamFinding | None:
        """``hold_last_steady`` when it looks so."""
        last = self._last_ns
        if last is None or self._count < HELD_POSES or last - self._since_ns < HELD_SPAN_NS:
            return None
        rate_hz = (self._count - 1) * 1e9 / (last - self._since_ns)
        return StreamFinding(
            "hold_last_steady",
            "hold_last is set, but poses come steadily: a lost tool would keep its last pose",
            f"{rate_hz:.1f} per second for {(last - self._since_ns) * 1e-9:.0f} s",
            f"a pause of {HELD_PAUSE_NS / 1e6:.0f} ms within {HELD_SPAN_NS * 1e-9:.0f} s",
            "Remove hold_last",
        )
