"""How many ablations, where and at what setting: set cover by MILP, against the greedy bound; and sampled errors.

A placement is one zone with the needle's tip at one point of a checked path. Chosen are as few as possible that cover
the wanted share of target + margin, and among those the ones with the least healthy tissue (each counted by itself; the
union is measured afterwards). Unions of zones hold for ablations one after the other; applicators that heat together
make another shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, eye_array, hstack, vstack

from nav.planning.zones import TipZone, in_tip_frame, inside_any

__all__ = ["Cover", "Placements", "choose_cover", "place_all", "sample_errors"]

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
Progress = Callable[[float, str], None]

#: Points that the exact search works on.
_POINTS = 200
#: Placements that it chooses from, where one alone does not do.
_COLUMNS = 600
#: Rounds of adding points that turned out uncovered.
_ROUNDS = 6


@dataclass(frozen=True, slots=True, eq=False)
class Placements:
    """n placements. ``zone``: number in ``zones``; ``path``: number of the path they lie on."""

    zones: tuple[TipZone, ...]
    zone: NDArray[np.intp]
    path: NDArray[np.intp]
    tips_ras: Array
    directions_ras: Array
    healthy_ml: Array

    def take(self, index: NDArray[np.intp]) -> Placements:
        """Some of them."""
        return Placements(
            self.zones, self.zone[index], self.path[index], self.tips_ras[index], self.directions_ras[index],
            self.healthy_ml[index],
        )  # fmt: skip

    def zone_list(self) -> list[TipZone]:
        """The zone of every placement."""
        return [self.zones[z] for z in self.zone]

    def covering(self, points_ras: Array) -> Bools:
        """(n, m) which placement covers which point."""
        out = np.zeros((len(self.zone), len(points_ras)), bool)
        for n, z in enumerate(self.zone):
            out[n] = self.zones[z].contains(*in_tip_frame(points_ras, self.tips_ras[n], self.directions_ras[n]))
        return out

    def together(self, points_ras: Array) -> Bools:
        """(n,) which points the union covers, one ablation after the other."""
        return inside_any(points_ras, self.zone_list(), self.tips_ras, self.directions_ras)

    def share_of(self, points_ras: Array) -> float:
        """Share of the points that the union covers; 0 without placements or points."""
        return float(self.together(points_ras).mean()) if len(self.zone) and len(points_ras) else 0.0


def place_all(
    zones: tuple[TipZone, ...],
    path: NDArray[np.intp],
    middles_ras: Array,
    directions_ras: Array,
    healthy_points_ras: Array,
    ml_per_point: float,
    progress: Progress,
) -> Placements:
    """Every zone around every middle: the tip lies its offset ahead.

    Parameters
    ----------
    path : (q,) number of the path of every middle
    middles_ras, directions_ras : (q, 3)
    healthy_points_ras : (h, 3) regular samples of organ that is not target, each standing for ``ml_per_point``
    """
    n = len(middles_ras)
    radius = max(z.radius_mm for z in zones)
    healthy = np.empty((n, len(zones)))
    for m in range(n):
        if m % 64 == 0:
            progress(m / n, "healthy tissue in every zone")
        near = healthy_points_ras[(np.abs(healthy_points_ras - middles_ras[m]) <= radius).all(axis=1)]
        along, across = in_tip_frame(near, middles_ras[m], directions_ras[m])
        for z, zone in enumerate(zones):
            healthy[m, z] = np.count_nonzero(zone.contains(along - zone.offset_mm, across)) * ml_per_point
    offsets = np.array([z.offset_mm for z in zones])
    tips = middles_ras[:, None] + offsets[None, :, None] * directions_ras[:, None]
    count = len(zones)
    return Placements(
        zones, np.tile(np.arange(count), n), np.repeat(path, count), tips.reshape(-1, 3),
        np.repeat(directions_ras, count, axis=0), healthy.ravel(),
    )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Cover:
    """What was chosen, and how near to the best it is.

    Attributes
    ----------
    chosen : (k,) numbers of placements
    coverage, reachable : float
        Share of the points covered, and that any number of placements could cover.
    method : ``enumeration`` (one ablation does), ``milp`` or ``greedy``
    greedy_applicators, greedy_healthy_ml
        What the greedy choice needs (healthy: sum over its zones).
    lower_bound : int or None
        No choice from the placements searched needs fewer (proven on the points searched).
    gap : float or None
        Of the exact search, relative; 0: optimal among the placements searched.
    time_limit_reached : bool
    """

    chosen: NDArray[np.intp]
    coverage: float
    reachable: float
    method: str
    greedy_applicators: int
    greedy_healthy_ml: float
    lower_bound: int | None
    gap: float | None
    time_limit_reached: bool


def _greedy(covers: Bools, healthy: Array, wanted: int, most: int) -> list[int]:
    """Most new points first, least tissue among equals, until ``wanted`` are covered; then drop needless ones."""
    left = np.ones(covers.shape[1], bool)
    chosen: list[int] = []
    tie = healthy / (float(healthy.max(initial=0.0)) + 1.0)
    while np.count_nonzero(~left) < wanted and len(chosen) < most:
        gain = covers[:, left].sum(axis=1)
        best = int(np.argmax(gain - 0.999 * tie))
        if gain[best] == 0:
            break
        chosen.append(best)
        left &= ~covers[best]
    got = np.count_nonzero(~left)
    for one in sorted(chosen, key=lambda c: -healthy[c]):
        rest = [c for c in chosen if c != one]
        if rest and int(np.count_nonzero(covers[rest].any(axis=0))) >= min(wanted, int(got)):
            chosen = rest
    return chosen


def _columns(covers: Bools, healthy: Array, always: list[int]) -> NDArray[np.intp]:
    """Placements for the exact search: not dominated, and of these the ones with the most points per tissue.

    ``always`` are kept.
    """
    size = covers.sum(axis=1)
    order = np.lexsort((healthy, -size))
    packed = np.packbits(covers, axis=1)
    kept: list[int] = []
    for one in order:
        if size[one] == 0:
            break
        if len(kept) >= 4 * _COLUMNS:
            break
        held = np.array(kept, np.intp)
        if held.size:
            held = held[healthy[held] <= healthy[one]]
            if held.size and bool((~(packed[one] & ~packed[held]).any(axis=1)).any()):
                continue
        kept.append(int(one))
    # Every point keeps its best columns, so that none becomes uncoverable.
    chosen: list[int] = list(dict.fromkeys(always))
    value = size / (1.0 + healthy)
    ranked = sorted(kept, key=lambda c: (-size[c], healthy[c]))
    for p in np.argsort(covers.sum(axis=0))[:200]:
        over = [c for c in kept if covers[c, p]]
        chosen += sorted(over, key=lambda c: -size[c])[:2]
    chosen += [c for pair in zip(ranked, sorted(kept, key=lambda c: -value[c]), strict=True) for c in pair]
    return np.array(list(dict.fromkeys(chosen))[:_COLUMNS], np.intp)


def choose_cover(
    placements: Placements,
    points_ras: Array,
    wanted: float,
    most_applicators: int,
    time_limit_s: float,
    seed: int,
    progress: Progress,
) -> Cover:
    """Choose placements that cover the share ``wanted`` of (m, 3) points, or of what can be covered where that is less.

    One placement that does is found by looking at all; else by set cover on a sample of the points, which grows by
    points that turn out uncovered.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(points_ras))
    sample = order[: 10 * _POINTS]
    covers = placements.covering(points_ras[sample])
    if not len(covers):
        return Cover(np.zeros(0, np.intp), 0.0, 0.0, "greedy", 0, 0.0, None, None, False)
    reachable = float(covers.any(axis=0).mean())
    aim = min(wanted, reachable)
    healthy = placements.healthy_ml
    # One that does, the least harmful first; the sample says which are worth a full look.
    likely = np.flatnonzero(covers.mean(axis=1) >= wanted - 0.01)
    for one in likely[np.argsort(healthy[likely], kind="stable")]:
        share = placements.take(np.array([one])).share_of(points_ras)
        if share >= wanted:
            return Cover(np.array([one]), share, reachable, "enumeration", 1, float(healthy[one]), 1, 0.0, False)
    greedy = _greedy(covers, healthy, math.ceil(aim * covers.shape[1]), most_applicators)
    best = np.array(greedy, np.intp)
    best_share = placements.take(best).share_of(points_ras)
    greedy_ml = float(healthy[best].sum())
    method, bound, gap, late = "greedy", None, None, False
    greedy_count = len(greedy)
    points = points_ras[sample]
    count = min(_POINTS, len(points))
    covers, points = covers[:, :count], points[:count]
    budget = 0.5 * time_limit_s
    most = most_applicators
    for turn in range(_ROUNDS):
        columns = _columns(covers, healthy, best.tolist())
        progress(turn / _ROUNDS, f"choosing among {len(columns)} placements")
        # Added points are there because they were missed: they must not use up what may stay uncovered.
        allowed = (1.0 - aim) * min(_POINTS, len(points)) * (1.0 if turn == 0 else 0.5)
        found = _solve(covers[columns], healthy[columns], allowed, most, budget)
        late |= found.late
        if found.late:
            budget = 0.5 * time_limit_s / _ROUNDS
        if turn == 0:
            bound, gap = found.bound, found.gap
        if found.chosen is None:
            break
        chosen = columns[found.chosen]
        covered = placements.take(chosen).together(points_ras)
        share = float(covered.mean())
        fewer = len(chosen) < len(best) or (
            len(chosen) == len(best) and healthy[chosen].sum() < healthy[best].sum() - 1e-9
        )
        if (share >= wanted and (fewer or best_share < wanted)) or (best_share < wanted and share > best_share):
            best, best_share, method, gap = chosen, share, "milp", found.gap
        if share >= min(wanted, reachable - 1e-3):
            break
        missing = points_ras[~covered]
        missing = missing[rng.permutation(len(missing))[: _POINTS // 2]]
        covers = np.concatenate([covers, placements.covering(missing)], axis=1)
        points = np.concatenate([points, missing])
    return Cover(best, best_share, reachable, method, greedy_count, greedy_ml, bound, gap, late)


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    chosen: NDArray[np.intp] | None
    bound: int | None
    gap: float | None
    late: bool


def _solve(covers: Bools, healthy: Array, uncovered_allowed: float, most: int, time_limit_s: float) -> _Found:
    """min Σ x (1 + small · healthy), Σ over covering x + y ≥ 1, Σ y ≤ allowed: x whole, y then is by itself."""
    columns, points = covers.shape
    # The healthy part of at most ``most`` placements stays below one placement: fewer always wins.
    cost = 1.0 + healthy / (max(float(healthy.max()), 1e-9) * (most + 1))
    matrix = csr_array(covers.T.astype(np.float64))
    blocks = vstack(
        [
            hstack([matrix, eye_array(points)]),
            csr_array(np.concatenate([np.zeros(columns), np.ones(points)])[None]),
            csr_array(np.concatenate([np.ones(columns), np.zeros(points)])[None]),
        ]
    )
    low = np.concatenate([np.ones(points), [0.0, 0.0]])
    high = np.concatenate([np.full(points, np.inf), [uncovered_allowed, float(most)]])
    result = milp(
        np.concatenate([cost, np.zeros(points)]),
        constraints=LinearConstraint(blocks.tocsc(), low, high),
        integrality=np.concatenate([np.ones(columns), np.zeros(points)]),
        bounds=Bounds(0.0, 1.0),
        options={"time_limit": time_limit_s, "mip_rel_gap": 1e-4},
    )
    late = result.status == 1
    dual = getattr(result, "mip_dual_bound", None)
    # Costs of k placements lie between k and k + 1.
    bound = None if dual is None or not np.isfinite(dual) else max(1, math.ceil(dual - 1.0 + 1e-9))
    if result.x is None:
        return _Found(None, bound, None, late)
    gap = getattr(result, "mip_gap", None)
    return _Found(np.flatnonzero(result.x[:columns] > 0.5), bound, None if gap is None else float(gap), late)


def sample_errors(placements: Placements, points_ras: Array, sigma_mm: float, draws: int, seed: int) -> Array:
    """(draws,) share of (m, 3) points covered when every tip is off by N(0, sigma² I), each on its own.

    Directions stay: over a zone's length an error of the angle moves it less than one of the tip.
    """
    rng = np.random.default_rng(seed)
    errors = rng.normal(0.0, sigma_mm, (draws, len(placements.zone), 3))
    zones = placements.zone_list()
    return np.array(
        [inside_any(points_ras, zones, placements.tips_ras + e, placements.directions_ras).mean() for e in errors]
    )
