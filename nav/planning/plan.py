"""A whole plan: access paths, their order, the placement of ablations, and how it stands placement errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nav.ablation.applicators import zone_of_size
from nav.ablation.margin import surface_margins_mm
from nav.ablation.tumour import TumourModel
from nav.ablation.zone import EllipsoidZone
from nav.geometry.directions import rigid_along
from nav.geometry.volume import Volume
from nav.planning.anatomy import Anatomy, Avoid, build_anatomy
from nav.planning.grid import PlanningError
from nav.planning.paths import PathChecks, PathLimits, check_paths, obstacle_distances_mm
from nav.planning.placement import Cover, Placements, choose_cover, place_all, sample_errors
from nav.planning.ranking import pareto, rate, score, spread_out
from nav.planning.settings import PlanSettings
from nav.planning.zones import ChartZone

__all__ = ["AccessPaths", "Entries", "Placed", "aim_points", "ellipsoids", "find_paths", "place", "target_points"]

Array = NDArray[np.float64]
Progress = Callable[[float, str], None]

#: Paths checked at least, where there are entries enough.
CANDIDATES = 120_000
#: Points aimed at, at most.
_MOST_AIMS = 100
#: Paths on which ablations are placed.
_PLACED_PATHS = 90
#: Paths among which the Pareto set is taken, the best by score.
_RANKED = 3000
#: Steps of the zone's middle along a path, mm.
_SHIFT_MM = 5.0
#: Samples for the paths' coverage criterion.
_CRITERION_POINTS = 300
#: Samples for the draws of placement errors.
_DRAW_POINTS = 5000
#: Pitch of the samples of healthy tissue while choosing, mm.
_HEALTHY_PITCH_MM = 2.0


def _nothing(share: float, text: str) -> None:
    pass


@dataclass(frozen=True, slots=True, eq=False)
class Entries:
    """Where a needle may enter: (n, 3) RAS mm, and the axis (unit, direction of advance) of given poses, else NaN."""

    points_ras: Array
    axes_ras: Array

    @classmethod
    def of(cls, points_ras: Array, axes_ras: Array | None = None) -> Entries:
        """Check shapes.

        Raises
        ------
        PlanningError
            No entries, or entries that are not finite.
        """
        points = np.atleast_2d(np.asarray(points_ras, np.float64))
        if not points.size or points.shape[1] != 3:
            raise PlanningError("there is no entry: no skin found, and none given with --entries")
        if not np.isfinite(points).all():
            raise PlanningError(f"entry {int(np.argmin(np.isfinite(points).all(axis=1)))} is not finite")
        axes = np.full_like(points, np.nan) if axes_ras is None else np.asarray(axes_ras, np.float64)
        return cls(points, axes)


@dataclass(frozen=True, slots=True, eq=False)
class AccessPaths:
    """Checked paths.

    Attributes
    ----------
    anatomy : Anatomy
    checks : PathChecks
        Every candidate.
    feasible : (f,) numbers of the feasible ones, best first
    criteria : dict of (f,); scores, pareto : (f,)
        In the order of ``feasible``; Pareto is known for the first 3000, False after them.
    distances_mm : (f, s)
    beyond_mm : how far the tips lie beyond the aim points
    """

    anatomy: Anatomy
    checks: PathChecks
    feasible: NDArray[np.intp]
    criteria: dict[str, Array]
    scores: Array
    pareto: NDArray[np.bool_]
    distances_mm: Array
    beyond_mm: float


def target_points(target: Volume) -> Array:
    """(n, 3) RAS mm of the target's voxels."""
    return target.to_ras(np.argwhere(np.asarray(target.array) > 0)[:, ::-1])


