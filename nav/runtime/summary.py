"""``summary.json``: what a run came to, in numbers. Keys and units: ``docs/summary-json.md``.

The ``navigation`` and ``gate`` blocks rest on the ticks alone, in their order, so a replay that makes the same ticks
writes the same numbers bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nav.guidance.numbers import GateState
from nav.runtime.distribution import Distribution
from nav.runtime.jsonio import json_ready, write_json
from nav.runtime.snapshot import NavigationSnapshot, RegistrationSummary

__all__ = ["NAVIGATION_KEYS", "SummaryBuilder", "navigation_numbers"]

#: Paints further apart than this are not a frame rate any more: the needle was lost in between.
LONGEST_INTERVAL_NS = 500_000_000
#: The numbers of the ``navigation`` block, in the order of the file.
NAVIGATION_KEYS = ("tip_to_target_mm", "min_margin_mm", "lateral_mm", "depth_mm", "angle_deg")


def navigation_numbers(snapshot: NavigationSnapshot) -> dict[str, float | None] | None:
    """The numbers of one tick as Python floats, for the recording and the summary; None when they are blanked."""
    guidance = snapshot.guidance
    if guidance is None:
        return None
    margin, uncertainty = snapshot.margin, snapshot.uncertainty
    tip = guidance.tip_ras
    numbers: dict[str, float | None] = {
        "tip_to_target_mm": float(guidance.tip_to_target_mm),
        "min_margin_mm": None if margin is None else float(margin.min_margin_mm),
        "lateral_mm": float(guidance.lateral_mm),
        "depth_mm": float(guidance.depth_mm),
        "angle_deg": float(guidance.angle_deg),
        "tip_to_surface_mm": None if guidance.tip_to_surface_mm is None else float(guidance.tip_to_surface_mm),
        "coverage": None if margin is None else float(margin.coverage),
        "margin_sigma_mm": None if margin is None else float(margin.sigma_mm),
        "tip_radius95_mm": None if uncertainty is None else float(uncertainty.radius95_mm),
        "tip_r_mm": float(tip[0]),
        "tip_a_mm": float(tip[1]),
        "tip_s_mm": float(tip[2]),
    }
    return {key: value if value is not None and np.isfinite(value) else None for key, value in numbers.items()}


class SummaryBuilder:
    """Gathers the numbers of a run. Ticks come from the compute thread, paints from the Qt thread; they share nothing.

    What is kept does not grow with the run (`Distribution`).
    """

    def __init__(self) -> None:
        self._navigation = {key: Distribution() for key in NAVIGATION_KEYS}
        self._guided = 0
        self._gate_ns = dict.fromkeys(GateState, 0)
        self._reasons_ns: dict[str, int] = {}
        self._last_tick: tuple[int, GateState, tuple[str, ...]] | None = None
        self._registration: RegistrationSummary | None = None
        self._paints = 0
        self._first_paint_ns = 0
        self._last_paint_ns = 0
        self._pose_was_shown = False
        self._guided_intervals = 0
        self._guided_ns = 0
        self._pose_ages_ms = Distribution()
        self._tip_errors_mm = Distribution()
        self._rest_errors_mm = Distribution()
        self._moving_errors_mm = Distribution()

    def add_tick(self, snapshot: NavigationSnapshot) -> dict[str, float | None] | None:
        """Take one tick in; returns its `navigation_numbers`."""
        numbers = navigation_numbers(snapshot)
        if numbers is not None:
            self._guided += 1
            for key, kept in self._navigation.items():
                value = numbers[key]
                if value is not None:
                    kept.add(value)
        if snapshot.registration is not None:
            self._registration = snapshot.registration
        if self._last_tick is not None:
            # A verdict holds from its tick to the next one.
            then_ns, state, codes = self._last_tick
            lasted_ns = snapshot.now_ns - then_ns
            self._gate_ns[state] += lasted_ns
            for code in codes:
                self._reasons_ns[code] = self._reasons_ns.get(code, 0) + lasted_ns
        codes = tuple(dict.fromkeys(reason.code for reason in snapshot.gate.reasons))
        self._last_tick = (snapshot.now_ns, snapshot.gate.state, codes)
        return numbers

    def add_paint(self, done_ns: int, pose_arrival_ns: int | None) -> None:
        """A frame was painted: end of the paint, and the arrival of the newest pose shown (None or 0: none)."""
        if self._paints == 0:
            self._first_paint_ns = done_ns
        interval_ns = done_ns - self._last_paint_ns
        if self._pose_was_shown and pose_arrival_ns and interval_ns <= LONGEST_INTERVAL_NS:
            self._guided_intervals += 1
            self._guided_ns += interval_ns
        self._paints += 1
        self._last_paint_ns = done_ns
        self._pose_was_shown = bool(pose_arrival_ns)
        if pose_arrival_ns:
            self._pose_ages_ms.add((done_ns - pose_arrival_ns) * 1e-6)

    def add_truth(self, tip_error_mm: float, *, at_rest: bool | None) -> None:
        """Distance of the tip shown from the true one; ``at_rest`` None: neither at rest nor in a measured advance."""
        self._tip_errors_mm.add(tip_error_mm)
        if at_rest is not None:
            (self._rest_errors_mm if at_rest else self._moving_errors_mm).add(tip_error_mm)

    def navigation(self) -> dict[str, Any]:
        """The ``navigation`` block."""
        wanted = ("last", "p5", "p50", "p95", "min", "max")
        return {"n": self._guided, **{key: kept.numbers(*wanted) for key, kept in self._navigation.items()}}

    def gate(self) -> dict[str, Any]:
        """The ``gate`` block: seconds per state, and per reason, most lasting first."""
        reasons = sorted(self._reasons_ns.items(), key=lambda item: (-item[1], item[0]))
        return {
            "ok_s": self._gate_ns[GateState.OK] * 1e-9,
            "degraded_s": self._gate_ns[GateState.DEGRADED] * 1e-9,
            "blank_s": self._gate_ns[GateState.BLANK] * 1e-9,
            "reasons": {code: lasted_ns * 1e-9 for code, lasted_ns in reasons},
        }

    def registration(self) -> dict[str, Any] | None:
        """The ``registration`` block: the last registration in force, None when there was none."""
        made = self._registration
        if made is None:
            return None
        return {
            "method": made.method,
            "fre_mm": made.fre_mm,
            "tre_at_target_mm": made.tre_at_target_mm,
            "landmarks": [{"name": m.name, "residual_mm": m.residual_mm, "used": m.used} for m in made.landmarks],
        }

    def hud(self) -> dict[str, Any]:
        """The ``hud`` block; None values without a HUD.

        The rate counts while a needle is shown: without one the pane is painted only when something changes. When none
        was shown at all, it is the rate of the whole run.
        """
        span_ns = self._last_paint_ns - self._first_paint_ns
        overall = (self._paints - 1) * 1e9 / span_ns if span_ns > 0 else None
        return {
            "fps": self._guided_intervals * 1e9 / self._guided_ns if self._guided_ns > 0 else overall,
            "pose_age_at_paint_ms": self._pose_ages_ms.numbers("p50", "p95", "max"),
        }

    def truth(self) -> dict[str, Any] | None:
        """The ``truth`` block; None when nothing is known of it."""
        if self._tip_errors_mm.n == 0:
            return None
        wanted = ("p50", "p95", "max")
        return {
            "tip_error_mm": self._tip_errors_mm.numbers(*wanted),
            "at_rest_tip_error_mm": self._rest_errors_mm.numbers(*wanted),
            "moving_tip_error_mm": self._moving_errors_mm.numbers(*wanted),
        }

    def build(
        self,
        *,
        streams: Mapping[str, Mapping[str, Any]],
        version: str,
        config_sha256: str,
        sources: Mapping[str, Mapping[str, Any]] | None = None,
        room_cpu_cores: float | None = None,
    ) -> dict[str, Any]:
        """The whole summary, ready for JSON.

        Parameters
        ----------
        streams : mapping
            Stream → `StreamMonitor.summary`.
        version, config_sha256 : str
            Of the program; `nav.config.load.config_sha256` of the room.
        sources : mapping or None
            Source → what its driver has counted; None in a replay.
        room_cpu_cores : float or None
            Mean processor use of the simulated room's processes; None without one.
        """
        summary: dict[str, Any] = {
            "streams": streams,
            "sources": sources,
            "registration": self.registration(),
            "navigation": self.navigation(),
            "hud": self.hud(),
        }
        truth = self.truth()
        if truth is not None:
            summary["truth"] = truth
        summary["room_cpu_cores"] = room_cpu_cores
        summary["gate"] = self.gate()
        summary["software"] = {"version": version, "config_sha256": config_sha256}
        ready: dict[str, Any] = json_ready(summary)
        return ready

    def write(self, path: Path | str, **blocks: Any) -> dict[str, Any]:
        """`build` and write ``summary.json``; returns what was written."""
        summary = self.build(**blocks)
        write_json(path, summary)
        return summary
