"""How likely a margin of 5 mm or more is, given what is not known: the needle's pose, the zone, the tumour's surface.

Errors are common to the whole surface: a shift of the needle brings one side nearer to the zone's border and the other
farther from it, more perfusion draws all of it in. So the chance that *every* point has its margin is not that of the
worst point, and cannot be had point by point. It is sampled: by a fixed set of draws, the same for every pose, so that
the number does not flicker, over well-spread points of the surface.

Along one direction in the space of errors, that which changes the worst point's margin most, every draw is integrated
in closed form (line sampling: Koutsourelakis et al., Probabilistic Engineering Mechanics 19, 2004): a draw then tells
how likely 5 mm are on a whole line, and not yes or no; few draws are enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from nav.ablation.margin import WANTED_MM, compute_margin, surface_margins_mm, table_margins_mm
from nav.ablation.products import small_product
from nav.ablation.tumour import TumourModel, thinned
from nav.ablation.vessel_cut import cut_planes
from nav.ablation.zone import EllipsoidZone, MarginChance, MarginResult, NeedleZone, Zone, ZoneUnion
from nav.geometry.rigid import Rigid

if TYPE_CHECKING:
    from nav.ablation.prediction import Band

__all__ = [
    "ChanceSamples",
    "MarginChance",
    "UncertainZone",
    "margin_chance",
    "margin_with_chance",
    "point_chances",
    "prepare_chance",
]

Array = NDArray[np.float64]

#: Points of the surface and draws: enough for 0.04 of probability, few enough for every pose.
_POINTS, _DRAWS = 250, 128
#: Errors that can be drawn: 7 of the surface, 6 of each needle's pose, those of the zone.
_MOST_ERRORS = 96
#: To first order, a point this much better than the worst one of a draw may still be it, mm.
_NEARLY_MM = 0.5
#: How many sigma away the bend of a margin is looked at.
_FAR = 1.5
#: Farther along a line, in sigma, it is taken as straight.
_FARTHEST = 4.0
#: Slower than this, mm per sigma, a margin stands still.
_STILL = 1e-9
#: Points on each line for the spread of the smallest margin.
_STRATA = 4
#: Half a step of the finite differences that give the direction to the zone's surface.
_STEP_MM = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class UncertainZone:
    """A zone and what is not known of it.

    Attributes
    ----------
    zone : Zone
    ras_from_tip : Rigid
        The needle that made it, or will.
    pose_covariance : (6, 6) float64, optional
        Of the tip (mm) and of a small rotation about the tip (rad), both along the axes of RAS.
    band : Band, optional
        Of `predict_band`, around this needle. Every computed zone needs one (tier 2 that of tier 1); a chart has none.
    """

    zone: Zone
    ras_from_tip: Rigid
    pose_covariance: Array | None = None
    band: Band | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ChanceSamples:
    """A tumour's surface and the draws, made ready once per tumour. All arrays read-only.

    Attributes
    ----------
    points_ras : (n, 3) float64
    voxel_axes_mm : (3, 3) float64
        As in `TumourModel`.
    patch_sigma_mm : float
        1 sigma that every point shares: of the surface between sample points.
    draws : (draws, errors) float64
        Independent standard normals.
    """

    points_ras: Array
    voxel_axes_mm: Array
    patch_sigma_mm: float
    draws: Array


def prepare_chance(model: TumourModel, *, points: int = _POINTS, draws: int = _DRAWS) -> ChanceSamples:
    """What `margin_chance` needs of a tumour.

    Parameters
    ----------
    points : int
        About so many are kept of the surface.
    draws : int
        A power of two.
    """
    from scipy.stats import qmc  # slow to import, and not needed at every pose

    if draws < 2 or draws & (draws - 1):
        raise ValueError(f"draws is {draws}, must be a power of two")
    r = math.sqrt(0.7 * float(model.surface_weights.sum()) / points)
    few = model.surface_points[thinned(model.surface_points, r)]
    normal = qmc.MultivariateNormalQMC(
        np.zeros(_MOST_ERRORS), engine=qmc.Sobol(_MOST_ERRORS, scramble=True, seed=20), inv_transform=True
    ).random(draws)
    # Of mean 0, unit variance and uncorrelated also as a sample, as far as there are draws for it.
    use = min(_MOST_ERRORS, draws // 2)
    normal -= normal.mean(axis=0)
    apart, mixed = np.linalg.qr(normal[:, :use])
    normal = np.where(np.diag(mixed) < 0.0, -apart, apart) * math.sqrt(draws)
    return ChanceSamples(_frozen(few), model.voxel_axes_mm, model.patch_sigma_mm, _frozen(normal))


def _frozen(array: ArrayLike) -> Array:
    out: Array = np.array(array, dtype=np.float64, order="C")
    out.setflags(write=False)
    return out


def _directions(points: Array, zone: Zone) -> tuple[Array, Array]:
    """(n,) margins and their (n, 3) gradients, of unit length where there is one."""
    shifted = points[None] + _STEP_MM * np.concatenate([np.zeros((1, 3)), np.eye(3), -np.eye(3)])[:, None]
    found = surface_margins_mm(shifted.reshape(-1, 3), zone).reshape(7, -1)
    with np.errstate(invalid="ignore"):
        gradient = (found[1:4] - found[4:7]).T
        length = np.linalg.norm(gradient, axis=1, keepdims=True)
        gradient = np.where((length > 0.0) & np.isfinite(length), gradient / np.where(length > 0.0, length, 1.0), 0.0)
    return found[0], np.asarray(gradient)


def _modes_at(points: Array, band: Band, ras_from_tip: Rigid) -> Array:
    """(n, modes) looked up around the needle, linearly; the table's edge beyond it."""
    grid, tables = band.inner.grid, band.modes_mm
    relative = points - ras_from_tip.translation
    z = relative @ ras_from_tip.rotation[:, 2]
    r = np.sqrt(np.maximum(np.einsum("ij,ij->i", relative, relative) - z * z, 0.0))
    row = np.clip((z - grid.first_z_mm) / grid.spacing_mm, 0.0, grid.rows - 1.0)
    column = np.clip(r / grid.spacing_mm - 0.5, 0.0, grid.columns - 1.0)
    p = np.minimum(row.astype(np.intp), grid.rows - 2)
    q = np.minimum(column.astype(np.intp), grid.columns - 2)
    v, u = row - p, column - q
    found = (1.0 - v) * ((1.0 - u) * tables[:, p, q] + u * tables[:, p, q + 1])
    found += v * ((1.0 - u) * tables[:, p + 1, q] + u * tables[:, p + 1, q + 1])
    return np.asarray(found.T)


