"""The time-indexed graph of frames: static edges (calibrations, registrations) and moving edges (pose buffers)."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from nav.geometry.frames import FrameNameError, TransformName, check_frame_name
from nav.geometry.poses import NoPoseYet, PoseBuffer, PoseSample, TimedPose
from nav.geometry.rigid import Rigid

__all__ = ["FrameGraph", "StaticEdge"]


@dataclass(frozen=True, slots=True)
class StaticEdge:
    """A transform that holds until it is replaced, and where it comes from (shown to the person)."""

    transform: Rigid
    provenance: str
    generation: int = 0


class FrameGraph:
    """Joins frames over time. Thread-safe; a lookup works on one consistent set of edges.

    Static and moving edges stand behind one interface. A pair of frames holds one edge; replacing a static edge needs
    a higher generation, so that a superseded result arriving late cannot win.
    """

    def __init__(self) -> None:
        self._static: dict[frozenset[str], StaticEdge] = {}
        self._moving: dict[frozenset[str], PoseBuffer] = {}
        self._neighbours: dict[str, list[str]] = {}
        self._paths: dict[tuple[str, str], tuple[TransformName, ...]] = {}
        self._lock = threading.RLock()

    def set_static(self, transform: Rigid, provenance: str, generation: int = 0) -> bool:
        """Place or replace a static edge; False when a newer generation already stands there."""
        key = frozenset(transform.name)
        with self._lock:
            if key in self._moving:
                raise FrameNameError(f"{transform.name}: this edge is a moving one already")
            old = self._static.get(key)
            if old is not None and old.generation > generation:
                return False
            self._static[key] = StaticEdge(transform, provenance, generation)
            self._join(transform.name)
            return True

    def remove_static(self, name: TransformName) -> None:
        """Take a static edge away (no effect when absent)."""
        with self._lock:
            if self._static.pop(frozenset(name), None) is not None:
                self._paths.clear()
                self._neighbours[name.from_frame].remove(name.to_frame)
                self._neighbours[name.to_frame].remove(name.from_frame)

    def add_moving(self, buffer: PoseBuffer) -> None:
        """Add a moving edge."""
        key = frozenset(buffer.name)
        with self._lock:
            if key in self._static or key in self._moving:
                raise FrameNameError(f"{buffer.name}: these two frames are joined already")
            self._moving[key] = buffer
            self._join(buffer.name)

    def append(self, name: TransformName, sample: PoseSample) -> bool:
        """Keep a sample of a moving edge."""
        with self._lock:
            buffer = self._moving.get(frozenset(name))
        if buffer is None or buffer.name != name:
            raise FrameNameError(f"{name}: no such moving edge")
        return buffer.append(sample)

    def static(self, name: TransformName) -> StaticEdge | None:
        """The static edge between the two frames of ``name`` (either direction), if any."""
        with self._lock:
            return self._static.get(frozenset(name))

    def buffer(self, name: TransformName) -> PoseBuffer | None:
        """The moving edge between the two frames of ``name`` (either direction), if any."""
        with self._lock:
            return self._moving.get(frozenset(name))

    def _join(self, name: TransformName) -> None:
        self._paths.clear()
        for a, b in ((name.from_frame, name.to_frame), (name.to_frame, name.from_frame)):
            near = self._neighbours.setdefault(a, [])
            if b not in near:
                near.append(b)

    def path(self, to_frame: str, from_frame: str) -> tuple[TransformName, ...]:
        """The shortest chain, listed from ``to_frame`` towards ``from_frame``; `NoPoseYet` when none joins them."""
        with self._lock:
            known_path = self._paths.get((to_frame, from_frame))
            if known_path is not None:
                return known_path
            check_frame_name(to_frame)
            check_frame_name(from_frame)
            previous: dict[str, str] = {to_frame: ""}
            queue = deque([to_frame])
            while queue and from_frame not in previous:
                frame = queue.popleft()
                for near in self._neighbours.get(frame, ()):
                    if near not in previous:
                        previous[near] = frame
                        queue.append(near)
            if from_frame not in previous:
                known = ", ".join(sorted(self._neighbours)) or "none"
                raise NoPoseYet(f"no chain of transforms joins {from_frame} to {to_frame}; frames known: {known}")
            chain: list[TransformName] = []
            frame = from_frame
            while frame != to_frame:
                chain.append(TransformName(frame, previous[frame]))
                frame = previous[frame]
            chain.reverse()
            return self._paths.setdefault((to_frame, from_frame), tuple(chain))

    def moving_on_path(self, to_frame: str, from_frame: str) -> tuple[PoseBuffer, ...]:
        """The moving edges on the chain between two frames."""
        with self._lock:
            return tuple(
                self._moving[frozenset(step)]
                for step in self.path(to_frame, from_frame)
                if frozenset(step) in self._moving
            )

    def lookup(self, to_frame: str, from_frame: str, time_ns: int) -> TimedPose:
        """The transform from ``from_frame`` to ``to_frame`` at ``time_ns``.

        ``arrival_ns`` of the answer is that of the newest sample used, ``sequence`` the highest one (-1 when the chain
        is static).

        Raises
        ------
        NoPoseYet, TooOld, NotYet, GapTooWide, ToolLost
            The worst edge decides; the message names it.
        """
        with self._lock:
            edges = [
                (step, self._static.get(frozenset(step)), self._moving.get(frozenset(step)))
                for step in self.path(to_frame, from_frame)
            ]
        result: Rigid | None = None
        arrival, sequence = 0, -1
        for step, static, moving in edges:
            if static is not None:
                pose = static.transform
            else:
                assert moving is not None
                timed = moving.at(time_ns)
                pose, arrival, sequence = timed.pose, max(arrival, timed.arrival_ns), max(sequence, timed.sequence)
            if pose.name != step:
                pose = pose.inverse()
            result = pose if result is None else result @ pose
        if result is None:
            raise FrameNameError(f"{from_frame} to {to_frame}: a frame cannot be placed in itself")
        return TimedPose(result, time_ns, arrival, sequence)

    def newest_common_time(self, to_frame: str, from_frame: str) -> int:
        """The latest time at which every moving edge on the chain has a sample; `NoPoseYet` when one has none.

        An edge that is sent only on change holds its newest sample and does not limit the time.
        """
        times: list[int] = []
        held: list[int] = []
        for buffer in self.moving_on_path(to_frame, from_frame):
            newest = buffer.newest()
            if newest is None:
                raise NoPoseYet(f"{buffer.name}: no pose received yet")
            if not buffer.hold_last:
                times.append(newest.acquired_ns)
            else:
                held.append(newest.acquired_ns)
        if not times and not held:
            raise NoPoseYet(f"no moving transform joins {from_frame} to {to_frame}")
        return min(times) if times else max(held)
