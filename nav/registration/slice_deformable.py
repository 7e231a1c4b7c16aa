"""Local deformation of a slice after its rigid registration: a smooth displacement of its points in the CT.

The slice's points x are taken to ``T x + u(x)``: u is a cubic B-spline in the plane of the slice, with three
components, in a square around the needle, and fades to zero at its border. T is fitted along with u, for motion in a
large part of the slice has pulled the rigid pose towards it. The shadow of the needle is not looked at: it moves with
the needle, not with the tissue (`nav.registration.slice_needle`).

A needle moves tissue by more than the pitch of any level, and across the plane too; so first smooth bumps around the
needle are tried, of every length within ±12 mm along each axis and of two widths. From the best of them, and from
none, Gauss-Newton follows; what explains the slice best is kept. The prior of u is a Gaussian process: displacements
that are alike over some cm anywhere, and most of all bumps around the needle, whose width is not known (as in Lüthi,
Gerig, Jud, Vetter, "Gaussian process morphable models", IEEE TPAMI 40:1860, 2018).

Residuals are weighed by the noise that is left in means over tiles, not by that of pixels: what the model leaves out
is correlated. A tile whose mean is too far off counts less, as a pixel does. What is left unknown is the inverse of the
Hessian with that prior: near structure the data decide, away from it the prior says how far tissue may have moved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.ndimage import distance_transform_edt, map_coordinates
from scipy.spatial.transform import Rotation

from nav.geometry.kernels import KernelSpec
from nav.geometry.rigid import Rigid
from nav.geometry.volume import Volume
from nav.registration import slice_deform_kernels as kernels
from nav.registration.bspline import bspline
from nav.registration.error_distribution import radius_of_share
from nav.registration.landmarks import point_jacobian
from nav.registration.pyramid import Level
from nav.registration.slice_image import SliceImage
from nav.registration.slice_kernels import patch_moments
from nav.registration.slice_needle import without_shadow
from nav.registration.slice_preparation import SlicePreparation
from nav.registration.slice_rigid import (
    GOOD_QUIET,
    PATCH_MM,
    QUIET_NOISE,
    Progress,
    SliceRegistration,
    noise_variance,
)
from nav.registration.slice_rigid import KERNELS as RIGID_KERNELS
from nav.registration.verdict import ImageRegistrationError, Verdict

__all__ = ["KERNELS", "REACH_MM", "SliceDeformation", "deform_slice", "needle_point"]

Array = NDArray[np.float64]

#: What both steps need compiled, the preparation of the CT included.
KERNELS: tuple[KernelSpec, ...] = (*RIGID_KERNELS, *kernels.KERNELS)

#: The square has so many nodes along each side, so far apart: 56 mm to either side of its middle, and 28 mm of fading.
NODES, NODE_MM = 9, 14.0
#: The search: how far along each axis, in what steps, on the coarsest level at most so coarse; widths (sigma) of bumps.
REACH_MM, SEARCH_STEP_MM, SEARCH_PITCH_MM, BUMPS_MM = 12.0, 3.0, 3.0, (20.0, 30.0)
#: A residual of so many standard deviations costs no more in the search.
SEARCH_CUT = 3.0
#: So many bumps are followed, that far apart from each other and from none, by so many steps until the best is chosen.
STARTS, APART_MM, FIRST_STEPS = 3, 4.0, 4
#: Displacements in the prior, mm: anywhere, alike over some length (sigma); bumps about the middle of several widths
#: (sigma), each so long; and how much each coefficient is its own. Tissue has moved by up to 10 mm.
PRIOR_MM, PRIOR_WIDTH_MM, PRIOR_BUMP_MM, PRIOR_BUMPS_MM, ROUGH_MM = 4.0, 30.0, 5.0, (18.0, 25.0, 35.0), 0.1
#: How far the rigid pose may be off, pulled by what has moved: mm, rad (standard deviations).
POSE_MM, POSE_RAD = 3.0, 0.05
#: Pixels are summed in tiles so wide, mm.
TILE_MM = 5.0
#: A tile whose mean residual is so many of its standard deviations off counts half.
TILE_ROBUST = 2.0
#: The inverse Hessian knows of one minimum and of independent tiles only: standard deviations are this much larger
#: (measured on simulated slices, docs/registration-slices.md).
WIDER = 1.2
#: A step below this, root mean square over the nodes, is the last; an expected error, mm at 95 %, above which the
#: displacement is not known well.
SETTLED_MM, GOOD_DEFORMED_MM = 0.2, 2.0
#: Levels from the finest, at most so many Gauss-Newton steps on each, and the residual, in standard deviations, that
#: counts half.
LEVELS, MOST_STEPS, ROBUST = 2, 12, 2.0
#: Coefficients of the B-spline; behind them stand translation (mm) and rotation vector (rad) of the pose, CT frame.
_SIZE = 3 * NODES**2


@dataclass(frozen=True, slots=True, eq=False)
class _Field:
    """The B-spline's place: where node (0, 0) lies and the axes of the plane, all in the slices' frame, mm."""

    origin: Array
    axes: Array

    def basis(self, points: Array) -> Array:
        """(n, NODES²) at (n, 3) points of the slices' frame."""
        at = (points - self.origin) @ self.axes.T / NODE_MM
        return np.asarray(
            np.einsum("pa,pb->pab", bspline(at[:, 1], NODES), bspline(at[:, 0], NODES)).reshape(len(points), NODES**2)
        )