def aim_points(points_ras: Array, reach_mm: float, at_least: int = 1) -> Array:
    """(a, 3) where zones' middles are aimed: the centroid, and target points spread about ``reach_mm`` / 2 apart, or
    closer (down to 1 mm) so that there are ``at_least`` so many; `_MOST_AIMS` at most."""
    centroid = points_ras.mean(axis=0)
    pitch = max(3.0, 0.45 * reach_mm)
    extent = np.ptp(points_ras, axis=0)
    while pitch > 1.0 and len(np.unique(np.floor((points_ras - centroid) / pitch + 0.5), axis=0)) < at_least:
        pitch *= 0.85
    means: Array
    while True:
        cell = np.floor((points_ras - centroid) / pitch + 0.5).astype(int)
        _, first = np.unique(cell, axis=0, return_inverse=True)
        first = first.ravel()
        count = int(first.max()) + 1
        size = np.bincount(first)
        sums = [np.bincount(first, points_ras[:, a]).astype(np.float64) for a in range(3)]
        means = np.stack(sums, axis=1) / size[:, None]
        if count <= _MOST_AIMS:
            break
        pitch *= 1.15
    # A mean of a bent piece may lie outside: take the voxel nearest to it.
    aims = [centroid if extent.max() < 2.0 else points_ras[np.argmin(((points_ras - centroid) ** 2).sum(axis=1))]]
    for mean in means[np.argsort(-size, kind="stable")]:
        nearest = points_ras[np.argmin(((points_ras - mean) ** 2).sum(axis=1))]
        if min(float(np.linalg.norm(nearest - a)) for a in aims) > 1.0:
            aims.append(nearest)
    return np.array(aims)


