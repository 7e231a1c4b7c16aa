"""Local deformation of a slice after its rigid registration: a smooth displacement of its points in the CT.

The slice's points x are taken to ``T x + u(x)``: u is a cubic B-spline in the plane of the slice, with three
components, in a square around the needle, and fades to zero at its border. A needle moves tissue by more than the pitch
of any level, and across the plane too; so first smooth bumps around the needle are tried, of every length within
±12 mm along each axis and of two widths. From the best of them, and from none, Gauss-Newton on the B-spline's
coefficients follows, with the weights of the rigid registration; the prior is a Gaussian process with displacements of
some mm that are alike over some cm (as in Lüthi, Gerig, Jud, Vetter, "Gaussian process morphable models", IEEE TPAMI
40:1860, 2018). What explains the slice best is kept.

What is left unknown is the inverse of the Hessian with that prior: near structure the data decide, away from it the
prior says how far tissue may have moved. It is widened by what was measured, and what the rigid pose leaves unknown is
added.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.ndimage import distance_transform_edt

from nav.geometry.kernels import KernelSpec
from nav.geometry.volume import Volume
from nav.registration import slice_deform_kernels as kernels
from nav.registration.error_distribution import radius_of_share
from nav.registration.pyramid import Level
from nav.registration.slice_image import SliceImage
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
#: So many bumps are followed, that far apart from each other and from none.
STARTS, APART_MM = 3, 4.0
#: Displacements in the prior: how long, how far they are alike (sigma), and how much each coefficient is its own, mm.
PRIOR_MM, PRIOR_WIDTH_MM, ROUGH_MM = 6.0, 32.0, 0.1
#: Pixels are summed in tiles so wide, mm.
TILE_MM = 5.0
#: Neighbouring pixels and what the model leaves out are not independent: an area of so many mm² counts as one fact.
FACT_MM2 = 25.0
#: The inverse Hessian knows of one minimum only, and the best is not always the right one: at the tip of a needle that
#: has moved tissue by 10 mm, errors reached 2.2 times the radius it gives for 95 %.
WIDER = 2.2
#: A step below this is the last; an expected error, mm at 95 %, above which the displacement is not known well.
SETTLED_MM, GOOD_DEFORMED_MM = 0.2, 4.0
#: Levels from the finest, at most so many Gauss-Newton steps on each, and the residual, in standard deviations, that
#: counts half.
LEVELS, MOST_STEPS, ROBUST = 2, 10, 2.0


@dataclass(frozen=True, slots=True, eq=False)
class _Field:
    """The B-spline's place: where node (0, 0) lies and the axes of the plane, all in the slices' frame, mm."""

    origin: Array
    axes: Array

    def basis(self, points: Array) -> Array:
        """(n, NODES²) at (n, 3) points of the slices' frame."""
        at = (points - self.origin) @ self.axes.T / NODE_MM
        return np.asarray(np.einsum("pa,pb->pab", _bspline(at[:, 1]), _bspline(at[:, 0])).reshape(len(points), -1))


def _bspline(at: Array) -> Array:
    """(n, NODES) cubic B-splines about nodes 0, 1 … at places ``at``, in node spacings."""
    far = np.abs(np.asarray(at)[:, None] - np.arange(NODES))
    inner = 2.0 / 3.0 - far**2 + 0.5 * far**3
    outer = (2.0 - far) ** 3 / 6.0
    return np.asarray(np.where(far < 1.0, inner, np.where(far < 2.0, outer, 0.0)))


