"""The margin and distance kernels against plain twins that work in another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from nav.ablation.margin import _count_inside, _ellipse_margin, _min_margin, _surface_margins
from nav.ablation.mesh_kernels import _nearest_and_winding, _ring_distances

F64 = NDArray[np.float64]


def readonly(array: F64) -> F64:
    out = np.ascontiguousarray(array, dtype=np.float64)
    out.setflags(write=False)
    return out


def ellipse_margin_twin(z: float, rho: float, a: float, b: float) -> float:
    """Nearest of many points on the ellipse, then the best angle around it by golden-section search."""

    def distance(angle: float) -> float:
        return math.hypot(a * math.cos(angle) - z, b * math.sin(angle) - rho)

    angles = np.linspace(0.0, math.pi, 2001)
    n = int(np.argmin([distance(t) for t in angles]))
    low, high = angles[max(n - 1, 0)], angles[min(n + 1, len(angles) - 1)]
    golden = (math.sqrt(5.0) - 1.0) / 2.0
    for _ in range(80):
        c, d = high - golden * (high - low), low + golden * (high - low)
        if distance(c) < distance(d):
            high = d
        else:
            low = c
    sign = 1.0 if (z / a) ** 2 + (rho / b) ** 2 <= 1.0 else -1.0
    return sign * distance(0.5 * (low + high))


@pytest.mark.parametrize(("a", "b"), [(20.0, 18.0), (33.0, 23.0), (15.0, 15.0), (10.0, 16.0), (30.0, 3.0)])
def test_ellipse_margin(a: float, b: float) -> None:
    rng = np.random.default_rng(8)
    points = [(z, abs(r)) for z, r in rng.normal(scale=15.0, size=(60, 2))]
    points += [(0.0, 0.0), (a, 0.0), (-a, 0.0), (0.0, b), (0.3 * a, 0.0), (0.99 * a, 0.0), (2.0 * a, 0.0)]
    points += [(0.0, 3.0 * b), (0.0, 0.5 * b), (0.5 * a, 1e-9), (0.5 * a, 1e-13), (1e-300, 1e-300), (500.0, 700.0)]
    for z, rho in points:
        assert _ellipse_margin(z, rho, a, b) == pytest.approx(ellipse_margin_twin(z, rho, a, b), abs=1e-6), (z, rho)


def margins_twin(points: F64, centre: F64, axis: F64, a: float, b: float) -> list[float]:
    out = []
    for p in points:
        if np.isnan(p).any():
            out.append(math.nan)
            continue
        z = float(np.dot(p - centre, axis))
        out.append(ellipse_margin_twin(z, float(np.linalg.norm(p - centre - z * axis)), a, b))
    return out


@pytest.mark.parametrize("count", [0, 1, 40])
def test_margin_kernels(count: int) -> None:
    rng = np.random.default_rng(count)
    points = readonly(rng.normal(scale=15.0, size=(count, 3)))
    centre, axis = readonly(np.array([1.0, 2.0, 3.0])), readonly(np.array([0.6, 0.0, 0.8]))
    expected = margins_twin(points, centre, axis, 20.0, 14.0)
    out = np.full(count, -99.0)
    _surface_margins(points, centre, axis, 20.0, 14.0, out)
    np.testing.assert_allclose(out, expected, atol=1e-6)
    best, index = _min_margin(points, centre, axis, 20.0, 14.0)
    if count == 0:
        assert (best, index) == (math.inf, -1)
    else:
        assert index == int(np.argmin(expected))
        assert best == pytest.approx(min(expected), abs=1e-6)
    assert _count_inside(points, centre, axis, 20.0, 14.0) == sum(m >= 0.0 for m in expected)


def test_the_bound_never_skips_the_worst_point() -> None:
    rng = np.random.default_rng(17)
    for _ in range(200):
        a, b = rng.uniform(5.0, 40.0, 2)
        points = readonly(rng.normal(scale=rng.uniform(2.0, 30.0), size=(50, 3)))
        axis = rng.normal(size=3)
        axis = readonly(axis / np.linalg.norm(axis))
        out = np.empty(50)
        _surface_margins(points, readonly(np.zeros(3)), axis, a, b, out)
        best, index = _min_margin(points, readonly(np.zeros(3)), axis, a, b)
        assert (best, index) == (out.min(), int(out.argmin()))


def test_nan_is_not_lost() -> None:
    points = readonly(np.array([[0.0, 0.0, 0.0], [math.nan, 0.0, 0.0], [30.0, 0.0, 0.0]]))
    zero, axis = readonly(np.zeros(3)), readonly(np.array([0.0, 0.0, 1.0]))
    out = np.zeros(3)
    _surface_margins(points, zero, axis, 20.0, 14.0, out)
    assert np.isnan(out).tolist() == [False, True, False]
    assert math.isnan(_min_margin(points, zero, axis, 20.0, 14.0)[0])
    assert _count_inside(points, zero, axis, 20.0, 14.0) == 1


CUBE = readonly(np.array([[x, y, z] for x in (0, 4) for y in (0, 6) for z in (0, 8)], dtype=np.float64))
FACES = np.array(
    [
        *([0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1]),
        *([2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]),
    ],
    dtype=np.int32,
)
FACES.setflags(write=False)


def segment_distance(p: F64, a: F64, b: F64) -> float:
    t = min(max(float((p - a) @ (b - a)) / float((b - a) @ (b - a)), 0.0), 1.0)
    return float(np.linalg.norm(a + t * (b - a) - p))


def mesh_twin(p: F64, vertices: F64, faces: NDArray[np.int32]) -> float:
    """Distance to a mesh: edges and, where the projection falls into the triangle, the plane."""
    best = math.inf
    for face in faces:
        a, b, c = vertices[face]
        best = min(best, segment_distance(p, a, b), segment_distance(p, b, c), segment_distance(p, c, a))
        n = np.cross(b - a, c - a)
        inside = all(float(np.cross(v - u, p - u) @ n) >= 0.0 for u, v in ((a, b), (b, c), (c, a)))
        if inside:
            best = min(best, abs(float((p - a) @ n)) / float(np.linalg.norm(n)))
    return best


def test_distance_to_a_mesh_and_winding_number() -> None:
    rng = np.random.default_rng(6)
    points = np.vstack(
        [rng.uniform(-5.0, 13.0, (150, 3)), CUBE + 0.1, [[2.0, 3.0, 4.0], [2.0, 3.0, 8.0], [4.0, 6.0, 9.0]]]
    )
    for p in points:
        squared, winding = _nearest_and_winding(*(float(v) for v in p), CUBE, FACES, 11.0)
        assert math.sqrt(squared) == pytest.approx(mesh_twin(p, CUBE, FACES), abs=1e-9)
        inside = bool(np.all((p > 0.0) & (p < (4.0, 6.0, 8.0))))
        on_surface = squared < 1e-18
        if not on_surface:
            assert abs(winding) == pytest.approx(1.0 if inside else 0.0, abs=1e-9)


def test_an_empty_mesh_is_infinitely_far() -> None:
    none = np.zeros((0, 3), np.int32)
    none.setflags(write=False)
    assert _nearest_and_winding(0.0, 0.0, 0.0, CUBE, none, 11.0) == (math.inf, 0.0)


@pytest.mark.parametrize("count", [0, 1, 25])
def test_distances_around_the_nearest_vertices(count: int) -> None:
    """With every vertex named, the distance is that to the whole mesh; with one, that to the triangles around it."""
    points = readonly(np.random.default_rng(count).uniform(-6.0, 12.0, (count, 3)))
    corner = FACES.ravel()
    ring = np.argsort(corner, kind="stable") // 3
    start = np.concatenate([[0], np.cumsum(np.bincount(corner, minlength=len(CUBE)))])
    out = np.full(count, -1.0)
    every = np.tile(np.arange(len(CUBE)), (count, 1))
    _ring_distances(points, every, CUBE, FACES, start, ring, out)
    np.testing.assert_allclose(out, [_nearest_and_winding(*p, CUBE, FACES, 15.0)[0] for p in points], rtol=1e-12)
    _ring_distances(points, every[:, :1], CUBE, FACES, start, ring, out)
    around = [readonly(CUBE[face]) for face in FACES if 0 in face]
    alone = np.array([[0, 1, 2]], np.int32)
    for p, d in zip(points, out, strict=True):
        assert d == pytest.approx(min(_nearest_and_winding(*p, t, alone, 15.0)[0] for t in around), rel=1e-12)
    if count == 1:
        lost = readonly(np.array([[math.nan, 0.0, 0.0]]))
        _ring_distances(lost, every, CUBE, FACES, start, ring, out)
        assert math.isnan(out[0])
        _ring_distances(points, every[:, :0], CUBE, FACES, start, ring, out)
        assert out[0] == math.inf