@lru_cache(maxsize=16)
def _ellipsoid_table(semi_long_mm: float, semi_short_mm: float) -> Array:
    """Signed distances in the half plane, 1 mm apart, to 12 mm around the ellipsoid."""
    rows, columns = 2 * math.ceil(semi_long_mm + 12.0) + 1, math.ceil(semi_short_mm + 12.0)
    z = np.arange(rows) - 0.5 * (rows - 1)
    points = np.stack(np.broadcast_arrays(np.arange(columns) + 0.5, 0.0, z[:, None]), axis=-1).reshape(-1, 3)
    at = EllipsoidZone(np.zeros(3), np.array([0.0, 0.0, 1.0]), semi_long_mm, semi_short_mm, 0, "", 0.0, 0.0, "", "")
    return _frozen(surface_margins_mm(points, at).reshape(rows, columns))


def _moved_margins(points: Array, one: UncertainZone, poses: Array) -> Array:
    """(points, poses) margins when the needle is off by each of (poses, 6): shift in mm, rotation in rad.

    The moved needle sees a point where the point moved back lies; and vessels as well, which stay where they are.
    """
    tip = one.ras_from_tip.translation
    r, p, q, w, x, y = poses.T
    # One product for all: (arm, 1) times rows of (rotation back, to second order; tip less shift).
    a, b, c = 1.0 - 0.5 * (x * x + y * y), 1.0 - 0.5 * (w * w + y * y), 1.0 - 0.5 * (w * w + x * x)
    f, g, h = 0.5 * w * x, 0.5 * w * y, 0.5 * x * y
    back = np.array([[a, f - y, g + x], [f + y, b, h - w], [g - x, h + w, c], [tip[0] - r, tip[1] - p, tip[2] - q]])
    right = np.ascontiguousarray(back.transpose(0, 2, 1)).reshape(4, -1)

    def moved(some: Array) -> Array:
        arms = np.concatenate([some - tip, np.ones((len(some), 1))], axis=1)
        return small_product(arms, right).reshape(len(some), len(poses), 3)

    zone = one.zone
    seen = moved(points)
    flat = seen.reshape(-1, 3)
    if isinstance(zone, NeedleZone):
        cut, rotation, origin = zone.cut, zone.ras_from_tip.rotation, zone.ras_from_tip.translation
        margins = surface_margins_mm(flat, replace(zone, cut=None)).reshape(seen.shape[:2])
        if cut is not None and len(cut.heights_mm):
            normals, heights = cut_planes(zone.shape, (moved(cut.walls_ras) - origin) @ rotation, cut.depth_mm)
            x, y, z = (np.ascontiguousarray(seen[..., c]) - origin[c] for c in range(3))
            for (p, q, r), height in zip((normals @ rotation.T).transpose(0, 2, 1), heights, strict=True):
                np.minimum(margins, height - cut.slack_mm - (p * x + q * y + r * z), out=margins)
        return margins
    if isinstance(zone, EllipsoidZone):  # looked up and not solved for: there are many points
        table = _ellipsoid_table(zone.semi_long_mm, zone.semi_short_mm)
        found = table_margins_mm(flat, zone.centre_ras, zone.axis_ras, table, -0.5 * (len(table) - 1), 1.0)
        return found.reshape(seen.shape[:2])
    return surface_margins_mm(flat, zone).reshape(seen.shape[:2])