@dataclass(frozen=True, slots=True, eq=False)
class SliceDeformation:
    """Where the points of a slice lie in the CT.

    Attributes
    ----------
    rigid : SliceRegistration
        What it starts from.
    transform : Rigid
        The pose fitted along with the displacement, slices to CT: what holds outside the square.
    around : (3,) float64
        Middle of the square, mm, slices' frame.
    coefficients : (NODES², 3) float64
        Of the B-spline, mm, CT frame.
    covariance : (NODES² · 3 + 6, NODES² · 3 + 6) float64
        Of the coefficients, mm, the components of a node side by side, and of the pose: translation, mm, and rotation
        vector, rad, about where ``around`` lies in the CT, CT frame.
    iterations : int
        Gauss-Newton steps.
    settled : bool
        The last step moved nothing by more than `SETTLED_MM`.
    longest_mm : float
        Longest displacement in the square.
    quiet_before, quiet : float
        Share of the patches in the square, 12 mm wide, in which only noise is left, without and with the deformation.
    jacobian_min, jacobian_max, folded_fraction : float
        Of the determinant over the square (the displacement taken as the same across the plane); share below 0.
    verdict : Verdict
    reasons : tuple of str
        Why the verdict is not good; empty when it is.
    """

    rigid: SliceRegistration
    transform: Rigid
    around: Array
    coefficients: Array
    covariance: Array
    iterations: int
    settled: bool
    longest_mm: float
    quiet_before: float
    quiet: float
    jacobian_min: float
    jacobian_max: float
    folded_fraction: float
    verdict: Verdict
    reasons: tuple[str, ...]
    field: _Field

    def displacement_at(self, points: ArrayLike) -> Array:
        """(n, 3) mm, CT frame, on top of `transform`, of (n, 3) points of the slices' frame, mm."""
        return self.field.basis(np.atleast_2d(np.asarray(points, np.float64))) @ self.coefficients

    def to_ct(self, points: ArrayLike) -> Array:
        """(n, 3) RAS mm in the CT of (n, 3) points of the slices' frame, mm."""
        p = np.atleast_2d(np.asarray(points, np.float64))
        return self.transform.apply(p) + self.displacement_at(p)

    def covariance_at(self, points: ArrayLike) -> Array:
        """(n, 3, 3) mm², of `to_ct` at (n, 3) points of the slices' frame, mm."""
        p = np.atleast_2d(np.asarray(points, np.float64))
        by_point = np.zeros((len(p), 3, _SIZE + 6))
        basis = self.field.basis(p)
        for axis in range(3):
            by_point[:, axis, axis:_SIZE:3] = basis
        by_point[:, :, _SIZE:] = point_jacobian(self.transform.apply(p) - self.transform.apply(self.around))
        return np.asarray(by_point @ self.covariance @ by_point.transpose(0, 2, 1))

    def expected_error_mm(self, points: ArrayLike, share: float = 0.95) -> Array:
        """(n,) radius, mm, that holds ``share`` of the errors of `to_ct` at (n, 3) points of the slices' frame, mm."""
        return np.array([radius_of_share(c, share) for c in self.covariance_at(points)])


