"""Poses with their status and times, the buffer that keeps them, and the refusals a lookup can end in.

A pose is never without its status, its times and its age. Nothing here extrapolates, re-stamps, or bridges a gap wider
than the stream's own limit. A lost tool is a `PoseSample` without a pose: no identity, no last value.
"""

from __future__ import annotations

import bisect
import math
import threading
from collections import deque
from dataclasses import dataclass
from enum import Enum

import numpy as np

from nav.geometry.frames import TransformName
from nav.geometry.rigid import Rigid

__all__ = [
    "GapTooWide",
    "NoPoseYet",
    "NotYet",
    "PoseBuffer",
    "PoseRefusal",
    "PoseSample",
    "PoseStatus",
    "TimedPose",
    "TooOld",
    "ToolLost",
    "interpolate",
]


class PoseStatus(Enum):
    """Tool status in PLUS terms. Only `OK` carries a pose."""

    OK = "OK"
    MISSING = "MISSING"
    OUT_OF_VIEW = "OUT_OF_VIEW"
    OUT_OF_VOLUME = "OUT_OF_VOLUME"
    SWITCH1_IS_ON = "SWITCH1_IS_ON"
    SWITCH2_IS_ON = "SWITCH2_IS_ON"
    SWITCH3_IS_ON = "SWITCH3_IS_ON"
    REQ_TIMEOUT = "REQ_TIMEOUT"
    INVALID = "INVALID"
    PATH_NOT_FOUND = "PATH_NOT_FOUND"
    UNKNOWN = "UNKNOWN"

    @classmethod
    def parse(cls, text: str) -> PoseStatus:
        """Case-insensitive; anything unknown is `UNKNOWN`, never `OK`."""
        try:
            return cls[text.strip().upper()]
        except KeyError:
            return cls.UNKNOWN


@dataclass(frozen=True, slots=True)
class PoseSample:
    """One tracker report of one tool.

    Attributes
    ----------
    pose : Rigid or None
        None exactly when ``status`` is not OK.
    acquired_ns : int
        When the sensor saw the tool, local monotonic clock, ns (sender stamp mapped to local time).
    arrival_ns : int
        When the last byte arrived, local monotonic clock, ns.
    sender_ns : int or None
        The sender's own stamp as received, UTC ns; None if the sender stamps nothing.
    sequence : int
        Message number within its source, from 0.
    """

    pose: Rigid | None
    status: PoseStatus
    acquired_ns: int
    arrival_ns: int
    sequence: int
    sender_ns: int | None = None

    def __post_init__(self) -> None:
        if (self.pose is None) == (self.status is PoseStatus.OK):
            raise ValueError(f"pose sample #{self.sequence}: status {self.status.value} and pose contradict each other")


@dataclass(frozen=True, slots=True)
class TimedPose:
    """The answer to a lookup: a pose at ``time_ns``, and the arrival of the newest sample that it rests on."""

    pose: Rigid
    time_ns: int
    arrival_ns: int
    sequence: int


class PoseRefusal(LookupError):
    """Why there is no pose at the wanted time. ``code`` is stable; the message carries both times."""

    code = "refused"


class NoPoseYet(PoseRefusal):
    """The stream has not delivered any valid pose, or no chain joins the two frames."""

    code = "no_pose_yet"


class TooOld(PoseRefusal):
    """The wanted time is before everything kept, or the newest pose is older than the limit."""

    code = "too_old"


class NotYet(PoseRefusal):
    """The wanted time is after the newest pose: wait for the bracketing sample."""

    code = "not_yet"


class GapTooWide(PoseRefusal):
    """The two neighbouring samples lie further apart than the stream's limit."""

    code = "gap"


class ToolLost(GapTooWide):
    """The tracker says that it does not see the tool at the wanted time."""

    code = "tool_lost"


def interpolate(a: Rigid, b: Rigid, fraction: float) -> Rigid:
    """Pose between ``a`` (0) and ``b`` (1): linear in translation, geodesic in rotation (slerp)."""
    if fraction <= 0.0:
        return a
    if fraction >= 1.0:
        return b
    m = np.empty((4, 4))
    m[:3, :3] = _slerp(_quaternion(a.rotation.tolist()), _quaternion(b.rotation.tolist()), fraction)
    m[:3, 3] = (1.0 - fraction) * a.translation + fraction * b.translation
    m[3] = (0.0, 0.0, 0.0, 1.0)
    m.setflags(write=False)
    return Rigid(a.name, m)


_Quaternion = tuple[float, float, float, float]


def _quaternion(r: list[list[float]]) -> _Quaternion:
    """Unit quaternion (w, x, y, z) of a rotation matrix, by its largest component (Shepperd 1978).

    Plain floats: on 3×3 matrices this takes a tenth of what array libraries take, and every lookup needs it.
    """
    (a, b, c), (d, e, f), (g, h, i) = r
    trace = a + e + i
    if trace >= max(a, e, i):
        q = (1.0 + trace, h - f, c - g, d - b)
    elif a >= max(e, i):
        q = (h - f, 1.0 + a - e - i, b + d, c + g)
    elif e >= i:
        q = (c - g, b + d, 1.0 - a + e - i, f + h)
    else:
        q = (d - b, c + g, f + h, 1.0 - a - e + i)
    n = math.sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3])
    return (q[0] / n, q[1] / n, q[2] / n, q[3] / n)