def _root(covariance: Array | None) -> Array:
    """(6, 6) factor: its product with standard normals has the covariance, also a singular one."""
    if covariance is None:
        return np.zeros((6, 6))
    c = np.asarray(covariance, dtype=np.float64)
    if c.shape != (6, 6) or not np.isfinite(c).all() or not np.allclose(c, c.T, rtol=1e-6, atol=1e-12):
        raise ValueError(f"pose_covariance: must be symmetric, finite and of shape (6, 6), is {c.shape}")
    values, vectors = np.linalg.eigh(0.5 * (c + c.T))
    if values[0] < -1e-9 * max(float(values[-1]), 1e-12):
        raise ValueError(f"pose_covariance: its smallest eigenvalue is {values[0]:g}, a covariance has none below 0")
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))


class _Model:
    """Margins at points as a function of standard normal errors: seven of the surface, the zones', the poses'."""

    def __init__(self, points: Array, samples: ChanceSamples, zones: Sequence[UncertainZone]) -> None:
        if not zones:
            raise ValueError("there is no zone")
        for one in zones:
            chart = isinstance(one.zone, EllipsoidZone)
            if isinstance(one.zone, ZoneUnion):
                raise ValueError("a union: give its zones, each with what is not known of it")
            if chart == (one.band is not None):
                what = (
                    "a chart has no band" if chart else "a computed zone needs its band: without it, it is not certain"
                )
                raise ValueError(f"zone of tier {one.zone.tier}: {what}")
        self.points, self.zones = points, zones
        bands = [z.band.modes_mm.shape[0] for z in zones if z.band is not None]
        self._own = 7 + max(bands, default=0)
        self.errors = self._own + 6 * len(zones)
        if self.errors > samples.draws.shape[1]:
            raise ValueError(f"{len(zones)} zones: too many to draw their errors")
        self._draws = samples.draws[:, : self.errors]
        self._roots = [_root(z.pose_covariance) for z in zones]
        margins: list[Array] = []
        slopes: list[Array] = []
        for i, (one, root) in enumerate(zip(zones, self._roots, strict=True)):
            margin, gradient = _directions(points, one.zone)
            at = self._pose(i)
            slope = np.zeros((len(points), self.errors))
            # A border lies anywhere within a voxel, on each side of the tumour by itself.
            across = gradient @ samples.voxel_axes_mm / math.sqrt(12.0)
            slope[:, 0:3], slope[:, 3:6] = np.maximum(across, 0.0), np.maximum(-across, 0.0)
            slope[:, 6] = samples.patch_sigma_mm
            if root.any():
                both = _moved_margins(points, one, np.concatenate([0.5 * root.T, -0.5 * root.T]))
                with np.errstate(invalid="ignore"):  # of a zone that is empty
                    slope[:, at] = both[:, :6] - both[:, 6:]
            if one.band is not None:
                modes = _modes_at(points, one.band, one.ras_from_tip)
                slope[:, 7 : 7 + modes.shape[1]] = modes
            margins.append(margin)
            slopes.append(np.where(np.isfinite(slope), slope, 0.0))
        self.needles = margins
        self.slopes = np.stack(slopes)
        self._leader = np.argmax(margins, axis=0)
        self.margins = np.max(margins, axis=0)

    def _pose(self, zone: int) -> slice:
        return slice(self._own + 6 * zone, self._own + 6 * zone + 6)

    def slopes_now(self) -> Array:
        """(points, errors) what one sigma of every error changes."""
        return np.asarray(self.slopes[self._leader, np.arange(len(self.points))])

    def along(self, direction: Array) -> Array:
        """(draws,) where each draw lies along a direction of the errors."""
        return np.asarray(self._draws @ direction)

    def may_be_worst(self, slopes: Array) -> NDArray[np.intp]:
        """Points which are nearly the worst in a draw, to first order; always the first one."""
        linear = small_product(slopes, self._draws.T)
        linear += self.margins[:, None]
        near = (linear - linear.min(axis=0)).min(axis=1) <= _NEARLY_MM
        near[0] = True
        return np.flatnonzero(near)

    def _bends(self, some: NDArray[np.intp], direction: Array) -> Array:
        """(zones, points) second derivative of margins along a direction of the errors: a turned or shifted surface."""
        out = np.zeros((len(self.zones), len(some)))
        for i, (one, root) in enumerate(zip(self.zones, self._roots, strict=True)):
            if root.any():
                pose = _FAR * root @ direction[self._pose(i)]
                found = _moved_margins(self.points[some], one, np.stack([pose, -pose, 0.0 * pose]))
                if np.isfinite(found).all():
                    out[i] = (found[:, 0] + found[:, 1] - 2.0 * found[:, 2]) / _FAR**2
        return out

    def drawn(self, some: NDArray[np.intp], direction: Array) -> tuple[Array, Array, Array]:
        """(points, draws) margins of some points, how fast each grows along a direction of the errors, and its bend."""
        best = leader = bend = None
        bends = self._bends(some, direction)
        points, slopes = self.points[some], self.slopes[:, some]
        rates = slopes @ direction
        own = slice(self._own)
        for i, (one, root) in enumerate(zip(self.zones, self._roots, strict=True)):
            margins = small_product(slopes[i, :, own], self._draws[:, own].T)
            if root.any():
                margins += _moved_margins(points, one, self._draws[:, self._pose(i)] @ root.T)
            else:
                margins += self.needles[i][some, None]
            if best is None or leader is None or bend is None:
                best, leader, bend = margins, rates[i][:, None], bends[i][:, None]
            else:
                better = margins > best
                leader, bend = np.where(better, rates[i][:, None], leader), np.where(better, bends[i][:, None], bend)
                best = np.maximum(best, margins)
        assert best is not None
        assert leader is not None
        assert bend is not None
        return best, leader, bend