def find_paths(
    lattice: Volume,
    target: Volume,
    organ: Sequence[Volume],
    avoid: Sequence[Avoid],
    entries: Entries,
    zones: Sequence[ChartZone],
    limits: PathLimits,
    settings: PlanSettings,
    model: TumourModel,
    progress: Progress = _nothing,
) -> AccessPaths:
    """Check paths from every entry to points of the target, and order the feasible ones.

    Parameters
    ----------
    lattice, target, organ, avoid : as in `nav.planning.anatomy.build_anatomy`
    entries : Entries
        Those out of the needle's reach are left out; where there are more than needed, evenly spread ones are taken.
        Entries with a pose that lie in the organ are moved back along its axis until they are out of it.
    zones : sequence of ChartZone, smallest first
        The needle's tip goes the offset of the largest one beyond the point aimed at.
    model : TumourModel

    Raises
    ------
    PlanningError
    """
    if not (np.asarray(target.array) > 0).any():
        raise PlanningError("the target mask is empty: no voxel is above 0; choose another label or file")
    points = target_points(target)
    largest = zones[-1]
    middle = points.mean(axis=0)
    points_in, axes = _outside_organ(entries, organ, middle)
    near = np.linalg.norm(points_in - middle, axis=1) <= limits.needle_length_mm
    if not near.any():
        closest = float(np.linalg.norm(points_in - middle, axis=1).min())
        raise PlanningError(
            f"no entry within the needle's length: the nearest is {closest:.0f} mm from the target's middle, the needle"
            f" {limits.needle_length_mm:g} mm long; give --needle-length or other --entries"
        )
    points_in, axes = points_in[near], axes[near]
    aims = aim_points(points, largest.radius_mm, min(_MOST_AIMS, -(-CANDIDATES // len(points_in))))
    # Few aims leave room for more entries; each is used with every aim.
    wanted = max(200, -(-CANDIDATES // len(aims)))
    if len(points_in) > wanted:
        step = np.linspace(0, len(points_in) - 1, wanted).astype(int)
        points_in, axes = points_in[step], axes[step]
    start = np.repeat(points_in, len(aims), axis=0)
    pose = np.repeat(axes, len(aims), axis=0)
    goal = np.tile(aims, (len(points_in), 1))
    direction = goal - start
    length = np.linalg.norm(direction, axis=1, keepdims=True)
    direction /= np.maximum(length, 1e-9)
    beyond = largest.offset_mm
    tips = goal + beyond * direction
    progress(0.1, "distances to what is to be avoided")
    reach = points.max(axis=0) + beyond + 30.0, points.min(axis=0) - beyond - 30.0
    anatomy = build_anatomy(lattice, target, organ, avoid, np.vstack([start.min(axis=0), start.max(axis=0), *reach]))
    progress(0.5, f"checking {len(start)} paths")
    checks = check_paths(anatomy, start, tips, limits, pose)
    feasible = np.flatnonzero(checks.feasible)
    progress(0.7, f"rating {len(feasible)} paths")
    good = checks.take(feasible)
    distances = obstacle_distances_mm(anatomy, good.entries_ras, good.tips_ras)
    inside = model.volume_points[anatomy.organ_volume.holds(model.volume_points)]
    thin = np.random.default_rng(settings.robustness.seed).permutation(len(inside))[:_CRITERION_POINTS]
    criteria = rate(
        good, distances, points[:: max(1, len(points) // 5000)], inside[thin], largest, limits.needle_length_mm
    )
    weights = settings.weights.model_dump()
    scores = score(criteria, weights) if len(feasible) else np.zeros(0)
    order = np.argsort(-scores, kind="stable")
    ranked = np.zeros(len(order), bool)
    if len(order):
        ranked[: min(_RANKED, len(order))] = pareto(
            criteria, [n for n, w in weights.items() if w > 0.0] or list(weights), order[:_RANKED]
        )
    return AccessPaths(
        anatomy, checks, feasible[order], {n: v[order] for n, v in criteria.items()}, scores[order], ranked,
        distances[order], beyond,
    )  # fmt: skip


def _outside_organ(entries: Entries, organ: Sequence[Volume], towards: Array) -> tuple[Array, Array]:
    """Move entries that lie in the organ back along their axis (without one: away from the target), 2 mm at a time."""
    points = entries.points_ras.copy()
    given = np.asarray(np.isfinite(entries.axes_ras).all(axis=1))
    away = points - towards
    away /= np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-9)
    back = np.where(given[:, None], -np.where(given[:, None], entries.axes_ras, 0.0), away)
    for _ in range(50):
        inside = np.zeros(len(points), bool)
        for ahead in (0.0, 2.0, 4.0):
            for part in organ:
                inside |= part.holds(points - ahead * back)
        if not inside.any():
            break
        points[inside] += 2.0 * back[inside]
    return points, entries.axes_ras


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """The ablations.

    Attributes
    ----------
    placements : Placements
        The chosen ones; ``path`` counts into `AccessPaths.checks`.
    entries_ras : (k, 3)
    checks : PathChecks
        Of the paths to their tips.
    cover : Cover
    coverage : float
        Share of target + margin within the organ that the union covers.
    target_coverage : float
        Of the target alone.
    healthy_ml : float
        Organ in the union that is not target (the margin is healthy tissue too).
    min_margin_mm : float
        Smallest margin of the target's surface in the best zone of each point, positive inside: a lower bound of the
        union's. NaN without ablations.
    p_margin_ge5, p_target_covered : float or None
        Share of the draws that cover as much as wanted of target + 5 mm within the organ, and all of the target.
    draws_coverage : (5, 50, 95 percentile)
    reason : str
        Why less is covered than wanted; empty otherwise.
    """

    placements: Placements
    entries_ras: Array
    checks: PathChecks
    cover: Cover
    coverage: float
    target_coverage: float
    healthy_ml: float
    min_margin_mm: float
    p_margin_ge5: float | None
    p_target_covered: float | None
    draws_coverage: tuple[float, float, float] | None
    reason: str


def place(
    paths: AccessPaths,
    zones: Sequence[ChartZone],
    model: TumourModel,
    limits: PathLimits,
    settings: PlanSettings,
    reserve_mm: float = 0.0,
    progress: Progress = _nothing,
) -> Placed:
    """Choose ablations on the feasible paths.

    Parameters
    ----------
    model : TumourModel
        Of target and margin.
    reserve_mm : float
        Cover this much more than the margin, against placement errors.
    """
    anatomy, target = paths.anatomy, paths.anatomy.target
    seed, wanted = settings.robustness.seed, settings.cover.coverage
    cover_points = _within(model.volume_points, anatomy)
    aimed_at = cover_points
    if reserve_mm > 0.0:
        aimed_at = _within(TumourModel.from_mask(target, margin_mm=model.margin_mm + reserve_mm).volume_points, anatomy)
    picked = _picked(paths)
    chosen_paths = paths.checks.take(picked)
    direction = (chosen_paths.tips_ras - chosen_paths.entries_ras) / chosen_paths.length_mm[:, None]
    middles = chosen_paths.tips_ras - paths.beyond_mm * direction
    points = target_points(target)
    extent = 0.5 * float(np.linalg.norm(np.ptp(points, axis=0)))
    steps = int(np.ceil(min(extent, 25.0) / _SHIFT_MM))
    shifts = _SHIFT_MM * np.arange(-steps, steps + 1)
    box = points.min(axis=0) - model.margin_mm, points.max(axis=0) + model.margin_mm
    all_middles = (middles[:, None] + shifts[None, :, None] * direction[:, None]).reshape(-1, 3)
    number = np.repeat(np.arange(len(picked)), len(shifts))
    in_box = ((all_middles >= box[0]) & (all_middles <= box[1])).all(axis=1)
    all_middles, number = all_middles[in_box], number[in_box]
    several = _distinct(list(zones))
    healthy_points = _healthy(
        anatomy, target, np.vstack([all_middles, points]), several[-1].radius_mm, _HEALTHY_PITCH_MM
    )
    everything = place_all(
        tuple(several), picked[number], all_middles, direction[number], healthy_points, _HEALTHY_PITCH_MM**3 / 1000.0,
        lambda share, text: progress(0.4 * share, text),
    )  # fmt: skip
    checks = check_paths(anatomy, paths.checks.entries_ras[everything.path], everything.tips_ras, limits)
    usable = np.flatnonzero(checks.feasible)
    free = everything.take(usable)
    cover = choose_cover(
        free, aimed_at, wanted, settings.cover.most_applicators, settings.cover.time_limit_s, seed,
        lambda share, text: progress(0.4 + 0.5 * share, text),
    )  # fmt: skip
    chosen = free.take(cover.chosen)
    final = checks.take(usable[cover.chosen])
    zone_list, count = chosen.zone_list(), len(cover.chosen)
    coverage = chosen.share_of(cover_points)
    reason = ""
    if coverage < wanted:
        reason = _why(everything, checks, chosen, cover, cover_points, wanted, settings, len(paths.feasible))
    if not count:
        return Placed(chosen, final.entries_ras, final, cover, 0.0, 0.0, 0.0, float("nan"), None, None, None, reason)
    fine = _healthy(anatomy, target, chosen.tips_ras, 2.0 * max(z.radius_mm for z in zone_list) + 5.0, 1.0)
    healthy = float(np.count_nonzero(chosen.together(fine))) / 1000.0
    progress(0.92, "sampling placement errors")
    margins = np.max([surface_margins_mm(model.surface_points, z) for z in ellipsoids(chosen)], axis=0)
    five = model if model.margin_mm == 5.0 else TumourModel.from_mask(target, margin_mm=5.0)
    rng = np.random.default_rng(seed)
    around = _within(five.volume_points, anatomy)
    around = around[rng.permutation(len(around))[:_DRAW_POINTS]]
    own = points[rng.permutation(len(points))[:_DRAW_POINTS]]
    sigma, draws = settings.robustness.placement_sigma_mm, settings.robustness.draws
    shares = sample_errors(chosen, around, sigma, draws, seed)
    covered = sample_errors(chosen, own, sigma, draws, seed)
    low, middle, high = (float(v) for v in np.percentile(shares, (5, 50, 95)))
    return Placed(
        chosen, final.entries_ras, final, cover, coverage, chosen.share_of(points), healthy, float(margins.min()),
        float((shares >= wanted).mean()), float((covered >= 1.0).mean()), (low, middle, high), reason,
    )  # fmt: skip


def ellipsoids(chosen: Placements) -> list[EllipsoidZone]:
    """The chosen zones in RAS."""
    out = []
    for zone, tip, direction in zip(chosen.zone_list(), chosen.tips_ras, chosen.directions_ras, strict=True):
        assert isinstance(zone, ChartZone)
        pose = rigid_along(tip, direction, "TipToRas")
        out.append(zone_of_size(zone.applicator, zone.power_w, zone.time_s, zone.size, pose))
    return out


def _within(points: Array, anatomy: Anatomy) -> Array:
    return points[anatomy.organ_volume.holds(points)]


def _picked(paths: AccessPaths) -> NDArray[np.intp]:
    """Feasible paths to place on: the best that differ, to every point aimed at."""
    if not len(paths.feasible):
        return np.zeros(0, np.intp)
    first = paths.feasible[:20_000]
    return spread_out(paths.checks, first, _PLACED_PATHS, 25.0, 12.0, 4.0)


def _distinct(zones: list[ChartZone], most: int = 8) -> list[ChartZone]:
    """At most ``most`` of the zones, evenly by volume, the smallest and the largest among them."""
    if len(zones) <= most:
        return zones
    return [zones[i] for i in np.unique(np.linspace(0, len(zones) - 1, most).round().astype(int))]


def _healthy(anatomy: Anatomy, target: Volume, around: Array, reach_mm: float, pitch_mm: float) -> Array:
    """Regular samples of organ that is not target, within ``reach_mm`` of the box of ``around``."""
    if not len(around):
        return np.zeros((0, 3))
    low, high = around.min(axis=0) - reach_mm, around.max(axis=0) + reach_mm
    axes = [np.arange(a, b + pitch_mm, pitch_mm) for a, b in zip(low, high, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    points = points[anatomy.organ_volume.holds(points)]
    return points[~target.holds(points)]


def _why(
    everything: Placements, checks: PathChecks, chosen: Placements, cover: Cover, points: Array, wanted: float,
    settings: PlanSettings, feasible: int,
) -> str:  # fmt: skip
    """What keeps the rest uncovered."""
    if not feasible:
        return "no feasible path"
    got = chosen.share_of(points)
    head = f"{100 * got:.1f} % of target + margin is covered, {100 * wanted:.1f} % is wanted: "
    if cover.reachable >= wanted:
        return head + (
            f"{len(chosen.zone)} ablations were found in the time given, at most"
            f" {settings.cover.most_applicators} are allowed; allow more, or a longer time limit"
        )
    rest = points[~chosen.together(points)]
    rest = rest[:: max(1, len(rest) // 100)]
    bad = np.flatnonzero(~checks.feasible)
    bad = bad[:: max(1, len(bad) // 3000)]
    helps = everything.take(bad).covering(rest).any(axis=1) if len(bad) else np.zeros(0, bool)
    counts = checks.violated[bad[helps]].sum(axis=0) if helps.any() else np.zeros(len(checks.constraints), int)
    names = [
        f"{checks.constraints[c]} ({100 * counts[c] / max(int(helps.sum()), 1):.0f} %)"
        for c in np.argsort(-counts, kind="stable")[:3]
        if counts[c]
    ]
    head += f"feasible placements reach {100 * cover.reachable:.1f} % of it; "
    if not names:
        return head + "no zone of this applicator reaches the rest from the paths searched"
    return head + "placements that would reach the rest violate " + ", ".join(names)