def _slerp(p: _Quaternion, q: _Quaternion, fraction: float) -> list[list[float]]:
    """Rotation matrix on the shorter arc from ``p`` to ``q`` (Shoemake 1985)."""
    dot = p[0] * q[0] + p[1] * q[1] + p[2] * q[2] + p[3] * q[3]
    sign = -1.0 if dot < 0.0 else 1.0
    angle = math.acos(min(1.0, abs(dot)))
    if angle < 1e-6:
        u, v = 1.0 - fraction, sign * fraction
    else:
        u = math.sin((1.0 - fraction) * angle) / math.sin(angle)
        v = sign * math.sin(fraction * angle) / math.sin(angle)
    w, x, y, z = (u * s + v * t for s, t in zip(p, q, strict=True))
    n = 2.0 / (w * w + x * x + y * y + z * z)
    return [
        [1.0 - n * (y * y + z * z), n * (x * y - z * w), n * (x * z + y * w)],
        [n * (x * y + z * w), 1.0 - n * (x * x + z * z), n * (y * z - x * w)],
        [n * (x * z - y * w), n * (y * z + x * w), 1.0 - n * (x * x + y * y)],
    ]


class PoseBuffer:
    """Ring of every sample of one moving edge, ordered by acquisition time. Thread-safe.

    Parameters
    ----------
    name : TransformName
        The edge, from tool to tracker.
    max_gap_ns : int
        Two neighbours further apart than this are never bridged.
    capacity : int
        Samples kept.
    hold_last : bool
        The sender sends only on change: its newest sample holds until the next one, and gaps say nothing. Whether the
        sender still lives is judged by its heartbeat, not here.
    """

    def __init__(self, name: TransformName, *, max_gap_ns: int, capacity: int = 4096, hold_last: bool = False) -> None:
        if max_gap_ns <= 0 or capacity < 2:
            raise ValueError(f"{name}: max_gap_ns {max_gap_ns} and capacity {capacity} must be positive (capacity ≥ 2)")
        self.name = name
        self.max_gap_ns = max_gap_ns
        self.hold_last = hold_last
        self._samples: deque[PoseSample] = deque(maxlen=capacity)
        self._times: deque[int] = deque(maxlen=capacity)
        self._lock = threading.Lock()
        self.rejected_out_of_order = 0

    def append(self, sample: PoseSample) -> bool:
        """Keep ``sample``; False (and counted) when its time is not after the newest kept one."""
        if sample.pose is not None and sample.pose.name != self.name:
            raise ValueError(f"pose {sample.pose.name} does not belong into the buffer of {self.name}")
        with self._lock:
            if self._times and sample.acquired_ns <= self._times[-1]:
                self.rejected_out_of_order += 1
                return False
            self._samples.append(sample)
            self._times.append(sample.acquired_ns)
            return True

    def __len__(self) -> int:
        return len(self._samples)

    def samples(self) -> tuple[PoseSample, ...]:
        """A stable copy of everything kept, oldest first."""
        with self._lock:
            return tuple(self._samples)

    def newest(self) -> PoseSample | None:
        """The newest sample, valid or lost; None before the first."""
        with self._lock:
            return self._samples[-1] if self._samples else None

    def at(self, time_ns: int) -> TimedPose:
        """The pose at ``time_ns``, interpolated between two valid neighbours no further apart than the limit.

        Raises
        ------
        NoPoseYet, TooOld, NotYet, GapTooWide, ToolLost
        """
        with self._lock:
            times, samples = self._times, self._samples
            if not times:
                raise NoPoseYet(f"{self.name}: no pose received yet")
            if time_ns < times[0]:
                raise TooOld(f"{self.name}: wanted {time_ns} ns, the oldest kept is {times[0]} ns")
            if self.hold_last:
                before = after = samples[bisect.bisect_right(times, time_ns) - 1]
            elif time_ns > times[-1]:
                raise NotYet(f"{self.name}: wanted {time_ns} ns, the newest is {times[-1]} ns")
            else:
                hi = bisect.bisect_left(times, time_ns)
                after = samples[hi]
                before = after if times[hi] == time_ns else samples[hi - 1]
        if before.pose is None or after.pose is None:
            lost = before if before.pose is None else after
            raise ToolLost(f"{self.name}: {lost.status.value} at {lost.acquired_ns} ns, wanted {time_ns} ns")
        gap = after.acquired_ns - before.acquired_ns
        if gap > self.max_gap_ns:
            raise GapTooWide(
                f"{self.name}: neighbours at {before.acquired_ns} and {after.acquired_ns} ns lie {gap / 1e6:.1f} ms "
                f"apart, limit {self.max_gap_ns / 1e6:.1f} ms"
            )
        fraction = 0.0 if gap == 0 else (time_ns - before.acquired_ns) / gap
        return TimedPose(
            interpolate(before.pose, after.pose, fraction),
            time_ns,
            max(before.arrival_ns, after.arrival_ns),
            after.sequence,
        )

    def latest(self, now_ns: int, max_age_ns: int) -> TimedPose:
        """The newest pose as it was received, if it is valid and its acquisition is at most ``max_age_ns`` ago.

        Raises
        ------
        NoPoseYet, TooOld, ToolLost
        """
        newest = self.newest()
        if newest is None:
            raise NoPoseYet(f"{self.name}: no pose received yet")
        if newest.pose is None:
            raise ToolLost(f"{self.name}: {newest.status.value} since {newest.acquired_ns} ns")
        age = now_ns - newest.acquired_ns
        if age > max_age_ns:
            raise TooOld(f"{self.name}: newest pose is {age / 1e6:.0f} ms old, limit {max_age_ns / 1e6:.0f} ms")
        return TimedPose(newest.pose, newest.acquired_ns, newest.arrival_ns, newest.sequence)