def needle_point(slices: Volume) -> Array:
    """(3,) mm, slices' frame: the metal pixel deepest inside the field of view; without metal, the slices' centre."""
    image = SliceImage.of(slices)
    seen = (image.known != 0) | image.metal
    depth = np.array([distance_transform_edt(np.pad(plane, 1))[1:-1, 1:-1] for plane in seen])
    deepest = np.where(image.metal, depth, -1.0)
    if deepest.max() < 0.0:
        return image.centre
    k, j, i = np.unravel_index(int(np.argmax(deepest)), deepest.shape)
    return slices.to_ras(np.array([i, j, k]))


def deform_slice(
    prepared: SlicePreparation,
    slices: Volume,
    rigid: SliceRegistration,
    *,
    around: ArrayLike,
    mask: NDArray[np.generic] | None = None,
    progress: Progress | None = None,
) -> SliceDeformation:
    """Follow local motion around a point of the slices.

    Parameters
    ----------
    prepared, slices, mask
        As for the rigid registration; all slices of a stack move alike.
    rigid : SliceRegistration
        Of these slices.
    around : (3,)
        Middle of the square that is deformed, mm in the slices' frame: the tip of the needle, say (`needle_point`).
    progress : callable, optional
        Called with the share done, 0 to 1, and what is being done; what it raises ends the registration.

    Raises
    ------
    ImageRegistrationError
        ``around`` is not a point, or nothing is known of the slices near it.
    """
    tell = progress or (lambda _share, _text: None)
    middle = np.array(around, np.float64)
    if middle.shape != (3,) or not np.isfinite(middle).all():
        raise ImageRegistrationError(f"the point to deform around is {middle.tolist()}; give one point, (3,) mm")
    tell(0.0, "search")
    image = _without_shadow(SliceImage.of(slices, mask), prepared.levels[0], rigid)
    axes = (slices.ras_from_index[:3, :2] / slices.spacing_mm[:2]).T
    field = _Field(middle - 0.5 * (NODES - 1) * NODE_MM * (axes[0] + axes[1]), axes)
    search = max((v for v in prepared.levels if v.pitch_mm <= SEARCH_PITCH_MM), default=prepared.levels[0],
                 key=lambda level: level.pitch_mm)  # fmt: skip
    fine = [level for level in prepared.levels if level.pitch_mm <= search.pitch_mm][:LEVELS]
    problem = _Problem(rigid, middle, _penalty(), _noise_density(image, prepared.levels[0], rigid))
    look = _look(image, fine[-1], field)
    variance = _variance(look, problem)
    starts = _starts(image, search, field, slices, problem)
    tell(0.5, "refinement")
    fits = [_Fit(start, np.zeros(6), variance) for start in starts]
    for fit in fits:
        _descend(look, fit, problem, FIRST_STEPS)
    least = min(fit.variance for fit in fits)
    best = min(fits, key=lambda fit: _energy(look, fit, problem, least))
    _descend(look, best, problem, MOST_STEPS)
    for level in fine[-2::-1]:
        look = _look(image, level, field)
        best.variance = _variance(look, problem)
        _descend(look, best, problem, MOST_STEPS)
    tell(0.9, "quality")
    covariance = WIDER**2 * np.asarray(np.linalg.inv(_system(look, best, problem)[0]), np.float64)
    return _finished(look, field, best, problem, covariance)


