"""The ground truth of a simulated run: written beside the run, and computed again from its header at any time."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from drivers.room.geometry import PatientGeometry, RoomError, RoomSetup
from drivers.room.operator import Script
from nav.geometry.rigid import Rigid
from nav.runtime.events import event_to_dict

__all__ = ["GroundTruth", "write_truth"]

_FORMAT = "ablation-nav ground truth"
_SAMPLE_HZ, _LONG_SAMPLE_HZ, _LONG_S = 120.0, 20.0, 600.0


@dataclass(frozen=True, slots=True, eq=False)
class GroundTruth:
    """What really happened, on the local monotonic clock.

    Attributes
    ----------
    script : Script
    begin_ns : int
        Local monotonic time of script time 0.
    clock_offset_ns : int
        Sender stamp (UTC ns) minus local monotonic time.
    """

    script: Script
    begin_ns: int
    clock_offset_ns: int

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file written by `write_truth`.

        Raises
        ------
        RoomError
            When it is not one.
        """
        try:
            with Path(path).open(encoding="utf-8") as file:
                header = json.loads(file.readline())
            if header.get("format") != _FORMAT:
                raise ValueError(f"its first line is not a header of {_FORMAT!r}")
            script = Script.build(
                PatientGeometry.from_dict(header["geometry"]),
                RoomSetup.from_dict(header["setup"]),
                float(header["duration_s"]),
                int(header["seed"]),
            )
            return cls(script, int(header["begin_ns"]), int(header["clock_offset_ns"]))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise RoomError(f"ground truth {path}: {error}") from None

    def script_s(self, local_ns: int) -> float:
        """Script time of a local time."""
        return (local_ns - self.begin_ns) * 1e-9

    def local_ns(self, script_s: float) -> int:
        """Local time of a script time."""
        return self.begin_ns + round(script_s * 1e9)

    def tip_ras(self, local_ns: int) -> NDArray[np.float64]:
        """(3,) mm: the needle's tip in RAS (tissue at exhale lies where the CT shows it)."""
        return np.asarray(self.script.needle_tip(np.array([self.script_s(local_ns)]))[0, :3, 3])

    def tips_ras(self, local_ns: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n, 3) mm: the same for many increasing times."""
        times = np.asarray((np.asarray(local_ns, dtype=np.int64) - self.begin_ns) * 1e-9, dtype=np.float64)
        return np.asarray(self.script.needle_tip(times)[:, :3, 3])

    def needle_axis(self, local_ns: int) -> NDArray[np.float64]:
        """(3,) unit direction of advance in RAS."""
        return np.asarray(self.script.needle_tip(np.array([self.script_s(local_ns)]))[0, :3, 2])

    def phase(self, local_ns: int) -> str:
        """Name of the `drivers.room.operator.Phase` at a local time, such as ``rest``; empty outside the script."""
        phase = self.script.phase_at(self.script_s(local_ns))
        return phase.name if phase is not None else ""

    def breath_held(self, local_ns: int) -> bool:
        """Whether the breath is held."""
        return self.script.held(self.script_s(local_ns))

    @property
    def ras_from_reference(self) -> Rigid:
        """The true registration."""
        return self.script.geometry.ras_from_reference

    @property
    def target_ras(self) -> NDArray[np.float64]:
        """(3,) mm: the target at exhale."""
        return np.array(self.script.geometry.target)


def write_truth(path: Path, truth: GroundTruth) -> None:
    """Write the ground truth as JSON lines: a header (enough to compute everything again), phases, events, samples.

    Samples come at 120 Hz (20 Hz for runs over 10 min): local time ns, script time s, tip RAS mm, breath (0 exhale to
    1), held, phase.
    """
    script = truth.script
    header = {
        "format": _FORMAT,
        "version": 1,
        "begin_ns": truth.begin_ns,
        "clock": "CLOCK_MONOTONIC of this computer, ns",
        "clock_offset_ns": truth.clock_offset_ns,
        "duration_s": script.duration_s,
        "seed": script.seed,
        "ras_from_reference": script.geometry.ras_from_reference.matrix.tolist(),
        "touched_ras": script.touched.tolist(),
        "geometry": script.geometry.to_dict(),
        "setup": script.setup.to_dict(),
    }
    rate = _SAMPLE_HZ if script.duration_s <= _LONG_S else _LONG_SAMPLE_HZ
    times = np.arange(0.0, script.duration_s, 1.0 / rate)
    tips, breath = script.needle_tip(times)[:, :3, 3], script.breath(times)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    with temporary.open("w", encoding="utf-8") as file:

        def line(value: object) -> None:
            file.write(json.dumps(value) + "\n")

        line(header)
        for phase in script.phases:
            line({"phase": phase.name, "from_ns": truth.local_ns(phase.start_s), "to_ns": truth.local_ns(phase.end_s),
                  "held": phase.held})  # fmt: skip
        for item in script.events:
            line({"event": event_to_dict(item.event), "at_ns": truth.local_ns(item.time_s)})
        for t, tip, b in zip(times, tips, breath, strict=True):
            phase_now = script.phase_at(float(t))
            line({"at_ns": truth.local_ns(float(t)), "script_s": round(float(t), 6), "tip_ras": tip.tolist(),
                  "breath": float(b), "held": script.held(float(t)),
                  "phase": phase_now.name if phase_now else ""})  # fmt: skip
    temporary.replace(path)
