"""Rigid registration of points to a surface: robust point-to-plane steps (ICP) from many starts, with its own error.

Every moving point is drawn to the tangent plane of the nearest fixed one (Chen and Medioni 1992, Image Vision Comput.
10:145); residuals count by Tukey's biweight on a scale that follows them, and points whose nearest lies beyond a border
of the fixed surface do not count at all. When the first start does not end well, or few points leave room for doubt,
many starts are tried on few points and the best ones brought to rest on more.

How far the result may be off has three parts. The normal equations and the residuals give the covariance of the pose,
times how much more the mean residuals of compact pieces scatter than noise would let them. What the shape leaves open
is tried: pushed along its weakest directions, the surface has to come back. And what pieces say has changed its shape
moves what lies inside as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from nav.geometry.rigid import Rigid, rotation_angle_rad
from nav.registration import surface_kernels as kernels
from nav.registration.error_distribution import radius_of_share
from nav.registration.landmarks import point_covariance
from nav.registration.surface_kernels import KERNELS
from nav.registration.surface_points import LEAST_POINTS, Surface
from nav.registration.verdict import ImageRegistrationError, Verdict

__all__ = ["CAPTURE_DEG", "CAPTURE_MM", "KERNELS", "SurfaceRegistration", "register_surface"]

Array = NDArray[np.float64]
Single = NDArray[np.float32]
Progress = Callable[[float, str], None]

#: From so far off, at so large an angle, starts are spread.
CAPTURE_MM, CAPTURE_DEG = 30.0, 45.0
#: Tukey's constant: 95 % efficient on normal residuals; and the median's share of a standard deviation.
TUKEY, MAD = 4.685, 1.4826
#: A partner further along the surface than so many spacings of the fixed points lies beyond its border.
REACH_SPACINGS = 3.0
#: Of the points, so many are looked at in the search, in the choice, and before all are.
SEARCH_POINTS, CHOICE_POINTS, COARSE_POINTS = 160, 600, 600
#: The fixed surface of the search.
SEARCH_TREE_POINTS = 4000
SEARCH_STEPS, CHOICE_STEPS, CHOSEN = 12, 25, 10
DAMPING = 1e-3
MOST_ITERATIONS, SETTLING = 80, 25
#: Then a step of this share of the pose's standard error is small enough.
STEP_ERROR_SHARE = 0.1
#: A step that moves the points by less than this share of the residuals' deviation, or this many mm, ends it.
STEP_SHARE, STEP_MM, COARSE_STEP_SHARE = 0.005, 1e-4, 0.1
#: Pushed by so much along its weakest directions, mm rms over the points, the surface must come back.
PUSH_MM, PUSHED = 6.0, 3
#: Smallest eigenvalue of the normal equations over their mean from which no direction is weak.
FIRM = 0.05
#: A first start that ends like this is right: whole surfaces only, and not far from where it began.
SAFE_POINTS, SAFE_MATCHED, SAFE_SIGMA_SPACINGS, SAFE_SIGMA_MM, SAFE_MOVED_MM = 900, 0.9, 0.4, 0.8, 25.0
#: Pieces of the surface with fewer matched points say nothing of their mean, and fewer pieces nothing of their scatter.
LEAST_IN_PIECE, LEAST_PIECES = 6, 10
#: The mean slope of Tukey's psi is 0.76 for normal residuals; below this they are no longer a bulk with tails.
LEAST_SLOPE = 0.3
#: mm. Swabs with 1 to 1.5 mm noise: sigma up to 1.7, misfit up to 0.5. Another patient's liver, at its best: 4.2, 2.4.
GOOD_SIGMA_MM, MOST_SIGMA_MM, GOOD_MISFIT_MM, MOST_MISFIT_MM = 2.2, 3.5, 0.9, 1.8
#: Less of the points than what was said to lie on the surface, by so much, does not match.
MATCHED_SHARE = 0.8
#: Another end that comes so near to the best one could be the right one.
GOOD_RIVALRY = 0.85
#: Further from its start than the starts are spread nobody should be without looking.
FARTHEST_MM, FARTHEST_DEG = 100.0, 75.0
#: A predicted error above this at the points, mm, is no registration to aim by.
MOST_ERROR_MM = 10.0
#: Ends that lie closer to each other are one, mm.
DISTINCT_MM = 3.0
#: Steps after a push, and the share of it that must be left for the direction to be open.
PUSH_STEPS, OPEN_SHARE = 25, 0.5


@dataclass(frozen=True, slots=True, eq=False)
class _Tree:
    """Fixed points in the order of the tree, relative to ``origin``; ``spacing_mm``: how far apart they lie."""

    points: Single
    normals: Single
    dimension: NDArray[np.int8]
    value: Single
    levels: int
    spacing_mm: float

    @property
    def arguments(self) -> tuple[Single, Single, NDArray[np.int8], Single, int]:
        return self.points, self.normals, self.dimension, self.value, self.levels

    @classmethod
    def of(cls, points: Single, normals: Single) -> _Tree:
        n = len(points)
        levels = kernels.levels_of(n)
        tree, order = points.copy(), np.empty(n, np.int32)
        dimension, value = np.zeros(1 << levels, np.int8), np.zeros(1 << levels, np.float32)
        kernels.build_tree(tree, levels, order, dimension, value)
        return cls(tree, normals[order], dimension, value, levels, _spacing_mm(tree))


def _spacing_mm(tree: Single) -> float:
    """How far apart neighbours lie, mm, the upper tenth: of up to 150 runs of eight neighbours in the tree."""
    runs = tree[: len(tree) // 8 * 8].reshape(-1, 8, 3)
    runs = runs[:: max(1, len(runs) // 150)].astype(np.float64)
    if len(runs) == 0:
        return float(np.linalg.norm(np.ptp(tree, axis=0)))
    apart = np.linalg.norm(runs[:, :, None] - runs[:, None], axis=-1)
    apart[apart == 0.0] = np.inf
    nearest = apart.min(axis=-1)
    nearest = nearest[np.isfinite(nearest)]
    return float(np.percentile(nearest, 90)) if len(nearest) else 0.0


@dataclass(slots=True)
class _Fit:
    """Where the steps stand: the pose, moving to fixed, both about their origins; what the points say."""

    pose: Array
    iterations: int = 0
    converged: bool = False
    sigma_mm: float = math.inf
    sums: Array = field(default_factory=lambda: np.zeros((kernels.BLOCKS, kernels.SUMS)))
    residuals: Single = field(default_factory=lambda: np.zeros(0, np.float32))
    across: Single = field(default_factory=lambda: np.zeros(0, np.float32))
    centre: Array = field(default_factory=lambda: np.zeros(3))
    reach: float = math.inf
    before_mm: float = math.inf
    after_mm: float = math.inf

    @property
    def scale(self) -> float:
        return TUKEY * self.sigma_mm


def _turned(twist: Array, centre: Array) -> Array:
    """(4, 4) of a translation, mm, and a rotation vector, rad, about ``centre``."""
    out = np.eye(4)
    out[:3, :3] = Rotation.from_rotvec(twist[3:]).as_matrix()
    out[:3, 3] = centre - out[:3, :3] @ centre + twist[:3]
    return out


def _trimmed_mm(fit: _Fit, share: float) -> float:
    """Root mean square distance of the nearer ``share`` of the points from the fixed ones."""
    squares = fit.residuals.astype(np.float64) ** 2 + fit.across.astype(np.float64) ** 2
    kept = max(1, int(share * len(squares)))
    nearer = np.partition(squares, kept - 1)[:kept]
    nearer = nearer[np.isfinite(nearer)]
    return math.sqrt(float(nearer.mean())) if len(nearer) else math.inf


def _sigma_mm(fit: _Fit, reach: float) -> float:
    there = np.abs(fit.residuals[fit.across <= reach])
    if len(there) < LEAST_POINTS:
        there = np.abs(fit.residuals[np.isfinite(fit.across)])
    if len(there) == 0:
        return math.inf
    half = len(there) // 2
    return max(MAD * float(np.partition(there, half)[half]), 1e-5)


def _descend(
    tree: _Tree, points: Single, own: Single, pose: Array, overlap: float, *, rest: float = STEP_SHARE,
    sigma_mm: float | None = None,
) -> _Fit:  # fmt: skip
    """Steps from ``pose`` (4, 4) until the points rest: move by less than the share ``rest`` of the deviation.

    ``sigma_mm``: the deviation, where it is known already.
    """
    n = len(points)
    fit = _Fit(pose.copy())
    nearest = np.full(n, -1, np.int32)
    fit.residuals, fit.across = np.empty(n, np.float32), np.empty(n, np.float32)
    size = math.sqrt(float((points.astype(np.float64) ** 2).sum(axis=1).mean())) or 1.0
    middle = points.mean(axis=0, dtype=np.float64)
    border = REACH_SPACINGS * tree.spacing_mm
    enough = 0.0

    def look(scale: float, reach: float) -> None:
        fit.centre = fit.pose[:3, :3] @ middle + fit.pose[:3, 3]
        kernels.surface_equations(
            *tree.arguments, points, own, np.ascontiguousarray(fit.pose[:3]), fit.centre, np.float32(scale),
            np.float32(reach), nearest, fit.residuals, fit.across, fit.sums,
        )  # fmt: skip

    if sigma_mm is None:
        look(1e9, 1e9)
        fit.sigma_mm = _sigma_mm(fit, 3e38)
        fit.before_mm = _trimmed_mm(fit, overlap)
    else:
        fit.sigma_mm = sigma_mm
    for fit.iterations in range(1, MOST_ITERATIONS + 1):
        # Far off, a partner lies aside of the foot of the perpendicular; at rest it does not.
        settling = fit.iterations > SETTLING
        if not settling:
            fit.reach = max(border, 2.0 * fit.sigma_mm)
        look(fit.scale, fit.reach)
        s = fit.sums.sum(axis=0)
        step = -_solve(s[: kernels.G].reshape(6, 6), s[kernels.G : kernels.RR], size)
        if settling:
            # Few points may change partners in turns for ever: with the weights held, and half steps, they rest.
            step *= 0.5
        else:
            fit.sigma_mm = _sigma_mm(fit, fit.reach)
        fit.pose = _turned(step, fit.centre) @ fit.pose
        # Against what the residuals leave open anyway, once it is not far.
        enough = STEP_ERROR_SHARE * fit.sigma_mm * math.sqrt(6.0 / n) if settling else 0.0
        moved = math.sqrt(float(step[:3] @ step[:3]) + float(step[3:] @ step[3:]) * size**2)
        if moved < max(rest * fit.sigma_mm, enough, STEP_MM):
            # So small a step leaves the sums as they are.
            fit.converged = True
            break
    else:
        look(fit.scale, fit.reach)
    fit.after_mm = _trimmed_mm(fit, overlap)
    return fit


def _solve(h: Array, g: Array, size: float) -> Array:
    """Step of the normal equations; what the surface leaves open stays where it is."""
    units = np.array([1.0, 1.0, 1.0, 1.0 / size, 1.0 / size, 1.0 / size])
    scaled = h * np.outer(units, units)
    scaled += np.eye(6) * (1e-6 * np.trace(scaled) / 6.0 + 1e-12)
    return np.asarray(np.linalg.solve(scaled, g * units) * units)


@dataclass(frozen=True, slots=True, eq=False)
class SurfaceRegistration:
    """A rigid transform from points to a surface, and how far to trust it.

    Attributes
    ----------
    transform : Rigid
        Moving to fixed, RAS mm.
    iterations : int
        Steps of the fits that led to it.
    distance_before_mm, distance_after_mm : float
        Root mean square distance of the nearer `overlap` of the moving points from the fixed ones.
    matched : float
        Share of the moving points that have a partner within Tukey's reach.
    sigma_mm : float
        Robust standard deviation of the distances from the tangent planes: noise, and what the shapes differ by.
    misfit_mm : float
        Root mean square, over pieces of the surface, of their mean distance, what noise explains taken off: how far
        the shapes differ.
    rivalry : float
        Distance at the best end that is right against that of the best other one, 0 to 1; 0 where none was looked for.
    open_directions : tuple of str
        Motions that the shape leaves undetermined.
    centre_ras : (3,) float64
        Centre of the moving points where the transform takes them, mm.
    covariance : (6, 6) float64
        Of (translation mm, rotation vector rad) at ``centre_ras``, fixed frame.
    dof : float
        Degrees of freedom behind the scale of ``covariance``.
    verdict : Verdict
    reasons : tuple of str
        Why the verdict is not good; empty when it is.
    """

    transform: Rigid
    iterations: int
    distance_before_mm: float
    distance_after_mm: float
    matched: float
    sigma_mm: float
    misfit_mm: float
    rivalry: float
    open_directions: tuple[str, ...]
    centre_ras: Array
    covariance: Array
    dof: float
    verdict: Verdict
    reasons: tuple[str, ...]

    def covariance_at(self, points_ras: ArrayLike) -> Array:
        """(n, 3, 3) covariance, mm², of where points end up, (n, 3) RAS mm in the fixed frame."""
        arms = np.atleast_2d(np.asarray(points_ras, np.float64)) - self.centre_ras
        return np.array([point_covariance(self.covariance, arm) for arm in arms])

    def expected_error_mm(self, points_ras: ArrayLike, share: float = 0.95) -> Array:
        """(n,) radius, mm, that holds ``share`` of the errors at points, (n, 3) RAS mm in the fixed frame."""
        return np.array([radius_of_share(c, share, self.dof) for c in self.covariance_at(points_ras)])


def _silent(share: float, text: str) -> None:
    """Nobody wants to know."""


def _in_blocks(points: Single) -> tuple[Single, NDArray[np.int32]]:
    """The points so that every block of them is a compact piece: in the order of a tree; and that order."""
    levels = kernels.levels_of(len(points))
    order = np.empty(len(points), np.int32)
    nodes = 1 << levels
    kernels.build_tree(points, levels, order, np.zeros(nodes, np.int8), np.zeros(nodes, np.float32))
    return points, order


def _some(points: Single, own: Single, most: int) -> tuple[Single, Single]:
    """Every so many-th point."""
    every = -(-len(points) // most)
    return np.ascontiguousarray(points[::every]), np.ascontiguousarray(own[::every])


def _directions(n: int) -> Array:
    """(n, 3) on the unit sphere, evenly spread: a Fibonacci spiral."""
    z = 1.0 - (2.0 * np.arange(n) + 1.0) / n
    angle = np.arange(n) * (math.pi * (3.0 - math.sqrt(5.0)))
    ring = np.sqrt(1.0 - z * z)
    return np.stack([ring * np.cos(angle), ring * np.sin(angle), z], axis=1)


def _starts(pose: Array, points: Single) -> Array:
    """(s, 4, 4): turned about the centre of the points, where it is, and where the fixed centre is, and shifted."""
    middle = pose[:3, :3] @ points.mean(axis=0, dtype=np.float64) + pose[:3, 3]
    turns = [np.zeros(3)]
    turns += [np.deg2rad(0.55 * CAPTURE_DEG) * axis for axis in _directions(10)]
    turns += [np.deg2rad(1.1 * CAPTURE_DEG) * axis for axis in _directions(22)]
    shifts = [np.zeros(3), -middle]  # the tree is about its own centre
    starts = []
    for turn in turns:
        for shift in shifts:
            starts.append(_turned(np.concatenate([shift, turn]), middle) @ pose)
    for shift in np.concatenate([np.eye(3), -np.eye(3)]) * (2.0 / 3.0 * CAPTURE_MM):
        for turn in turns[:11]:
            starts.append(_turned(np.concatenate([shift, turn]), middle) @ pose)
    return np.array(starts)


def _searched(tree: _Tree, points: Single, own: Single, starts: Array, share: float, steps: int) -> tuple[Array, Array]:
    """Ends (s, 4, 4) and scores (s,), the best first."""
    poses = np.ascontiguousarray(starts[:, :3])
    scores = np.empty(len(poses))
    kernels.search(*tree.arguments, points, own, share, DAMPING, steps, poses, scores)
    order = np.argsort(scores, kind="stable")
    ends = np.tile(np.eye(4), (len(poses), 1, 1))
    ends[:, :3] = poses[order]
    return ends, scores[order]


def _apart_mm(one: Array, two: Array, points: Single) -> float:
    """Root mean square distance between where two poses take the points."""
    apart = points.astype(np.float64) @ (one - two)[:3, :3].T + (one - two)[:3, 3]
    return float(np.sqrt((apart**2).sum(axis=1).mean()))


def _twist(pose: Array, other: Array, centre: Array) -> Array:
    """(6,): translation of ``centre``, mm, and rotation vector, rad, that take ``other`` to ``pose``."""
    change = pose @ np.linalg.inv(other)
    return np.concatenate(
        [change[:3, :3] @ centre + change[:3, 3] - centre, Rotation.from_matrix(change[:3, :3]).as_rotvec()]
    )


def register_surface(
    fixed: Surface,
    moving: Surface,
    *,
    initial: Rigid,
    overlap: float = 0.7,
    progress: Progress | None = None,
) -> SurfaceRegistration:
    """Bring the points of ``moving`` onto the surface ``fixed``.

    Parameters
    ----------
    fixed : Surface
        What stays; its normals are estimated where it has none.
    moving : Surface
        A surface, or a few hundred points touched on a part of it.
    initial : Rigid
        Where to start, moving to fixed; may be `CAPTURE_MM` and `CAPTURE_DEG` off.
    overlap : float
        Share of the moving points that at least lie on the fixed surface, above 0 up to 1.
    progress : callable, optional
        Called with the share done, 0 to 1, and what comes next; raise in it to cancel.

    Raises
    ------
    ImageRegistrationError
        Points that determine nothing (`Surface.of`), or an ``overlap`` out of range.
    """
    if not 0.0 < overlap <= 1.0:
        raise ImageRegistrationError(f"overlap is {overlap:g}, it must lie above 0 and up to 1")
    tell: Progress = progress or _silent
    tell(0.0, "Looking at the surfaces")
    both = fixed.oriented and moving.oriented
    fixed = fixed.with_normals()
    assert fixed.normals is not None
    origin, moving_origin = fixed.points.mean(axis=0), moving.points.mean(axis=0)
    tree = _Tree.of((fixed.points - origin).astype(np.float32), fixed.normals.astype(np.float32))
    points, order = _in_blocks((moving.points - moving_origin).astype(np.float32))
    own = np.zeros((0, 3), np.float32)
    if both and moving.normals is not None:
        own = np.ascontiguousarray(moving.normals[order], np.float32)
    to, back = np.eye(4), np.eye(4)
    to[:3, 3], back[:3, 3] = -origin, moving_origin
    start = to @ initial.matrix @ back
    few, few_own = _some(points, own, COARSE_POINTS)

    tell(0.1, "Trying the start")
    best = _descend(tree, few, few_own, start, overlap, rest=COARSE_STEP_SHARE)
    iterations, rivalry, before_mm = best.iterations, 0.0, best.before_mm
    if not _looks_right(best, tree, points, start):
        tell(0.2, "Trying other starts")
        pose, rivalry = _choose(tree, points, own, start, best.pose, overlap)
        best = _descend(tree, few, few_own, pose, overlap)
        iterations += best.iterations
    tell(0.7, "Settling")
    if len(points) > len(few):
        best = _descend(tree, points, own, best.pose, overlap, sigma_mm=best.sigma_mm)
        iterations += best.iterations
    tell(0.8, "Estimating the error")
    return _result(initial, tree, points, own, start, best, iterations, rivalry, overlap, before_mm, origin,
                   moving_origin)  # fmt: skip


def _matched(fit: _Fit) -> float:
    return float(fit.sums[:, kernels.USED].sum()) / len(fit.residuals)


def _looks_right(fit: _Fit, tree: _Tree, points: Single, start: Array) -> bool:
    return (
        fit.converged
        and len(points) >= SAFE_POINTS
        and _matched(fit) >= SAFE_MATCHED
        and fit.sigma_mm <= max(SAFE_SIGMA_SPACINGS * tree.spacing_mm, SAFE_SIGMA_MM)
        and _apart_mm(fit.pose, start, points) <= SAFE_MOVED_MM
    )


def _choose(
    tree: _Tree, points: Single, own: Single, start: Array, first: Array, overlap: float
) -> tuple[Array, float]:
    """The best end of many starts, and how near the best other one comes to it."""
    every = -(-len(tree.points) // SEARCH_TREE_POINTS)
    small = (
        tree
        if every == 1
        else _Tree.of(np.ascontiguousarray(tree.points[::every]), np.ascontiguousarray(tree.normals[::every]))
    )
    few, few_own = _some(points, own, SEARCH_POINTS)
    ends, _ = _searched(small, few, few_own, _starts(start, points), overlap, SEARCH_STEPS)
    chosen = [first]
    for end in ends:
        if len(chosen) > CHOSEN:
            break
        if all(_apart_mm(end, other, few) > DISTINCT_MM for other in chosen[1:]):
            chosen.append(end)
    more, more_own = _some(points, own, CHOICE_POINTS)
    ends, scores = _searched(tree, more, more_own, np.array(chosen), overlap, CHOICE_STEPS)
    others = [s for e, s in zip(ends[1:], scores[1:], strict=True) if _apart_mm(e, ends[0], few) > 2.0 * DISTINCT_MM]
    return ends[0], float(scores[0] / others[0]) if others else 0.0


def _counted(fit: _Fit) -> NDArray[np.bool_]:
    return np.asarray((fit.across <= fit.reach) & (np.abs(fit.residuals) < fit.scale))


def _pieces(fit: _Fit) -> tuple[float, float]:
    """Of compact pieces of the surface: how far their mean residuals scatter, mm, what noise explains taken off; and
    their scatter over that of noise alone, as a ratio of variances; 0 and 1 where chance explains it.
    """
    used = _counted(fit)
    number = np.arange(len(used)) * min(kernels.BLOCKS, max(1, int(used.sum()) // 8)) // len(used)
    r = fit.residuals[used].astype(np.float64)
    count = np.bincount(number[used]).astype(np.float64)
    total, squares = np.bincount(number[used], r), np.bincount(number[used], r**2)
    full = count >= LEAST_IN_PIECE
    count, mean = count[full], total[full] / count[full]
    if len(mean) < LEAST_PIECES:
        return 0.0, 1.0
    noise = np.maximum(squares[full] / count - mean**2, 0.0) / (count - 1.0)
    # Six of the means are taken up by the fit itself.
    scatter = float(np.average(mean**2, weights=count)) * len(mean) / (len(mean) - 6.0)
    expected = float(np.average(noise, weights=count))
    ratio = scatter / max(expected, 1e-12)
    # Of a ratio of 1, chance makes up to this: taken as more, it would be said of every second good registration.
    if ratio <= 1.0 + 2.0 * math.sqrt(2.0 / (len(mean) - 6.0)):
        return 0.0, 1.0
    return math.sqrt(scatter - expected), ratio


def _residual_covariance(fit: _Fit) -> tuple[Array, float]:
    """(6, 6) covariance at ``fit.centre`` if every residual stands for itself, and its degrees of freedom.

    Of an M-estimate with Tukey's weights (Huber, Robust Statistics, section 7.6): the normal equations' inverse times
    the mean of psi squared over the squared mean of its slope.
    """
    s = fit.sums.sum(axis=0)
    r = fit.residuals[_counted(fit)].astype(np.float64)
    dof = len(r) - 6.0
    if dof < 1.0:
        return np.diag([CAPTURE_MM**2] * 3 + [math.radians(CAPTURE_DEG) ** 2] * 3), 1.0
    u2 = (r / fit.scale) ** 2
    weight = (1.0 - u2) ** 2
    slope = max(float(((1.0 - u2) * (1.0 - 5.0 * u2)).mean()), LEAST_SLOPE)
    h = s[: kernels.G].reshape(6, 6) / float(weight.mean())
    return np.asarray(np.linalg.pinv(h) * float(((r * weight) ** 2).sum()) / dof / slope**2), dof


def _pushed(tree: _Tree, points: Single, own: Single, fit: _Fit, share: float) -> tuple[Array, tuple[str, ...]]:
    """(6, 6) covariance at ``fit.centre`` of where pushes along the weakest directions end; which do not come back."""
    more, more_own = _some(points, own, CHOICE_POINTS)
    h = fit.sums.sum(axis=0)[: kernels.G].reshape(6, 6)
    size = math.sqrt(float((points.astype(np.float64) ** 2).sum(axis=1).mean())) or 1.0
    units = np.array([1.0, 1.0, 1.0, 1.0 / size, 1.0 / size, 1.0 / size])
    firmness, directions = np.linalg.eigh(h * np.outer(units, units))
    # Many points, and every motion moves them across the surface: there is nothing to try.
    if len(points) >= SAFE_POINTS and firmness[0] >= FIRM * firmness.sum() / 6.0:
        return np.zeros((6, 6)), ()
    directions = directions[:, :PUSHED] * units[:, None]
    twists = [sign * PUSH_MM * d for d in directions.T for sign in (1.0, -1.0)]
    starts = np.array([fit.pose, *(_turned(t, fit.centre) @ fit.pose for t in twists)])
    poses, scores = np.ascontiguousarray(starts[:, :3]), np.empty(len(starts))
    kernels.search(*tree.arguments, more, more_own, share, 1e-6, PUSH_STEPS, poses, scores)
    ends = np.tile(np.eye(4), (len(poses), 1, 1))
    ends[:, :3] = poses
    covariance, names = np.zeros((6, 6)), []
    for n, direction in enumerate(directions.T):
        left = [_twist(end, ends[0], fit.centre) for end in ends[1 + 2 * n : 3 + 2 * n]]
        away = [_apart_mm(end, ends[0], more) for end in ends[1 + 2 * n : 3 + 2 * n]]
        # Ends that are as good are what leaves a direction open, not another minimum that is worse.
        if min(away) > OPEN_SHARE * PUSH_MM:
            names.append(_named(direction, size))
            covariance += np.outer(direction, direction) * CAPTURE_MM**2
        else:
            covariance += sum((np.outer(t, t) for t in left), np.zeros((6, 6))) / 2.0
    return covariance, tuple(names)


def _named(direction: Array, size: float) -> str:
    shift, turn = direction[:3], direction[3:] * size
    kind, axis = ("shift along", shift) if shift @ shift >= turn @ turn else ("turn about", turn)
    axis = axis / np.linalg.norm(axis)
    axis = axis * (1.0 if axis[np.argmax(np.abs(axis))] > 0 else -1.0)
    main = int(np.argmax(np.abs(axis)))
    if abs(axis[main]) > 0.95:
        return f"{kind} {('left-right', 'back-front', 'feet-head')[main]}"
    return f"{kind} (R {axis[0]:.2f}, A {axis[1]:.2f}, S {axis[2]:.2f})"


def _result(
    initial: Rigid, tree: _Tree, points: Single, own: Single, start: Array, fit: _Fit,
    iterations: int, rivalry: float, overlap: float, before_mm: float, origin: Array, moving_origin: Array,
) -> SurfaceRegistration:  # fmt: skip
    to, back = np.eye(4), np.eye(4)
    to[:3, 3], back[:3, 3] = origin, -moving_origin
    matched = _matched(fit)
    misfit, scatter = _pieces(fit)
    covariance, dof = _residual_covariance(fit)
    pushed, names = _pushed(tree, points, own, fit, max(0.5, min(0.95, 0.9 * matched)))
    # What neighbours have in common counts once for all of them, and a changed shape moves what lies inside it too.
    covariance = covariance * scatter + pushed
    covariance[:3, :3] += misfit**2 / 3.0 * np.eye(3)
    found = SurfaceRegistration(
        transform=Rigid.from_matrix(to @ fit.pose @ back, initial.name),
        iterations=iterations,
        distance_before_mm=before_mm,
        distance_after_mm=fit.after_mm,
        matched=matched, sigma_mm=fit.sigma_mm, misfit_mm=misfit, rivalry=rivalry, open_directions=names,
        centre_ras=fit.centre + origin, covariance=covariance, dof=dof, verdict=Verdict.GOOD, reasons=(),
    )  # fmt: skip
    change = fit.pose @ np.linalg.inv(start)
    moved = _apart_mm(fit.pose, start, points)
    verdict, reasons = _judged(found, fit, overlap, moved, math.degrees(rotation_angle_rad(change[:3, :3])))
    return replace(found, verdict=verdict, reasons=reasons)


def _judged(
    found: SurfaceRegistration, fit: _Fit, overlap: float, moved_mm: float, turned_deg: float
) -> tuple[Verdict, tuple[str, ...]]:
    wrong, doubts = [], []

    def judge(text: str, value: float, good: float, most: float) -> None:
        if not value <= most:
            wrong.append(f"{text} (at most {most:g} mm)")
        elif value > good:
            doubts.append(f"{text} (good up to {good:g} mm)")

    judge(f"points lie {found.sigma_mm:.1f} mm off the surface", found.sigma_mm, GOOD_SIGMA_MM, MOST_SIGMA_MM)
    judge(
        f"pieces of the surface lie {found.misfit_mm:.1f} mm off, which noise does not explain: another shape",
        found.misfit_mm, GOOD_MISFIT_MM, MOST_MISFIT_MM,
    )  # fmt: skip
    least = MATCHED_SHARE * overlap
    if found.matched < least:
        wrong.append(f"{found.matched:.0%} of the points have a partner (at least {least:.0%})")
    if found.open_directions:
        doubts.append(
            "the shape leaves open: " + ", ".join(found.open_directions) + "; touch points where it is not so even"
        )
    if found.rivalry > GOOD_RIVALRY:
        doubts.append(f"another pose fits nearly as well ({found.rivalry:.0%}; good up to {GOOD_RIVALRY:.0%})")
    if moved_mm > FARTHEST_MM or turned_deg > FARTHEST_DEG:
        doubts.append(
            f"it moves the points by {moved_mm:.0f} mm and {turned_deg:.0f} degrees from the start (expected up to "
            f"{FARTHEST_MM:g} mm and {FARTHEST_DEG:g} degrees)"
        )
    error = float(found.expected_error_mm(found.centre_ras)[0])
    if error > MOST_ERROR_MM and not found.open_directions:
        doubts.append(f"expected error {error:.1f} mm at the centre of the points (at most {MOST_ERROR_MM:g} mm)")
    if wrong:
        return Verdict.IMPLAUSIBLE, (*wrong, *doubts)
    if not fit.converged:
        return Verdict.NOT_CONVERGED, (f"not settled after {MOST_ITERATIONS} steps", *doubts)
    return (Verdict.DOUBTFUL if doubts else Verdict.GOOD), tuple(doubts)