@dataclass(frozen=True, slots=True, eq=False)
class SliceDeformation:
    """Where the points of a slice lie in the CT.

    Attributes
    ----------
    rigid : SliceRegistration
        What it starts from, and what holds outside the square.
    around : (3,) float64
        Middle of the square, mm, slices' frame.
    coefficients : (NODES², 3) float64
        Of the B-spline, mm, CT frame.
    covariance : (NODES² · 3, NODES² · 3) float64
        Of the coefficients, mm², the components of a node side by side.
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
        """(n, 3) mm, CT frame, on top of the rigid transform, of (n, 3) points of the slices' frame, mm."""
        return self.field.basis(np.atleast_2d(np.asarray(points, np.float64))) @ self.coefficients

    def to_ct(self, points: ArrayLike) -> Array:
        """(n, 3) RAS mm in the CT of (n, 3) points of the slices' frame, mm."""
        p = np.atleast_2d(np.asarray(points, np.float64))
        return self.rigid.transform.apply(p) + self.displacement_at(p)

    def covariance_at(self, points: ArrayLike) -> Array:
        """(n, 3, 3) mm², of `to_ct` at (n, 3) points of the slices' frame, mm."""
        p = np.atleast_2d(np.asarray(points, np.float64))
        basis = self.field.basis(p)
        by_node = self.covariance.reshape(NODES**2, 3, NODES**2, 3)
        own = np.einsum("pa,aibj,pb->pij", basis, by_node, basis, optimize=True)
        return np.asarray(own + self.rigid.pose_covariance_at(self.to_ct(p)))

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
    image = SliceImage.of(slices, mask)
    axes = (slices.ras_from_index[:3, :2] / slices.spacing_mm[:2]).T
    field = _Field(middle - 0.5 * (NODES - 1) * NODE_MM * (axes[0] + axes[1]), axes)
    search = max((v for v in prepared.levels if v.pitch_mm <= SEARCH_PITCH_MM), default=prepared.levels[0],
                 key=lambda level: level.pitch_mm)  # fmt: skip
    look = _look(image, search, rigid.transform.matrix, field)
    variance = _variance(look, rigid)
    starts = _starts(look, slices, rigid, variance)
    tell(0.5, "refinement")
    penalty = _penalty()
    fine = [level for level in prepared.levels if level.pitch_mm <= search.pitch_mm][:LEVELS]
    fits = [_Fit(start, variance) for start in starts]
    for fit in fits:
        _descend(look, fit, rigid, penalty)
    best = min(fits, key=lambda fit: _energy(look, fit, rigid, penalty, min(f.variance for f in fits)))
    for n in range(len(fine) - 2, -1, -1):
        look = _look(image, fine[n], rigid.transform.matrix, field)
        _descend(look, best, rigid, penalty)
    tell(0.9, "quality")
    covariance = WIDER**2 * np.asarray(np.linalg.inv(_system(look, best, rigid, penalty)[0]), np.float64)
    return _finished(look, field, best, rigid, covariance)


@dataclass(frozen=True, slots=True, eq=False)
class _Look:
    """The part of the slices around the square on one level: pixels, where they lie, and the B-spline there."""

    level: Level
    values: NDArray[np.float32]
    index: NDArray[np.float32]
    turn: NDArray[np.float32]
    pixel_mm: float
    tile: int
    tiles: tuple[int, int]
    rows: Array
    columns: Array
    tile_rows: Array
    tile_columns: Array
    pixel_at: tuple[Array, Array]


