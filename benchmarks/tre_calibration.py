"""Is the stated accuracy true? Share of real errors within the stated 95 % radius, over many seeds, on a virtual clock.

    python benchmarks/tre_calibration.py --seeds 200 [--json OUT.json]

Every seed is one procedure of the default simulated room: the operator touches the skin landmarks with the stylus
(picking error, tremor, tracker noise with its lever arms, drop-outs), the navigator averages the stylus tip over the
dwell, registers, and follows the needle at rest and while it advances. Two statements are checked against the truth:

* ``registration``: the true registration error at the target within ``LandmarkRegistration.radius95_at(target)``;
  one sample per seed.
* ``tip_at_pose``: the true error of the tip at the pose's own time within ``TipUncertainty.radius95_mm`` (without
  latency); many moments of rest and advance per seed, sharing the seed's registration.
* ``tip_rest``, ``tip_advance``: the same against the tip where it is when the pose is shown, latency included.

No sockets, no clock, no files but the cached patient. The same seeds give the same numbers.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drivers.room.geometry import TOOLS, PatientGeometry, RoomSetup
from drivers.room.operator import Script
from drivers.room.patient import build_patient
from drivers.room.tracker import TrackerSimulator
from nav.config.load import load_toml, shipped_config
from nav.config.room import RoomConfig, UncertaintyConfig
from nav.geometry.rigid import Rigid
from nav.guidance.uncertainty import stylus_touch_covariance, tip_uncertainty
from nav.registration.landmarks import LandmarkRegistration, register_landmarks
from nav.runtime.events import CollectLandmark

__all__ = ["Study", "default_room", "run_study"]

F64 = NDArray[np.float64]

DURATION_S = 10.0
_NEEDLE, _STYLUS, _REFERENCE = (TOOLS.index(name) for name in ("Needle", "Stylus", "Reference"))


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """Errors and stated radii, mm, of every checked moment: ``name → (errors, radii)``."""

    samples: dict[str, tuple[F64, F64]]
    fre_mm: F64
    fle_mm: F64

    def coverage(self, name: str) -> float:
        """Share of the errors within the stated radius."""
        errors, radii = self.samples[name]
        return float(np.mean(errors <= radii))

    def summary(self) -> dict[str, dict[str, float]]:
        """Plain numbers per statement."""
        return {
            name: {
                "n": len(errors),
                "coverage95": self.coverage(name),
                "error_rms_mm": float(np.sqrt(np.mean(errors**2))),
                "error_p95_mm": float(np.percentile(errors, 95)),
                "stated_radius95_median_mm": float(np.median(radii)),
            }
            for name, (errors, radii) in self.samples.items()
        }


def default_room() -> tuple[PatientGeometry, RoomSetup, UncertaintyConfig]:
    """The fixed default room."""
    room = load_toml(shipped_config("rooms", "simulated.toml"), RoomConfig)
    return build_patient().geometry, RoomSetup.from_room(room), room.uncertainty


class _Procedure:
    """One seed: what the tracker saw, and what was true."""

    def __init__(self, geometry: PatientGeometry, setup: RoomSetup, seed: int) -> None:
        self.script = Script.build(geometry, setup, DURATION_S, seed)
        self.tracker = TrackerSimulator(self.script)
        self.setup = setup

    def frames(self, start_s: float, end_s: float, tool: int) -> list[tuple[float, F64, F64]]:
        """Exposure time, ``tracker_from_reference`` and ``tracker_from_tool`` of every frame that saw both."""
        out = []
        for number in range(int(np.floor(start_s)) - 1, int(np.ceil(end_s)) + 1):
            block = self.tracker.block(number)
            seen = block.seen[:, tool] & block.seen[:, _REFERENCE]
            for n in np.flatnonzero((block.acquired_s >= start_s) & (block.acquired_s < end_s) & seen):
                matrices = block.matrices[n]
                out.append((float(block.acquired_s[n]), matrices[_REFERENCE], matrices[tool]))
        return out

    def register(self, config: UncertaintyConfig) -> LandmarkRegistration:
        """As the navigator does: average every dwell, take the tracker's noise along, register."""
        tips, covariances, fixed, names = [], [], [], []
        positions = dict(self.script.geometry.landmarks)
        latency = self.setup.simulation.latency_ms / 1000.0
        for item in self.script.events:
            event = item.event
            if not isinstance(event, CollectLandmark):
                continue
            frames = self.frames(item.time_s + latency - event.dwell_s, item.time_s + latency, _STYLUS)
            if not frames:  # lost for the whole dwell: the operator goes on without this landmark
                continue
            markers = np.linalg.inv(np.array([r for _, r, _ in frames])) @ np.array([m for _, _, m in frames])
            points = (markers @ self.setup.stylus_from_tip)[:, :3, 3]
            tip = np.eye(4)
            tip[:3, 3] = points.mean(axis=0)
            tips.append(tip[:3, 3])
            covariances.append(
                stylus_touch_covariance(
                    Rigid.from_matrix(tip, "StylusTipToReference"),
                    config,
                    reference_from_marker=Rigid.from_matrix(markers[0], "StylusToReference"),
                    samples=len(points),
                )
            )
            fixed.append(positions[event.name])
            names.append(event.name)
        return register_landmarks(
            np.array(fixed),
            np.array(tips),
            name="ReferenceToRas",
            labels=names,
            prior_rms_mm=float(np.hypot(config.landmark_rms_mm, config.ct_landmark_rms_mm)),
            moving_covariances=np.array(covariances),
        )