def margin_chance(samples: ChanceSamples, zones: Sequence[UncertainZone], worst_point_ras: ArrayLike) -> MarginChance:
    """How likely the margin is 5 mm or more, at the worst point and everywhere.

    Drawn are, as independent: the needle's pose; what the band says of the zone (its length, its width, perfusion,
    power, transition; the same for every zone, as they are in the same tissue); the tumour's surface, within a voxel,
    on each of its six sides by itself.

    Parameters
    ----------
    samples : ChanceSamples
        Of the tumour.
    zones : sequence of UncertainZone
        At least one. A point's margin is that in the zone where it lies deepest.
    worst_point_ras : (3,) float64
        Of `compute_margin`; takes part beside the samples.

    Raises
    ------
    ValueError
        No zone; a computed zone without its band, or a chart with one; a covariance that is none.
    """
    worst = np.asarray(worst_point_ras, dtype=np.float64)
    points = np.concatenate([worst[None], samples.points_ras])
    charts = [isinstance(z.zone, EllipsoidZone) for z in zones]
    basis = _basis(zones)
    model = _Model(points, samples, zones)
    if not np.isfinite(model.margins).all():
        nothing = math.nan if np.isnan(model.margins).any() else 0.0
        return MarginChance(nothing, nothing, math.nan, float(model.margins.min()), any(charts), basis)
    slopes = model.slopes_now()
    slope = slopes[0]
    sigma = float(np.linalg.norm(slope))
    if sigma == 0.0:
        surely = float(model.margins.min() >= WANTED_MM)
        return MarginChance(surely, surely, 0.0, float(model.margins.min()), any(charts), basis)
    direction = slope / sigma
    some = model.may_be_worst(slopes)
    margins, rates, bends = model.drawn(some, direction)
    here = model.along(direction)
    smallest = _smallest(margins, rates, bends, here)
    return MarginChance(
        p_ge5=_share(margins, rates, bends, here),
        p_ge5_worst=_share(margins[:1], rates[:1], bends[:1], here),
        sigma_mm=float(np.std(smallest)),
        at_least_mm=float(np.quantile(smallest, 0.05)),
        of_chart=any(charts),
        basis=basis,
    )