def _look(image: SliceImage, level: Level, matrix: Array, field: _Field) -> _Look:
    values, grid = image.level(level.pitch_mm)
    spacing = np.linalg.norm(grid[:3, :2], axis=0)
    start = ((grid[:3, 3] - field.origin) @ field.axes.T) / NODE_MM
    step = spacing / NODE_MM
    # Pixels within reach of a node: two spacings beyond the outermost.
    size = values.shape[2:0:-1]
    bounds = []
    for axis in range(2):
        low = max(0, math.ceil((-2.0 - start[axis]) / step[axis]))
        high = min(size[axis], math.floor((NODES + 1.0 - start[axis]) / step[axis]) + 1)
        bounds.append((low, high))
    (left, right), (top, bottom) = bounds
    if right - left < 8 or bottom - top < 8:
        raise ImageRegistrationError("the point to deform around lies outside the slices; choose one inside")
    values = np.ascontiguousarray(values[:, top:bottom, left:right])
    shift = np.eye(4)
    shift[:2, 3] = left, top
    index = level.volume.index_from_ras @ matrix @ grid @ shift
    tile = max(1, round(TILE_MM / float(spacing.mean())))
    tiles = (-(-values.shape[1] // tile), -(-values.shape[2] // tile))
    at_j = start[1] + step[1] * np.arange(top, bottom)
    at_i = start[0] + step[0] * np.arange(left, right)
    middle_j = start[1] + step[1] * (top + np.arange(tiles[0]) * tile + 0.5 * (tile - 1))
    middle_i = start[0] + step[0] * (left + np.arange(tiles[1]) * tile + 0.5 * (tile - 1))
    return _Look(
        level, values, np.ascontiguousarray(index[:3], np.float32),
        np.ascontiguousarray(level.volume.index_from_ras[:3, :3], np.float32), float(spacing.mean()), tile, tiles,
        _bspline(at_j), _bspline(at_i), _bspline(middle_j), _bspline(middle_i), (at_j, at_i),
    )  # fmt: skip


@dataclass(slots=True, eq=False)
class _Fit:
    """Coefficients (NODES², 3), and the weighted variance of the residuals, HU²."""

    coefficients: Array
    variance: float
    steps: int = 0
    settled: bool = False


def _sums(look: _Look, coefficients: Array, rigid: SliceRegistration, robust: float) -> Array:
    """(tiles j, tiles i, TILE_SUMS)."""
    cubes = coefficients.reshape(NODES, NODES, 3)
    displacement = np.einsum("ja,abc,ib->jic", look.rows, cubes, look.columns, optimize=True)
    out = np.empty((*look.tiles, kernels.TILE_SUMS))
    kernels.tile_sums(
        look.values, look.level.volume.array, look.index, look.turn, np.ascontiguousarray(displacement, np.float32),
        look.tile, np.float32(rigid.scale), np.float32(rigid.offset), np.float32(robust), out,
    )  # fmt: skip
    return out


def _variance(look: _Look, rigid: SliceRegistration) -> float:
    """Of the residuals where the rigid pose holds: the median over the tiles."""
    sums = _sums(look, np.zeros((NODES**2, 3)), rigid, 0.0)
    known = sums[..., 10] > 0.0
    if not known.any():
        raise ImageRegistrationError("nothing is known of the slices around the point to deform around")
    return max(float(np.median(sums[..., 9][known] / sums[..., 10][known])), 1.0)


def _starts(look: _Look, slices: Volume, rigid: SliceRegistration, variance: float) -> list[Array]:
    """Coefficients (NODES², 3) to start from: no displacement, and bumps around the middle that cost little."""
    axes = rigid.transform.rotation @ (slices.ras_from_index[:3, :3] / slices.spacing_mm)
    count = round(REACH_MM / SEARCH_STEP_MM)
    line = np.arange(-count, count + 1) * SEARCH_STEP_MM
    steps = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1).reshape(-1, 3) @ axes.T
    prior = 0.5 * (steps**2).sum(axis=1) / PRIOR_MM**2
    middle = 0.5 * (NODES - 1) * NODE_MM
    nodes = np.arange(NODES) * NODE_MM - middle
    through = np.linalg.inv(_bspline(np.arange(NODES, dtype=np.float64)))
    bumps, energies = [], []
    for width in BUMPS_MM:
        rows, columns = (np.exp(-0.5 * ((at * NODE_MM - middle) / width) ** 2) for at in look.pixel_at)
        out = np.empty(len(steps))
        kernels.bump_costs(
            look.values, look.level.volume.array, look.index, np.outer(rows, columns).astype(np.float32),
            np.ascontiguousarray(steps @ look.turn.T, np.float32), np.float32(rigid.scale), np.float32(rigid.offset),
            np.float32(SEARCH_CUT**2 * variance), out,
        )  # fmt: skip
        energies.append(0.5 * out * look.pixel_mm**2 / FACT_MM2 / variance + prior)
        # The B-spline that has the bump's values at the nodes.
        values = through @ np.exp(-0.5 * (nodes / width) ** 2)
        bumps.append(np.outer(values, values).ravel())
    order = np.argsort(np.concatenate(energies), kind="stable")
    chosen: list[Array] = [np.zeros(3)]
    starts = [np.zeros((NODES**2, 3))]
    for n in order:
        width, step = divmod(int(n), len(steps))
        if all(float(np.linalg.norm(steps[step] - other)) > APART_MM for other in chosen):
            chosen.append(steps[step])
            starts.append(np.outer(bumps[width], steps[step]))
        if len(starts) > STARTS:
            break
    return starts


def _penalty() -> Array:
    """(NODES² · 3, NODES² · 3): inverse covariance of the coefficients in the prior."""
    at = np.stack(np.meshgrid(*[np.arange(NODES) * NODE_MM] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    far = ((at[:, None] - at[None]) ** 2).sum(axis=-1)
    covariance = PRIOR_MM**2 * np.exp(-0.5 * far / PRIOR_WIDTH_MM**2) + ROUGH_MM**2 * np.eye(NODES**2)
    return np.asarray(np.kron(np.linalg.inv(covariance), np.eye(3)))


#: Where the Hessian's six sums stand.
_PAIRS = ((0, 1, 2), (1, 3, 4), (2, 4, 5))


def _system(look: _Look, fit: _Fit, rigid: SliceRegistration, penalty: Array) -> tuple[Array, Array, float]:
    """Hessian and gradient of the energy by the coefficients, and the weighted variance of the residuals."""
    sums = _sums(look, fit.coefficients, rigid, 1.0 / (ROBUST**2 * fit.variance))
    variance = max(float(sums[..., 9].sum() / max(sums[..., 10].sum(), 1e-9)), 1e-3)
    sums[..., :9] *= look.pixel_mm**2 / FACT_MM2 / variance
    rows = np.einsum("ta,tb->tab", look.tile_rows, look.tile_rows).reshape(look.tiles[0], -1)
    columns = np.einsum("ta,tb->tab", look.tile_columns, look.tile_columns).reshape(look.tiles[1], -1)
    hessian = np.empty((NODES, NODES, 3, NODES, NODES, 3))
    for c in range(6):
        part = (rows.T @ sums[..., c] @ columns).reshape(NODES, NODES, NODES, NODES).transpose(0, 2, 1, 3)
        for x, y in ((x, y) for x in range(3) for y in range(3) if _PAIRS[x][y] == c):
            hessian[:, :, x, :, :, y] = part
    size = 3 * NODES**2
    gradient = np.einsum("ta,tsc,sb->abc", look.tile_rows, sums[..., 6:9], look.tile_columns, optimize=True).ravel()
    return hessian.reshape(size, size) + penalty, gradient + penalty @ fit.coefficients.ravel(), variance


def _descend(look: _Look, fit: _Fit, rigid: SliceRegistration, penalty: Array) -> None:
    """Steps on one level until they become small."""
    for _ in range(MOST_STEPS):
        _step(look, fit, rigid, penalty)
        if fit.settled:
            return


def _step(look: _Look, fit: _Fit, rigid: SliceRegistration, penalty: Array) -> None:
    hessian, gradient, fit.variance = _system(look, fit, rigid, penalty)
    step = cho_solve(cho_factor(hessian, check_finite=False), gradient, check_finite=False)
    fit.coefficients = fit.coefficients - step.reshape(-1, 3)
    fit.steps += 1
    fit.settled = float(np.abs(step).max()) < SETTLED_MM


def _energy(look: _Look, fit: _Fit, rigid: SliceRegistration, penalty: Array, variance: float) -> float:
    """Half the sum of ``r²/(1 + r²/(2σ)²)`` in σ², the penalty added."""
    sums = _sums(look, fit.coefficients, rigid, 1.0 / (ROBUST**2 * variance))
    flat = fit.coefficients.ravel()
    data = float(sums[..., 9].sum()) * look.pixel_mm**2 / FACT_MM2 / variance
    return 0.5 * (data + float(flat @ penalty @ flat))


def _finished(look: _Look, field: _Field, fit: _Fit, rigid: SliceRegistration, covariance: Array) -> SliceDeformation:
    """With what says how far to trust it: patches, Jacobian, length, expected error."""
    half = 0.5 * (NODES - 1) * NODE_MM
    line = np.arange(0.0, 2.0 * half + 1.0, 4.0)
    plane = field.origin + np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2) @ field.axes
    moved = (field.basis(plane) @ fit.coefficients).reshape(len(line), len(line), 3)
    # In the slices' frame; taken as the same everywhere across the plane.
    moved = moved @ rigid.transform.rotation
    jacobian = np.tile(np.eye(3), (len(line), len(line), 1, 1))
    for axis in range(2):
        slope = np.asarray(np.gradient(moved, line, axis=axis), np.float64)
        jacobian += slope[..., :, None] * field.axes[axis]
    determinant = np.linalg.det(jacobian)
    found = SliceDeformation(
        rigid, field.origin + half * (field.axes[0] + field.axes[1]), fit.coefficients, covariance, fit.steps,
        fit.settled, float(np.linalg.norm(moved, axis=2).max()), _quiet(look, 0.0 * fit.coefficients, rigid),
        _quiet(look, fit.coefficients, rigid), float(determinant.min()), float(determinant.max()),
        float((determinant <= 0.0).mean()), Verdict.GOOD, (), field,
    )  # fmt: skip
    verdict, reasons = _judged(found)
    return replace(found, verdict=verdict, reasons=reasons)


def _quiet(look: _Look, coefficients: Array, rigid: SliceRegistration) -> float:
    """Share of the patches in the square in which only noise is left."""
    wide = replace(look, tile=max(1, round(PATCH_MM / look.pixel_mm)))
    nj, ni = look.values.shape[1:]
    wide = replace(wide, tiles=(-(-nj // wide.tile), -(-ni // wide.tile)))
    sums = _sums(wide, coefficients, rigid, 0.0)
    known = sums[..., 10] >= 0.5 * wide.tile**2
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