def _tip_samples(
    run: _Procedure,
    registration: LandmarkRegistration,
    config: UncertaintyConfig,
    phase: str,
    count: int,
    *,
    shown: bool,
) -> list[tuple[float, float]]:
    """(error, stated radius) at ``count`` moments of the first stretch of ``phase``, when shown or at pose time."""
    stretch = next(p for p in run.script.phases if p.name == phase)
    frames = run.frames(stretch.start_s + 0.2, stretch.end_s - 0.2, _NEEDLE)
    sim = run.setup.simulation
    speed = sim.advance_mm_s if phase == "advance" else 0.0
    latency = (sim.latency_ms + sim.latency_spread_ms) / 1000.0 if shown else 0.0
    needle_from_tip = Rigid.from_matrix(run.setup.needle_from_tip, "NeedleTipToNeedle")
    out = []
    for n in np.linspace(0, len(frames) - 1, min(count, len(frames))).astype(int):
        acquired, reference, needle = frames[n]
        reference_from_needle = Rigid.from_matrix(np.linalg.inv(reference) @ needle, "NeedleToReference")
        ras_from_needle = registration.transform @ reference_from_needle
        ras_from_tip = ras_from_needle @ needle_from_tip
        stated = tip_uncertainty(
            ras_from_tip=ras_from_tip,
            config=config,
            registration=registration,
            ras_from_needle=ras_from_needle,
            ras_from_reference=registration.transform,
            speed_mm_s=speed,
            latency_s=latency,
        )
        truth = run.script.needle_tip(np.array([acquired + latency]))[0, :3, 3]
        out.append((float(np.linalg.norm(ras_from_tip.translation - truth)), stated.radius95_mm))
    return out


def run_study(
    geometry: PatientGeometry, setup: RoomSetup, config: UncertaintyConfig, seeds: range, *, moments: int = 10
) -> Study:
    """Run all seeds."""
    samples: dict[str, list[tuple[float, float]]] = {
        "registration": [],
        "tip_at_pose": [],
        "tip_rest": [],
        "tip_advance": [],
    }
    fre, fle = [], []
    target = np.array(geometry.target)
    in_reference = geometry.ras_from_reference.inverse().apply(target)
    for seed in seeds:
        run = _Procedure(geometry, setup, seed)
        registration = run.register(config)
        fre.append(registration.fre_rms_mm)
        fle.append(registration.fle_rms_mm)
        error = float(np.linalg.norm(registration.transform.apply(in_reference) - target))
        samples["registration"].append((error, registration.radius95_at(target)))
        if moments:
            for phase in ("rest", "advance"):
                samples["tip_at_pose"] += _tip_samples(run, registration, config, phase, moments, shown=False)
                samples[f"tip_{phase}"] += _tip_samples(run, registration, config, phase, moments, shown=True)
    arrays = {name: np.array(rows) for name, rows in samples.items() if rows}
    return Study({n: (a[:, 0], a[:, 1]) for n, a in arrays.items()}, np.array(fre), np.array(fle))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--moments", type=int, default=10, help="of rest and of advance per seed")
    parser.add_argument("--picking-rms-mm", type=float, default=None, help="true picking error (default: the room's)")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    geometry, setup, config = default_room()
    if options.picking_rms_mm is not None:
        simulation = setup.simulation.model_copy(update={"picking_rms_mm": options.picking_rms_mm})
        setup = replace(setup, simulation=simulation)
    study = run_study(geometry, setup, config, range(1, options.seeds + 1), moments=options.moments)
    summary = study.summary()
    print(f"seeds {options.seeds}, picking error {setup.simulation.picking_rms_mm:g} mm rms, ", end="")
    print(f"stated prior {config.landmark_rms_mm:g} mm; FRE {study.fre_mm.mean():.2f} mm, ", end="")
    print(f"estimated FLE {study.fle_mm.mean():.2f} mm")
    for name, row in summary.items():
        print(
            f"{name:13s} n {row['n']:5.0f}  within stated 95 %: {100 * row['coverage95']:5.1f} %  "
            f"error rms {row['error_rms_mm']:.2f}  p95 {row['error_p95_mm']:.2f}  "
            f"stated radius {row['stated_radius95_median_mm']:.2f} mm"
        )
    if options.json is not None:
        options.json.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