def _without_shadow(image: SliceImage, level: Level, rigid: SliceRegistration) -> SliceImage:
    """The slices without the needle's shadow, as wide as what is left of them at the rigid pose says."""

    def residuals(pixels: NDArray[np.intp]) -> Array:
        at = level.volume.to_index(rigid.transform.apply(image.volume.to_ras(pixels)))
        seen = map_coordinates(level.volume.array, at[:, ::-1].T, order=1, mode="constant", cval=np.nan)
        return np.asarray(rigid.scale * seen + rigid.offset - image.volume.array[tuple(pixels[:, ::-1].T)], np.float64)

    shown = np.where(image.known != 0, image.volume.array, np.float32(np.nan)).astype(np.float32)
    return without_shadow(image, residuals, math.sqrt(noise_variance(shown)))


@dataclass(frozen=True, slots=True, eq=False)
class _Problem:
    """What stays the same: the rigid start, the middle of the square (slices' frame), the prior, the noise.

    ``density``: variance of the mean of the residuals over an area, times that area, HU² mm².
    """

    rigid: SliceRegistration
    middle: Array
    penalty: Array
    density: float

    def matrix(self, pose: Array) -> Array:
        """(4, 4) slices to CT: the rigid start, then ``pose`` (6,) about where the middle lies."""
        start = self.rigid.transform.matrix
        centre = start[:3, :3] @ self.middle + start[:3, 3]
        out = np.eye(4)
        out[:3, :3] = Rotation.from_rotvec(pose[3:]).as_matrix()
        out[:3, 3] = centre + pose[:3] - out[:3, :3] @ centre
        return np.asarray(out @ start)


@dataclass(frozen=True, slots=True, eq=False)
class _Look:
    """The slices on one level: pixels (k, j, i), where they lie, in tiles, and the B-spline at both.

    ``rows``, ``columns``: (j, NODES), (i, NODES); ``tile_rows``, ``tile_columns``: at the middles of the tiles;
    ``pairs_j``, ``pairs_i``: (tiles, NODES²) products of the latter; ``middles`` (tiles j, tiles i, 3) slices' frame.
    """

    level: Level
    values: NDArray[np.float32]
    grid: Array
    turn: NDArray[np.float32]
    pixel_mm: float
    tile: int
    rows: Array
    columns: Array
    tile_rows: Array
    tile_columns: Array
    pairs_j: Array
    pairs_i: Array
    middles: Array


def _at_nodes(grid: Array, field: _Field) -> tuple[Array, Array]:
    """Where pixel (0, 0) lies and how far a pixel reaches, (2,) along i, j, in node spacings from node (0, 0)."""
    start = ((grid[:3, 3] - field.origin) @ field.axes.T) / NODE_MM
    return np.asarray(start), np.asarray(np.linalg.norm(grid[:3, :2], axis=0) / NODE_MM)


