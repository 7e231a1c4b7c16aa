"""The simulated tracker: from true poses to what an optical tracker reports, as pure functions of the script's time.

Random numbers are drawn per block of time from a generator seeded by (seed, purpose, block), so any stretch of a run
can be computed by itself and always comes out the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from drivers.room.geometry import TOOLS
from drivers.room.operator import Script
from nav.config.simulation import SimulationConfig

__all__ = ["RATE_HZ", "FrameBlock", "Measurement", "TrackerSimulator", "delays", "measurements"]

F64 = NDArray[np.float64]

#: Sampling rate of the tracker.
RATE_HZ = 60.0

_BLOCK = 60
_DROPOUT_WINDOW_S = 2.0
#: Keeps seeds of blocks before script time 0 positive.
_OFFSET = 1 << 24


@dataclass(frozen=True, slots=True, eq=False)
class Measurement:
    """One tool in one frame of the tracker.

    Attributes
    ----------
    frame : int
        Number of the frame, from script time 0.
    acquired_s, sent_s : float
        Script time of the exposure, and of the moment the message leaves the device (latency included).
    tool : str
    matrix : (4, 4) float64
        ``tracker_from_tool``, mm, with noise.
    """

    frame: int
    acquired_s: float
    sent_s: float
    tool: str
    matrix: F64


@dataclass(frozen=True, slots=True, eq=False)
class FrameBlock:
    """A second of frames: numbers (n,), times (n,), matrices (n, 4 tools, 4, 4), and which tool was seen (n, 4)."""

    frames: NDArray[np.int64]
    acquired_s: F64
    sent_s: F64
    matrices: F64
    seen: NDArray[np.bool_]


def _rng(seed: int, purpose: int, block: int, extra: int = 0) -> np.random.Generator:
    return np.random.default_rng([seed, purpose, block + _OFFSET, extra])


def _rotations(vectors: F64) -> F64:
    """(n, 3) rotation vectors (rad) to (n, 3, 3), Rodrigues."""
    angle = np.linalg.norm(vectors, axis=1)
    safe = np.where(angle > 1e-12, angle, 1.0)
    axis = vectors / safe[:, None]
    k = np.zeros((len(vectors), 3, 3))
    k[:, 0, 1], k[:, 0, 2], k[:, 1, 2] = -axis[:, 2], axis[:, 1], -axis[:, 0]
    k -= k.transpose(0, 2, 1)
    s, c = np.sin(angle)[:, None, None], (1.0 - np.cos(angle))[:, None, None]
    return np.asarray(np.eye(3) + s * k + c * (k @ k))


def delays(simulation: SimulationConfig, seed: int, purpose: int, block: int, count: int) -> F64:
    """(count,) s: transport delays of one block, uniform within latency ± spread."""
    low = (simulation.latency_ms - simulation.latency_spread_ms) / 1000.0
    high = (simulation.latency_ms + simulation.latency_spread_ms) / 1000.0
    return _rng(seed, purpose, block).uniform(low, high, count)


class TrackerSimulator:
    """The tracker watching one script."""

    def __init__(self, script: Script, seed: int | None = None) -> None:
        self.script = script
        self.simulation = script.setup.simulation
        self.seed = script.seed if seed is None else seed
        self._tracker_from_ras = np.linalg.inv(script.geometry.ras_from_tracker)
        self._timing = lru_cache(maxsize=8)(self._timing_of)
        self.block = lru_cache(maxsize=8)(self._block)

    def _timing_of(self, block: int) -> tuple[F64, F64]:
        """Exposure and sending times of a block, the latter before the order on the wire is kept."""
        jitter = _rng(self.seed, 1, block).standard_normal(_BLOCK) * self.simulation.sampling_jitter_ms / 1000.0
        limit = 0.3 / RATE_HZ
        acquired = (block * _BLOCK + np.arange(_BLOCK)) / RATE_HZ + np.clip(jitter, -limit, limit)
        return acquired, acquired + delays(self.simulation, self.seed, 2, block, _BLOCK)

    def _lost(self, tool: int, times: F64) -> NDArray[np.bool_]:
        """(n,): the tool is in a drop-out at ``times`` (Poisson starts, uniform lengths)."""
        sim = self.simulation
        out = np.zeros(len(times), dtype=bool)
        if sim.dropout_fraction == 0.0:
            return out
        mean_s = 0.0005 * (sim.dropout_min_ms + sim.dropout_max_ms)
        # Share of time covered by a Poisson process of intervals: 1 - exp(-rate * mean length).
        rate = -np.log1p(-sim.dropout_fraction) / mean_s
        first = int(np.floor((times[0] - 1.0) / _DROPOUT_WINDOW_S))
        last = int(np.floor(times[-1] / _DROPOUT_WINDOW_S))
        for window in range(first, last + 1):
            rng = _rng(self.seed, 3, window, tool)
            count = int(rng.poisson(rate * _DROPOUT_WINDOW_S))
            starts = (window + rng.uniform(0.0, 1.0, count)) * _DROPOUT_WINDOW_S
            lengths = rng.uniform(sim.dropout_min_ms, sim.dropout_max_ms, count) / 1000.0
            for start, length in zip(starts, lengths, strict=True):
                out |= (times >= start) & (times < start + length)
        return out

    def _block(self, block: int) -> FrameBlock:
        acquired, sent = self._timing(block)
        # One connection keeps its order: a frame never overtakes the one before it.
        earlier = float(self._timing(block - 1)[1][-3:].max())
        sent = np.maximum.accumulate(np.maximum(sent, earlier))
        count = len(acquired)
        matrices = self._tracker_from_ras @ self.script.tools(acquired)
        rng = _rng(self.seed, 4, block)
        shift = rng.standard_normal((count, len(TOOLS), 3)) * self.simulation.tracker_noise_mm
        turn = rng.standard_normal((count * len(TOOLS), 3)) * np.deg2rad(self.simulation.tracker_noise_deg)
        matrices[:, :, :3, :3] = matrices[:, :, :3, :3] @ _rotations(turn).reshape(count, len(TOOLS), 3, 3)
        matrices[:, :, :3, 3] += shift
        seen = np.stack([~self._lost(tool, acquired) for tool in range(len(TOOLS))], axis=1)
        matrices.setflags(write=False)
        return FrameBlock(block * _BLOCK + np.arange(count), acquired, sent, matrices, seen)


def measurements(script: Script, start_s: float, end_s: float, seed: int | None = None) -> Iterator[Measurement]:
    """Everything the tracker reports with exposures in ``start_s <= t < end_s`` (script time), in order.

    A tool that is not seen is left out, as PLUS does. Needs no sockets and no clock: runs on a virtual one.

    Parameters
    ----------
    script : Script
        What happens; its geometry and setup are used.
    seed : int, optional
        Default: the script's.
    """
    simulator = TrackerSimulator(script, seed)
    # Jitter moves an exposure by at most a third of a period, so only the blocks at the ends need a look.
    for number in range(int(np.floor(start_s)) - 1, int(np.ceil(end_s)) + 1):
        block = simulator.block(number)
        for n in np.flatnonzero((block.acquired_s >= start_s) & (block.acquired_s < end_s)):
            for tool, name in enumerate(TOOLS):
                if block.seen[n, tool]:
                    yield Measurement(
                        int(block.frames[n]),
                        float(block.acquired_s[n]),
                        float(block.sent_s[n]),
                        name,
                        block.matrices[n, tool],
                    )