def _share(margins: Array, rates: Array, bends: Array, here: Array) -> float:
    """Share of the lines through the draws, along one direction, on which every margin is large enough.

    A line is the draw moved along the direction, from where it is (``here``) to wherever; margins change along it at
    ``rates``, which change by ``bends``. Where all are large enough is an interval of it.
    """
    # A margin that does not change there forbids the line, or nothing.
    straight = here + (WANTED_MM - margins) / _not_still(rates)
    near = np.clip(straight, -_FARTHEST, _FARTHEST)
    there = rates + bends * near
    value = margins + (near - here) * (rates + 0.5 * bends * (near + here))
    at = np.where(there * rates > 0.0, near + (WANTED_MM - value) / _not_still(there), straight)
    grows = _not_still(rates) > 0.0
    first = np.where(grows, at, -np.inf).max(axis=0)
    last = np.where(grows, np.inf, at).min(axis=0)
    return float(np.maximum(ndtr(last) - ndtr(first), 0.0).mean())


def _not_still(rates: Array) -> Array:
    return np.where(np.abs(rates) < _STILL, _STILL, rates)


def _smallest(margins: Array, rates: Array, bends: Array, here: Array) -> Array:
    """(strata, draws) smallest margin on every line, at a point in each of equal shares of its probability."""
    share = np.modf(0.5 * (math.sqrt(5.0) - 1.0) * np.arange(1, len(here) + 1))[0]
    nodes = ndtri((np.arange(_STRATA)[:, None] + share) / _STRATA)
    return np.array([(margins + (t - here) * (rates + 0.5 * bends * (t + here))).min(axis=0) for t in nodes])


def _basis(zones: Sequence[UncertainZone]) -> str:
    parts = ["the tumour's surface within its voxels"]
    if any(z.pose_covariance is not None and np.any(z.pose_covariance) for z in zones):
        parts.append("the needle's pose")
    if any(z.band is not None for z in zones):
        parts.append("perfusion, deposited power, the model's error on powers it had not seen")
    return ", ".join(parts)


def point_chances(points_ras: ArrayLike, samples: ChanceSamples, zones: Sequence[UncertainZone]) -> Array:
    """(n,) how likely each of (n, 3) points of the tumour's surface has a margin of 5 mm or more: for a map.

    To first order in the errors, each point by itself: their smallest is no bound of the chance that all have it.
    """
    points = np.ascontiguousarray(points_ras, dtype=np.float64)
    model = _Model(points, samples, zones)
    sigma = np.linalg.norm(model.slopes_now(), axis=1)
    beyond = model.margins - WANTED_MM
    sure = np.where(np.isnan(beyond), np.nan, (beyond >= 0.0).astype(np.float64))
    return np.asarray(np.where(sigma > 0.0, ndtr(beyond / np.where(sigma > 0.0, sigma, 1.0)), sure))


def margin_with_chance(model: TumourModel, samples: ChanceSamples, zones: Sequence[UncertainZone]) -> MarginResult:
    """`compute_margin`, with the chance of 5 mm, and with the sigma of the minimum margin that comes with it.

    That sigma knows the needle's angle, the zone's band, and that another point may become the worst one.

    Parameters
    ----------
    model : TumourModel
    samples : ChanceSamples
        Of this tumour, by `prepare_chance`.
    zones : sequence of UncertainZone
        At least one.
    """
    if not zones:
        raise ValueError("there is no zone")
    every = [z.zone for z in zones]
    one = every[0]
    if len(every) > 1:
        members = tuple(z for z in every if isinstance(z, EllipsoidZone | NeedleZone))
        if len(members) < len(every):
            raise ValueError("a zone of tier 2 holds every applicator already: give it alone")
        one = ZoneUnion(members)
    found = compute_margin(model, one)
    chance = margin_chance(samples, zones, found.worst_point_ras)
    return replace(found, sigma_mm=chance.sigma_mm, chance=chance)