def _look(image: SliceImage, level: Level, field: _Field, tile_mm: float = TILE_MM) -> _Look:
    values, grid = image.level(level.pitch_mm)
    start, step = _at_nodes(grid, field)
    pixel = float(step.mean()) * NODE_MM
    tile = max(1, round(tile_mm / pixel))
    nj, ni = values.shape[1:]
    middle_j = start[1] + step[1] * (np.arange(-(-nj // tile)) * tile + 0.5 * (tile - 1))
    middle_i = start[0] + step[0] * (np.arange(-(-ni // tile)) * tile + 0.5 * (tile - 1))
    tile_rows, tile_columns = bspline(middle_j, NODES), bspline(middle_i, NODES)
    middles = field.origin + NODE_MM * (middle_j[:, None, None] * field.axes[1] + middle_i[:, None] * field.axes[0])
    return _Look(
        level, values, grid, np.ascontiguousarray(level.volume.index_from_ras[:3, :3], np.float32), pixel, tile,
        bspline(start[1] + step[1] * np.arange(nj), NODES), bspline(start[0] + step[0] * np.arange(ni), NODES),
        tile_rows, tile_columns, (tile_rows[:, :, None] * tile_rows[:, None, :]).reshape(len(tile_rows), -1),
        (tile_columns[:, :, None] * tile_columns[:, None, :]).reshape(len(tile_columns), -1), middles,
    )  # fmt: skip


@dataclass(slots=True, eq=False)
class _Fit:
    """Coefficients (NODES², 3), the pose (6,) after the rigid start, and the variance of the residuals, HU²."""

    coefficients: Array
    pose: Array
    variance: float
    steps: int = 0
    settled: bool = False


def _sums(look: _Look, fit: _Fit, problem: _Problem, robust: float) -> Array:
    """(tiles j, tiles i, TILE_SUMS)."""
    index = look.level.volume.index_from_ras @ problem.matrix(fit.pose) @ look.grid
    cubes = fit.coefficients.reshape(NODES, NODES, 3)
    displacement = np.einsum("ja,abc,ib->jic", look.rows, cubes, look.columns, optimize=True)
    out = np.empty((len(look.tile_rows), len(look.tile_columns), kernels.TILE_SUMS))
    kernels.tile_sums(
        look.values, look.level.volume.array, np.ascontiguousarray(index[:3], np.float32), look.turn,
        np.ascontiguousarray(displacement, np.float32), look.tile, np.float32(problem.rigid.scale),
        np.float32(problem.rigid.offset), np.float32(robust), out,
    )  # fmt: skip
    return out


def _noise_density(image: SliceImage, level: Level, rigid: SliceRegistration) -> float:
    """HU² mm²: of the means over tiles at the rigid pose, half of which are smaller."""
    values, grid = image.level(level.pitch_mm)
    pixel = float(np.linalg.norm(grid[:3, :2], axis=0).mean())
    tile = max(1, round(TILE_MM / pixel))
    out = np.empty((len(values), -(-values.shape[1] // tile), -(-values.shape[2] // tile), 6))
    index = (level.volume.index_from_ras @ rigid.transform.matrix @ grid)[:3].astype(np.float32)
    patch_moments(values, level.volume.array, index, tile, out)
    count, mean_slice, mean_ct = out[np.isfinite(out[..., 0])].T[:3]
    if not len(count):
        raise ImageRegistrationError("nothing is known of the slices around the point to deform around")
    left = rigid.scale * mean_ct + rigid.offset - mean_slice
    left -= np.median(left)
    # The median of a squared normal number is 0.455. No less than rounding to whole HU leaves.
    return max(float(np.median(left**2 * count)) / 0.455, 1.0) * pixel**2


def _variance(look: _Look, problem: _Problem) -> float:
    """Of the residuals where the rigid pose holds: the median over the tiles."""
    sums = _sums(look, _Fit(np.zeros((NODES**2, 3)), np.zeros(6), 1.0), problem, 0.0)
    known = sums[..., 10] > 0.0
    if not known.any():
        raise ImageRegistrationError("nothing is known of the slices around the point to deform around")
    return max(float(np.median(sums[..., 9][known] / sums[..., 10][known])), 1.0)


def _starts(image: SliceImage, level: Level, field: _Field, slices: Volume, problem: _Problem) -> list[Array]:
    """Coefficients (NODES², 3) to start from: no displacement, and bumps around the middle that cost little."""
    rigid = problem.rigid
    values, grid = image.level(level.pitch_mm)
    start, step = _at_nodes(grid, field)
    # Pixels within reach of a node: two spacings beyond the outermost.
    bounds = []
    for axis, size in enumerate(values.shape[:0:-1]):
        low = max(0, math.ceil((-2.0 - start[axis]) / step[axis]))
        bounds.append((low, min(size, math.floor((NODES + 1.0 - start[axis]) / step[axis]) + 1)))
    (left, right), (top, bottom) = bounds
    if right - left < 8 or bottom - top < 8:
        raise ImageRegistrationError("the point to deform around lies outside the slices; choose one inside")
    values = np.ascontiguousarray(values[:, top:bottom, left:right])
    shift = np.eye(4)
    shift[:2, 3] = left, top
    index = (level.volume.index_from_ras @ rigid.transform.matrix @ grid @ shift)[:3].astype(np.float32)
    variance = _variance(_look(image, level, field), problem)
    axes = rigid.transform.rotation @ (slices.ras_from_index[:3, :3] / slices.spacing_mm)
    count = round(REACH_MM / SEARCH_STEP_MM)
    line = np.arange(-count, count + 1) * SEARCH_STEP_MM
    steps = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1).reshape(-1, 3) @ axes.T
    middle = 0.5 * (NODES - 1)
    nodes = (np.arange(NODES) - middle) * NODE_MM
    through = np.linalg.inv(bspline(np.arange(NODES, dtype=np.float64), NODES))
    prior = 0.5 * (steps**2).sum(axis=1) / (PRIOR_MM**2 + len(PRIOR_BUMPS_MM) * PRIOR_BUMP_MM**2)
    weight = 0.5 * (float(step.mean()) * NODE_MM) ** 2 / problem.density
    bumps, energies = [], []
    for width in BUMPS_MM:
        at = ((start[axis] + step[axis] * np.arange(*bounds[axis]) - middle) * NODE_MM / width for axis in (1, 0))
        rows, columns = (np.exp(-0.5 * a**2) for a in at)
        out = np.empty(len(steps))
        kernels.bump_costs(
            values, level.volume.array, np.ascontiguousarray(index), np.outer(rows, columns).astype(np.float32),
            np.ascontiguousarray(steps @ level.volume.index_from_ras[:3, :3].T, np.float32), np.float32(rigid.scale),
            np.float32(rigid.offset), np.float32(SEARCH_CUT**2 * variance), out,
        )  # fmt: skip
        energies.append(weight * out + prior)
        # The B-spline that has the bump's values at the nodes.
        at_nodes = through @ np.exp(-0.5 * (nodes / width) ** 2)
        bumps.append(np.outer(at_nodes, at_nodes).ravel())
    order = np.argsort(np.concatenate(energies), kind="stable")
    chosen: list[Array] = [np.zeros(3)]
    starts = [np.zeros((NODES**2, 3))]
    for n in order:
        width_of, of = divmod(int(n), len(steps))
        if all(float(np.linalg.norm(steps[of] - other)) > APART_MM for other in chosen):
            chosen.append(steps[of])
            starts.append(np.outer(bumps[width_of], steps[of]))
        if len(starts) > STARTS:
            break
    return starts


@lru_cache(maxsize=1)
def _penalty() -> Array:
    """(NODES² · 3 + 6,) squared: inverse covariance of coefficients and pose in the prior."""
    at = np.stack(np.meshgrid(*[np.arange(NODES) * NODE_MM] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    far = ((at[:, None] - at[None]) ** 2).sum(axis=-1)
    values = PRIOR_MM**2 * np.exp(-0.5 * far / PRIOR_WIDTH_MM**2)
    from_middle = ((at - 0.5 * (NODES - 1) * NODE_MM) ** 2).sum(axis=1)
    for width in PRIOR_BUMPS_MM:
        bump = np.exp(-0.5 * from_middle / width**2)
        values += PRIOR_BUMP_MM**2 * np.outer(bump, bump)
    # From the values at the nodes to the coefficients.
    through = np.linalg.inv(bspline(np.arange(NODES, dtype=np.float64), NODES))
    both = np.kron(through, through)
    covariance = both @ values @ both.T + ROUGH_MM**2 * np.eye(NODES**2)
    out = np.zeros((_SIZE + 6, _SIZE + 6))
    out[:_SIZE, :_SIZE] = np.kron(np.linalg.inv(covariance), np.eye(3))
    out[_SIZE:, _SIZE:] = np.diag([POSE_MM**-2] * 3 + [POSE_RAD**-2] * 3)
    out.setflags(write=False)
    return out


#: Where the Hessian's six sums stand.
_PAIRS = ((0, 1, 2), (1, 3, 4), (2, 4, 5))


def _weighed(look: _Look, fit: _Fit, problem: _Problem, variance: float) -> tuple[Array, float]:
    """Sums in units of the noise, tiles that are too far off down-weighted; and the weighted variance of a pixel."""
    sums = _sums(look, fit, problem, 1.0 / (ROBUST**2 * variance))
    left = max(float(sums[..., 9].sum() / max(sums[..., 10].sum(), 1e-9)), 1e-3)
    fact = look.pixel_mm**2 / problem.density
    off = sums[..., 11] ** 2 * fact / np.maximum(sums[..., 10], 1e-9)
    sums *= (fact / (1.0 + off / TILE_ROBUST**2))[..., None]
    return sums, left


def _parameters(fit: _Fit) -> Array:
    return np.concatenate([fit.coefficients.ravel(), fit.pose])


def _system(look: _Look, fit: _Fit, problem: _Problem) -> tuple[Array, Array, float]:
    """Hessian and gradient of the energy by coefficients and pose, and the weighted variance of the residuals."""
    sums, variance = _weighed(look, fit, problem, fit.variance)
    hessian = np.zeros((_SIZE + 6, _SIZE + 6))
    nodes = np.empty((NODES, NODES, 3, NODES, NODES, 3))
    by_place = np.empty((*sums.shape[:2], 3, 3))
    for c in range(6):
        part = (look.pairs_j.T @ sums[..., c] @ look.pairs_i).reshape(NODES, NODES, NODES, NODES)
        for x, y in ((x, y) for x in range(3) for y in range(3) if _PAIRS[x][y] == c):
            nodes[:, :, x, :, :, y] = part.transpose(0, 2, 1, 3)
            by_place[..., x, y] = sums[..., c]
    matrix = problem.matrix(fit.pose)
    pose = point_jacobian((look.middles - problem.middle) @ matrix[:3, :3].T)
    pulled = by_place @ pose
    hessian[:_SIZE, :_SIZE] = nodes.reshape(_SIZE, _SIZE)
    across = look.tile_rows.T @ pulled.transpose(2, 3, 0, 1) @ look.tile_columns
    hessian[:_SIZE, _SIZE:] = across.transpose(2, 3, 0, 1).reshape(_SIZE, 6)
    hessian[_SIZE:, :_SIZE] = hessian[:_SIZE, _SIZE:].T
    hessian[_SIZE:, _SIZE:] = pose.reshape(-1, 6).T @ pulled.reshape(-1, 6)
    force = sums[..., 6:9]
    gradient = np.empty(_SIZE + 6)
    gradient[:_SIZE] = (look.tile_rows.T @ force.transpose(2, 0, 1) @ look.tile_columns).transpose(1, 2, 0).ravel()
    gradient[_SIZE:] = pose.reshape(-1, 6).T @ force.reshape(-1)
    return hessian + problem.penalty, gradient + problem.penalty @ _parameters(fit), variance


def _descend(look: _Look, fit: _Fit, problem: _Problem, most: int) -> None:
    """Steps on one level until they become small."""
    for _ in range(most):
        hessian, gradient, fit.variance = _system(look, fit, problem)
        step = cho_solve(cho_factor(hessian, check_finite=False), gradient, check_finite=False)
        fit.coefficients = fit.coefficients - step[:_SIZE].reshape(-1, 3)
        fit.pose = fit.pose - step[_SIZE:]
        fit.steps += 1
        fit.settled = float(np.sqrt((step[:_SIZE] ** 2).sum() / NODES**2)) < SETTLED_MM
        if fit.settled:
            return


def _energy(look: _Look, fit: _Fit, problem: _Problem, variance: float) -> float:
    """Half the weighted sum of squares in units of the noise, the penalty added."""
    sums, _ = _weighed(look, fit, problem, variance)
    flat = _parameters(fit)
    return 0.5 * (float(sums[..., 9].sum()) + float(flat @ problem.penalty @ flat))


def _finished(look: _Look, field: _Field, fit: _Fit, problem: _Problem, covariance: Array) -> SliceDeformation:
    """With what says how far to trust it: patches, Jacobian, length, expected error."""
    rigid = problem.rigid
    transform = Rigid.from_matrix(problem.matrix(fit.pose), rigid.transform.name)
    half = 0.5 * (NODES - 1) * NODE_MM
    line = np.arange(0.0, 2.0 * half + 1.0, 4.0)
    plane = field.origin + np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2) @ field.axes
    moved = (field.basis(plane) @ fit.coefficients).reshape(len(line), len(line), 3)
    # In the slices' frame; taken as the same everywhere across the plane.
    moved = moved @ transform.rotation
    jacobian = np.tile(np.eye(3), (len(line), len(line), 1, 1))
    for axis in range(2):
        slope = np.asarray(np.gradient(moved, line, axis=axis), np.float64)
        jacobian += slope[..., :, None] * field.axes[axis]
    determinant = np.linalg.det(jacobian)
    still = _Fit(np.zeros((NODES**2, 3)), np.zeros(6), 1.0)
    found = SliceDeformation(
        rigid, transform, problem.middle, fit.coefficients, covariance, fit.steps, fit.settled,
        float(np.linalg.norm(moved, axis=2).max()), _quiet(look, field, still, problem),
        _quiet(look, field, fit, problem), float(determinant.min()), float(determinant.max()),
        float((determinant <= 0.0).mean()), Verdict.GOOD, (), field,
    )  # fmt: skip
    verdict, reasons = _judged(found)
    return replace(found, verdict=verdict, reasons=reasons)


def _quiet(look: _Look, field: _Field, fit: _Fit, problem: _Problem) -> float:
    """Share of the patches in the square in which only noise is left."""
    tile = max(1, round(PATCH_MM / look.pixel_mm))
    start, step = _at_nodes(look.grid, field)
    inside = []
    for axis, size in ((1, look.values.shape[1]), (0, look.values.shape[2])):
        middle = start[axis] + step[axis] * (np.arange(-(-size // tile)) * tile + 0.5 * (tile - 1))
        inside.append((middle >= 0.0) & (middle <= NODES - 1.0))
    wide = replace(look, tile=tile, tile_rows=inside[0], tile_columns=inside[1])
    sums = _sums(wide, fit, problem, 0.0)
    known = inside[0][:, None] & inside[1] & (sums[..., 10] >= 0.5 * tile**2)
    left = sums[..., 9][known] / sums[..., 10][known]
    return float((left < QUIET_NOISE * noise_variance(look.values)).mean()) if known.any() else 0.0


def _judged(found: SliceDeformation) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict, and a sentence for each thing that speaks against the deformation, the worst first."""
    if found.rigid.verdict is Verdict.IMPLAUSIBLE:
        return Verdict.IMPLAUSIBLE, found.rigid.reasons
    if found.folded_fraction > 0.0:
        return Verdict.IMPLAUSIBLE, (f"the displacement folds over in {found.folded_fraction:.1%} of the square",)
    doubts = []
    if found.longest_mm > REACH_MM:
        doubts.append(
            f"tissue moves by up to {found.longest_mm:.1f} mm (searched up to {REACH_MM:g} mm): the needle may have "
            "moved it further than can be followed"
        )
    if found.quiet < GOOD_QUIET:
        doubts.append(
            f"more than noise is left in all but {found.quiet:.0%} of the patches around the needle (good from "
            f"{GOOD_QUIET:.0%})"
        )
    error = float(found.expected_error_mm(found.around)[0])
    if not error <= GOOD_DEFORMED_MM:
        doubts.append(
            f"the point deformed around is known to {error:.1f} mm only (good up to {GOOD_DEFORMED_MM:g} mm): there is "
            "too little structure near it"
        )
    if not found.settled:
        doubts.append("the displacement has not settled")
    return (Verdict.DOUBTFUL, tuple(doubts)) if doubts else (Verdict.GOOD, ())
