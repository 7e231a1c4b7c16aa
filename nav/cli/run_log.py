"""Gathers what the summary needs: ticks from the compute thread, paints from the Qt thread, the truth afterwards."""

from __future__ import annotations

import threading
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nav.cli.versions import software
from nav.config.room import RoomConfig
from nav.runtime.snapshot import NavigationSnapshot
from nav.runtime.streams import StreamSet
from nav.runtime.summary import SummaryBuilder

__all__ = ["RunLog", "Truth", "write_summary"]

#: Tips kept to be paired with the paint that shows them; a snapshot older than this many ticks is not painted any more.
TIPS_KEPT = 2048


class Truth(Protocol):
    """What a simulated room knows: the true tip, and what is going on."""

    def tips_ras(self, local_ns: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n, 3) mm RAS at (n,) local monotonic times."""

    def phase(self, local_ns: int) -> str:
        """Name of the phase."""

    def breath_held(self, local_ns: int) -> bool:
        """Whether the breath is held."""


@dataclass(slots=True)
class RunLog:
    """Gathers ticks (compute thread) and paints (Qt thread) of one run."""

    #: Keep every painted tip, to `compare` with a truth; 40 bytes each.
    keeps_tips: bool = False
    builder: SummaryBuilder = field(default_factory=SummaryBuilder)
    _tips: dict[int, tuple[NDArray[np.float64], int]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _painted_ns: array[int] = field(default_factory=lambda: array("q"))
    _acquired_ns: array[int] = field(default_factory=lambda: array("q"))
    _painted_tips: array[float] = field(default_factory=lambda: array("d"))

    def on_tick(self, snapshot: NavigationSnapshot) -> None:
        """Take a snapshot in."""
        self.builder.add_tick(snapshot)
        if snapshot.guidance is None or not self.keeps_tips:
            return
        with self._lock:
            self._tips[snapshot.sequence] = (snapshot.guidance.tip_ras, snapshot.needle.acquired_ns)
            if len(self._tips) > TIPS_KEPT:
                del self._tips[next(iter(self._tips))]

    def on_painted(self, sequence: int, arrival_ns: int, painted_ns: int) -> None:
        """The tip pane was painted; it counts for rate, age and truth."""
        self.builder.add_paint(painted_ns, arrival_ns or None)
        if not arrival_ns or not self.keeps_tips:
            return
        with self._lock:
            found = self._tips.get(sequence)
        if found is not None:
            tip, acquired_ns = found
            self._painted_ns.append(painted_ns)
            self._acquired_ns.append(acquired_ns)
            self._painted_tips.extend(tip.tolist())

    def compare(self, truth: Truth) -> None:
        """Compare every painted tip with the true tip at the end of its paint, while the breath was held.

        It counts as at rest, or as advancing, when that phase lasted from the acquisition of the pose to the end of its
        paint: the first pictures after a quick move show the end of that move.
        """
        if not self._painted_ns:
            return
        times = np.array(self._painted_ns, dtype=np.int64)
        tips = np.array(self._painted_tips, dtype=np.float64).reshape(-1, 3)
        errors = np.linalg.norm(tips - truth.tips_ras(times), axis=1)
        for painted, acquired, error in zip(self._painted_ns, self._acquired_ns, errors.tolist(), strict=True):
            if not (truth.breath_held(painted) and truth.breath_held(acquired)):
                continue
            phase = truth.phase(painted)
            at_rest = {"rest": True, "advance": False}.get(phase) if truth.phase(acquired) == phase else None
            self.builder.add_truth(error, at_rest=at_rest)


def write_summary(
    out: Path,
    room: RoomConfig,
    streams: StreamSet,
    log: RunLog,
    *,
    sources: dict[str, dict[str, Any]] | None = None,
    room_cpu_cores: float | None = None,
) -> dict[str, Any]:
    """Write ``summary.json`` into ``out`` and return it; ``sources``: what live sources have counted."""
    versions = software(room)
    return log.builder.write(
        out / "summary.json",
        streams=streams.summary(),
        sources=sources,
        version=versions["version"],
        config_sha256=versions["config_sha256"],
        room_cpu_cores=room_cpu_cores,
    )
