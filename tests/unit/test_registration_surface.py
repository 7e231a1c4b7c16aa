"""Points onto surfaces: right from far off, wrong ones found out, and what a shape leaves open named."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from nav.geometry.rigid import Rigid
from nav.registration.point_drift import register_drift
from nav.registration.surface import SurfaceRegistration, register_surface
from nav.registration.surface_points import Surface
from nav.registration.verdict import ImageRegistrationError, Verdict
from nav.registration.vessel_trees import match_trees

Array = NDArray[np.float64]
NAME = "MovingToFixed"
CENTRE = np.array([60.0, -40.0, 900.0])


def organ(n: int, seed: int, lobes: float = 1.0) -> tuple[Array, Array]:
    """Points, RAS mm, and outward normals of a lobed, lopsided body of 150 mm; every ``lobes`` is another patient."""
    d = np.random.default_rng(seed).normal(size=(n, 3))
    d /= np.linalg.norm(d, axis=1)[:, None]

    def radius(d: Array) -> Array:
        x, y, z = d.T
        bumps = (
            0.25 * x * lobes + 0.2 * np.sin(3 * y * lobes + 1) + 0.15 * np.cos(4 * z + lobes) * x + 0.2 * y * z * lobes
        )
        return np.asarray(75.0 * (1.0 + bumps))

    p = d * radius(d)[:, None] * (1.0, 0.8, 0.6)
    # The normal of the level set |q| - radius(q / |q|) of the unscaled point, by differences.
    gradient = np.empty((n, 3))
    for axis in range(3):
        step = np.zeros(3)
        step[axis] = 1e-4
        value = []
        for sign in (1.0, -1.0):
            q = (p + sign * step) / (1.0, 0.8, 0.6)
            size = np.linalg.norm(q, axis=1)
            value.append(size - radius(q / size[:, None]))
        gradient[:, axis] = value[0] - value[1]
    return p + CENTRE, gradient / np.linalg.norm(gradient, axis=1)[:, None]


FIXED = Surface.of(*organ(6000, 1))
TARGETS = CENTRE + np.random.default_rng(9).uniform(-30, 30, (60, 3))


def away(millimetres: float, degrees: float, seed: int) -> Array:
    axis, direction = (v / np.linalg.norm(v) for v in np.random.default_rng(seed).normal(size=(2, 3)))
    out = np.eye(4)
    out[:3, :3] = Rotation.from_rotvec(np.deg2rad(degrees) * axis).as_matrix()
    out[:3, 3] = CENTRE - out[:3, :3] @ CENTRE + millimetres * direction
    return out


def applied(matrix: Array, points: Array) -> Array:
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def swab(n: int, seed: int, noise: float = 1.0, outliers: float = 0.0) -> Array:
    """Points of the front left third, where the fixed surface is."""
    points, _ = organ(8 * n, seed + 100)
    points = points[(points - CENTRE) @ (0.7, 0.5, 0.5) > 12.0][:n]
    assert len(points) == n
    rng = np.random.default_rng(seed)
    points = points + rng.normal(0, noise, points.shape)
    points[: int(outliers * n)] += rng.normal(0, 15, (int(outliers * n), 3))
    return points


def registered(points: Array, millimetres: float, degrees: float, seed: int) -> tuple[SurfaceRegistration, Array]:
    """And the errors at the targets."""
    truth = away(20.0, 40.0, seed + 50)
    moving = Surface.of(applied(np.linalg.inv(truth), points))
    start = Rigid.from_matrix(away(millimetres, degrees, seed) @ truth, NAME)
    result = register_surface(FIXED, moving, initial=start)
    back = applied(result.transform.matrix @ np.linalg.inv(truth), TARGETS)
    return result, np.linalg.norm(back - TARGETS, axis=1)


@pytest.mark.parametrize("seed", range(6))
def test_a_swab_with_outliers_comes_home_from_45_degrees_and_30_mm(seed: int) -> None:
    result, errors = registered(swab(300, seed, outliers=0.2), 30.0, 45.0, seed)
    assert errors.mean() < 2.0
    assert result.verdict is Verdict.GOOD, result.reasons
    assert result.distance_after_mm < 2.5 < result.distance_before_mm
    assert 0.8 < result.sigma_mm < 1.7
    assert 0.7 < result.matched < 0.95


def test_the_stated_error_holds() -> None:
    inside = []
    for seed in range(12):
        result, errors = registered(swab(250, seed), 10.0, 10.0, seed)
        stated = result.expected_error_mm(TARGETS)
        inside.append((errors <= stated).mean())
        assert stated.max() < 5.0
        assert (result.expected_error_mm(TARGETS, 0.5) < stated).all()
    assert np.mean(inside) > 0.8
    assert np.mean(inside) < 1.0 or np.median(stated) < 2.0


def test_both_normals_are_right_to_second_order() -> None:
    points, normals = organ(1500, 7)
    truth = away(6.0, 6.0, 3)
    back = np.linalg.inv(truth)
    errors = []
    for own in (None, normals @ back[:3, :3].T):
        moving = Surface.of(applied(back, points), own)
        result = register_surface(FIXED, moving, initial=Rigid.identity(NAME))
        assert result.verdict is Verdict.GOOD, result.reasons
        errors.append(np.linalg.norm(applied(result.transform.matrix @ back, TARGETS) - TARGETS, axis=1).mean())
    assert errors[1] < 0.5 * errors[0] < 0.05


def test_bare_points_are_a_surface_too() -> None:
    truth = away(8.0, 8.0, 4)
    moving = Surface.of(applied(np.linalg.inv(truth), swab(300, 2)))
    result = register_surface(Surface.of(FIXED.points), moving, initial=Rigid.identity(NAME))
    assert np.linalg.norm(applied(result.transform.matrix @ np.linalg.inv(truth), TARGETS) - TARGETS, axis=1).mean() < 2


@pytest.mark.parametrize("wrong", ["another", "mirrored"])
@pytest.mark.parametrize("seed", range(3))
def test_another_patient_and_a_mirror_image_are_found_out(wrong: str, seed: int) -> None:
    points, _ = organ(1500, seed, lobes=1.7 if wrong == "another" else 1.0)
    if wrong == "mirrored":
        points = (points - CENTRE) * (-1.0, 1.0, 1.0) + CENTRE
    result, _ = registered(points + np.random.default_rng(seed).normal(0, 0.5, points.shape), 10.0, 10.0, seed)
    assert result.verdict is Verdict.IMPLAUSIBLE
    assert any("off" in reason for reason in result.reasons)


def sphere(n: int, seed: int) -> tuple[Array, Array]:
    d = np.random.default_rng(seed).normal(size=(n, 3))
    d /= np.linalg.norm(d, axis=1)[:, None]
    return 50.0 * d, d


def tube(n: int, seed: int) -> tuple[Array, Array]:
    """Open at both ends, along the body."""
    rng = np.random.default_rng(seed)
    angle, z = rng.uniform(0, 2 * np.pi, n), rng.uniform(-60, 60, n)
    d = np.stack([np.cos(angle), np.sin(angle), np.zeros(n)], axis=1)
    return 25.0 * d + z[:, None] * (0, 0, 1.0), d


def plate(n: int, seed: int) -> tuple[Array, Array]:
    p = np.random.default_rng(seed).uniform(-60, 60, (n, 3)) * (1, 1, 0)
    return p, np.tile([0, 0, 1.0], (n, 1))


@pytest.mark.parametrize(
    ("shape", "share", "named"),
    [(sphere, 1.0, "turn about"), (tube, 0.5, "feet-head"), (plate, 0.5, "turn about feet-head")],
)
def test_what_a_shape_leaves_open_is_named_and_makes_the_error_large(shape, share, named) -> None:  # type: ignore[no-untyped-def]
    fixed = Surface.of(*shape(4000, 1))
    points = shape(1200, 2)[0] * share + np.random.default_rng(3).normal(0, 0.3, (1200, 3)) * (share == 1.0)
    points = points if share == 1.0 else shape(1200, 2)[0][np.abs(shape(1200, 2)[0]).max(axis=1) < 40]
    result = register_surface(fixed, Surface.of(points), initial=Rigid.identity(NAME))
    assert result.verdict is not Verdict.GOOD
    assert any(named in direction for direction in result.open_directions), result.open_directions
    assert any("leaves open" in reason for reason in result.reasons)
    assert result.expected_error_mm([[30.0, 20.0, 10.0]])[0] > 10.0


def test_the_same_to_the_bit_on_any_number_of_threads() -> None:
    moving = Surface.of(applied(away(25.0, 40.0, 1), organ(20000, 5)[0]))
    before, found = numba.get_num_threads(), []
    try:
        for threads in (1, before):
            numba.set_num_threads(threads)
            found.append(register_surface(FIXED, moving, initial=Rigid.identity(NAME)))
    finally:
        numba.set_num_threads(before)
    assert np.array_equal(found[0].transform.matrix, found[1].transform.matrix)
    assert np.array_equal(found[0].covariance, found[1].covariance)


class Stop(Exception):
    pass


def test_progress_rises_and_can_cancel() -> None:
    said: list[float] = []
    moving = Surface.of(swab(100, 1))
    register_surface(FIXED, moving, initial=Rigid.identity(NAME), progress=lambda share, _: said.append(share))
    assert said == sorted(said)
    assert len(said) > 3

    def stop(_share: float, _text: str) -> None:
        raise Stop

    with pytest.raises(Stop):
        register_surface(FIXED, moving, initial=Rigid.identity(NAME), progress=stop)


@pytest.mark.parametrize(
    ("points", "says"),
    [
        (np.zeros((5, 3)), "5 points, at least 20"),
        (np.full((30, 3), np.nan), "30 points that are not finite"),
        (np.zeros((30, 2)), r"shape \(30, 2\)"),
        (np.arange(90.0).reshape(30, 3), "lie on a line"),
    ],
)
def test_points_that_determine_nothing_are_refused(points: Array, says: str) -> None:
    with pytest.raises(ImageRegistrationError, match=says):
        Surface.of(points, what="moving surface")


def test_flat_faces_are_sampled_in_between() -> None:
    corners = np.array([[x, y, z] for x in (0, 80.0) for y in (0, 60.0) for z in (0, 40.0)])
    squares = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    triangles = np.array([t for a, b, c, d in squares for t in ((a, b, c), (a, c, d))])
    box = Surface.of_mesh(corners, triangles)
    assert len(box.points) > 1000
    assert box.normals is not None
    outwards = (box.normals * (box.points - (40, 30, 20))).sum(axis=1)
    assert (outwards > 0).all()
    inner = np.abs(box.normals).max(axis=1) > 0.999  # all but the corners lie on a face
    assert inner.sum() == len(box.points) - 8


def test_vessels_drift_home_and_bend() -> None:
    rng = np.random.default_rng(1)
    t = np.linspace(0, 1, 60)
    tree = [np.outer(t, rng.normal(0, 40, 3)) + np.outer(np.sin(3 * t), rng.normal(0, 12, 3)) for _ in range(5)]
    fixed = np.concatenate(tree) + rng.normal(0, 0.3, (300, 3))
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("xyz", [6, -5, 8], degrees=True).as_matrix()
    pose[:3, 3] = 4.0, -3.0, 5.0
    truth = Rigid.from_matrix(pose, NAME)
    moving = truth.inverse().apply(fixed[rng.permutation(300)[:240]])
    rigid = register_drift(fixed, moving, initial=Rigid.identity(NAME), outliers=0.2)
    errors = np.linalg.norm(rigid.apply(moving) - truth.apply(moving), axis=1)
    assert rigid.verdict is Verdict.GOOD, rigid.reasons
    assert errors.max() < 0.5
    assert (errors <= rigid.expected_error_mm(rigid.moved_ras)).mean() > 0.8
    # Bent by 6 mm over the body: a rigid pose cannot follow, the displacement can.
    bent = moving + 6.0 * np.sin(moving[:, [1]] / 40.0) * (1.0, 0.0, 0.5)
    rigid = register_drift(fixed, bent, initial=Rigid.identity(NAME))
    free = register_drift(fixed, bent, initial=rigid.transform, rigid=False, start_mm=4.0, reach_mm=60.0)
    off = [np.linalg.norm(r.apply(bent) - truth.apply(moving), axis=1) for r in (rigid, free)]
    assert off[1].mean() < 0.5 * off[0].mean()
    assert (off[1] <= free.expected_error_mm(free.transform.apply(bent))).mean() > 0.9
    assert free.folded_fraction == 0.0
    np.testing.assert_allclose(free.apply(bent), free.moved_ras, atol=1e-6)
    with pytest.raises(ImageRegistrationError, match="outliers is 1"):
        register_drift(fixed, moving, initial=Rigid.identity(NAME), outliers=1.0)


def test_bifurcations_give_a_start_from_anywhere() -> None:
    rng = np.random.default_rng(2)
    fixed = rng.normal(0, 30, (22, 3))
    truth = Rigid.from_matrix(away(200.0, 170.0, 6), NAME)
    seen = truth.inverse().apply(fixed[:16] + rng.normal(0, 0.5, (16, 3)))
    moving = np.concatenate([rng.normal(0, 30, (4, 3)) + seen.mean(axis=0), seen])[rng.permutation(20)]
    match = match_trees(fixed, moving, name=NAME)
    assert match.verdict is Verdict.GOOD, match.reasons
    assert len(match.pairs) >= 15
    errors = np.linalg.norm(match.transform.apply(truth.inverse().apply(fixed)) - fixed, axis=1)
    assert errors.max() < 2.0
    assert (errors <= match.expected_error_mm(fixed)).mean() > 0.8
    other = match_trees(fixed, rng.normal(0, 30, (20, 3)), name=NAME)
    assert other.verdict is not Verdict.GOOD
    with pytest.raises(ImageRegistrationError, match="3 bifurcations, 4 to"):
        match_trees(fixed[:3], moving, name=NAME)
