"""What a plan would give: the zone at the target of the plan in force, and the margins of all candidate paths.

Worked out when something of it changes, not at every tick: a plan does not move.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nav.ablation.margin import compute_margin
from nav.ablation.tumour import TumourModel
from nav.ablation.zone import MarginResult
from nav.geometry.directions import rigid_along
from nav.geometry.rigid import Rigid
from nav.io.case import PlannedPath
from nav.runtime.zone_state import PlacedZone, ZoneState

__all__ = ["COMPARED_PATHS", "PlanView", "PlanViewer"]

#: So many candidates are compared; a planner lists the best first.
COMPARED_PATHS = 24


@dataclass(frozen=True, slots=True, eq=False)
class PlanView:
    """Needles that are not there yet.

    Attributes
    ----------
    placed : PlacedZone or None
        The zone at the target of the plan in force; None without an entry (no direction) or applicator.
    margin : MarginResult or None
        Of the tumour in it; without any error of placement.
    path_margins_mm : tuple of float or None
        Smallest margin along each candidate path of the case, as far as they are compared; None where unknown.
    """

    placed: PlacedZone | None = None
    margin: MarginResult | None = None
    path_margins_mm: tuple[float | None, ...] = ()


class PlanViewer:
    """Keeps the last `PlanView` until something changes.

    Parameters
    ----------
    frames : str
        Transform name of a needle tip in RAS, as in ``NeedleTipToRas``.
    """

    def __init__(self, frames: str) -> None:
        self._frames = frames
        self._key: tuple[object, ...] = ()
        self._view = PlanView()

    def view(
        self,
        zones: ZoneState,
        tumour: TumourModel | None,
        target_ras: NDArray[np.float64] | None,
        entry_ras: NDArray[np.float64] | None,
        paths: tuple[PlannedPath, ...],
    ) -> PlanView:
        """The view of the plan in force and the candidates."""
        ends = tuple(None if p is None else tuple(p.tolist()) for p in (target_ras, entry_ras))
        key = (zones.generation, tumour, ends, paths)
        if key != self._key:
            self._key, self._view = key, self._made(zones, tumour, ends[0], ends[1], paths)
        return self._view

    def _made(
        self,
        zones: ZoneState,
        tumour: TumourModel | None,
        target: tuple[float, ...] | None,
        entry: tuple[float, ...] | None,
        paths: tuple[PlannedPath, ...],
    ) -> PlanView:
        placed = None if target is None or entry is None else zones.planned(self._pose(entry, target))
        margin = None if placed is None or tumour is None else compute_margin(tumour, placed.zone)
        margins: list[float | None] = []
        for path in paths[:COMPARED_PATHS]:
            there = zones.planned(self._pose(path.entry_ras, path.target_ras))
            if there is None or tumour is None:
                margins.append(None)
            else:
                margins.append(compute_margin(tumour, there.zone).min_margin_mm)
        return PlanView(placed, margin, tuple(margins))

    def _pose(self, entry: tuple[float, ...], target: tuple[float, ...]) -> Rigid:
        along = np.subtract(target, entry)
        return rigid_along(target, along / np.linalg.norm(along), self._frames)
