"""The contour, blend and 3-D kernels against plain-Python twins."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from nav.imaging.blend import blend_image, image_mask
from nav.imaging.contours import Mesh, cut_mesh
from nav.imaging.planes import AXIAL, PlaneAxes, pixel_from_ras, plane_matrix
from nav.imaging.render3d import Camera, Capsule, Ellipsoid, Surface, camera_axes, compose, rasterise
from nav.imaging.surfaces import sphere_mesh

Array = NDArray[np.float64]


def random_axes(seed: int) -> PlaneAxes:
    r = Rotation.random(random_state=seed).as_matrix()
    return PlaneAxes(r[:, 0], r[:, 1])


# -- contours ----------------------------------------------------------------------------------------------------


def cut_twin(mesh: Mesh, m: Array) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    segments = []
    for triangle in mesh.triangles:
        p = [m[:3, :3] @ mesh.vertices[v] + m[:3, 3] for v in triangle]
        ends = []
        for a, b in ((0, 1), (1, 2), (2, 0)):
            if (p[a][2] >= 0) != (p[b][2] >= 0):
                f = p[a][2] / (p[a][2] - p[b][2])
                ends.append((float(p[a][0] + f * (p[b][0] - p[a][0])), float(p[a][1] + f * (p[b][1] - p[a][1]))))
        if ends:
            assert len(ends) == 2
            segments.append((ends[0], ends[1]))
    return segments


@pytest.mark.parametrize("seed", range(5))
def test_mesh_cut_agrees_with_twin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mesh = Mesh.of(rng.normal(scale=10, size=(40, 3)), rng.integers(0, 40, (60, 3)))
    m = pixel_from_ras(plane_matrix(random_axes(seed), (0, 0, 0), 90, 80, 0.7))
    got = cut_mesh(mesh, m).reshape(-1, 2, 2)
    want = cut_twin(mesh, m)
    assert len(got) == len(want) > 5
    for a, b in zip(got, want, strict=True):
        assert np.allclose(sorted(a.tolist()), sorted(map(list, b)))


# -- blend -------------------------------------------------------------------------------------------------------


def blend_twin(
    image: NDArray[np.uint8], ras_from_index: Array, ras_from_pixel: Array, ratio: float, pane: Array
) -> Array:
    out = pane.astype(float)
    rows, columns = image.shape
    lit = image > 0
    for y, x in itertools.product(range(pane.shape[0]), range(pane.shape[1])):
        # Foot of the pane's normal on the image: solve index = origin + i u + j v + depth n for (i, j).
        p = ras_from_pixel[:3, :2] @ (x, y) + ras_from_pixel[:3, 3] - ras_from_index[:3, 3]
        i, j, _ = np.linalg.solve(np.column_stack((ras_from_index[:3, :2], ras_from_pixel[:3, 2])), p)
        if min(rows, columns) < 2 or not (0 <= i <= columns - 1 and 0 <= j <= rows - 1):
            continue
        ni, nj = min(max(math.floor(i + 0.5), 0), columns - 1), min(max(math.floor(j + 0.5), 0), rows - 1)
        row, column = np.flatnonzero(lit[nj]), np.flatnonzero(lit[:, ni])
        if not (len(row) and row[0] <= ni <= row[-1] and len(column) and column[0] <= nj <= column[-1]):
            continue
        i0, j0 = min(math.floor(i), columns - 2), min(math.floor(j), rows - 2)
        i1, j1 = i0 + 1, j0 + 1
        fi, fj = i - i0, j - j0
        value = (
            image[j0, i0] * (1 - fi) * (1 - fj)
            + image[j0, i1] * fi * (1 - fj)
            + image[j1, i0] * (1 - fi) * fj
            + image[j1, i1] * fi * fj
        )
        out[y, x] = max(1.0, ratio * value + (1 - ratio) * out[y, x])
    return out


@pytest.mark.parametrize("shape", [(14, 18), (1, 9), (9, 1), (1, 1)])
@pytest.mark.parametrize("ratio", [0.0, 0.35, 1.0])
def test_blend_agrees_with_twin(shape: tuple[int, int], ratio: float) -> None:
    rng = np.random.default_rng(shape[0])
    image = rng.integers(0, 255, shape).astype(np.uint8)
    image[rng.random(shape) < 0.3] = 0
    image[0, 0] = 200
    total = 0
    for seed in range(5):
        m = plane_matrix(random_axes(seed), rng.normal(size=3), 31, 27, 0.8)
        index = np.eye(4)
        index[:3, :3] = random_matrix(seed + 10)
        index[:3, :3] *= (1.1, 0.9, 1.0)
        index[:3, 3] = m[:3, :2] @ (8, 7) + m[:3, 3] + rng.normal(size=3)
        pane = rng.integers(1, 255, (27, 31)).astype(np.uint8)
        want = blend_twin(image, index, m, ratio, pane)
        got = pane.copy()
        changed = blend_image(image, index, m, ratio, got)
        total += changed
        assert np.abs(got - want).max() <= 0.51
    assert total >= 1 or min(shape) < 2


def random_matrix(seed: int) -> Array:
    return np.asarray(Rotation.random(random_state=seed).as_matrix())


def test_extent_of_a_black_image_shows_nothing() -> None:
    black = np.zeros((5, 6), np.uint8)
    assert not image_mask(black).any()
    pane = np.full((8, 8), 77, np.uint8)
    assert blend_image(black, np.eye(4), np.eye(4), 0.5, pane) == 0
    assert (pane == 77).all()


def test_mask_holds_a_sector_with_its_shadows_and_not_its_corners() -> None:
    """A sector above whose face (an arc) nothing belongs to the picture; a black vessel inside does."""
    y, x = np.mgrid[:120, :160]
    radius, angle = np.hypot(x - 80, y + 30), np.abs(np.arctan2(x - 80, y + 30))
    sector = (radius > 50) & (radius < 145) & (angle < 0.5)
    image = np.where(sector, 90, 0).astype(np.uint8)
    image[np.hypot(x - 85, y - 60) < 12] = 0
    mask = image_mask(image)
    assert (mask[sector] == 1).all()
    assert mask[~sector].mean() < 0.002
    assert mask[60, 85] == 1


def test_blend_refuses_what_it_cannot_do() -> None:
    image, pane = np.ones((4, 4), np.uint8), np.ones((4, 4), np.uint8)
    with pytest.raises(ValueError, match="ratio"):
        blend_image(image, np.eye(4), np.eye(4), 1.5, pane)
    on_edge = np.eye(4)[[0, 2, 1, 3]]
    with pytest.raises(ValueError, match="edge"):
        blend_image(image, on_edge, np.eye(4), 0.5, pane)


# -- 3-D ---------------------------------------------------------------------------------------------------------


def ray_mesh(mesh: Mesh, origin: Array, direction: Array) -> tuple[float, float, int]:
    """Distance to the nearest triangle (Möller and Trumbore 1997), its smallest barycentric weight, its number."""
    best, weight, number = math.inf, 0.0, -1
    for n, (a, b, c) in enumerate(mesh.vertices[mesh.triangles]):
        e1, e2 = b - a, c - a
        h = np.cross(direction, e2)
        det = float(e1 @ h)
        if abs(det) < 1e-12:
            continue
        s = origin - a
        u = float(s @ h) / det
        q = np.cross(s, e1)
        v = float(direction @ q) / det
        t = float(e2 @ q) / det
        if min(u, v, 1 - u - v) >= 0 and t < best:
            best, weight, number = t, min(u, v, 1 - u - v), n
    return best, weight, number


def test_rasterised_depth_agrees_with_rays() -> None:
    mesh = sphere_mesh(np.array([1.0, 2.0, 3.0]), 9.0, subdivisions=1)
    camera = Camera.of(camera_axes(37.0, 21.0), (0, 0, 0), 41, 31, 0.9)
    static = rasterise((Surface.of(mesh, (200, 100, 50)),), camera)
    hits = 0
    for y, x in itertools.product(range(31), range(41)):
        origin = camera.ras_from_pixel[:3, :2] @ (x, y) + camera.ras_from_pixel[:3, 3] - 500.0 * camera.axes.into
        t, weight, _ = ray_mesh(mesh, origin, camera.axes.into)
        if math.isinf(t):
            assert math.isinf(static.depth[y, x])
            assert tuple(static.colour[y, x]) == (16, 20, 27, 255)
        elif weight > 1e-6:
            hits += 1
            assert static.depth[y, x] == pytest.approx(t - 500.0, abs=1e-3)
            assert 0.25 * 200 - 1 <= static.colour[y, x, 0] <= 200
    assert hits > 200


def test_capsule_agrees_with_twin() -> None:
    camera = Camera.of(camera_axes(10.0, 40.0), (0, 0, 0), 50, 40, 1.0)
    static = rasterise((), camera, (0, 0, 0))
    start, end = np.array([-12.0, 3, 5]), np.array([10.0, -4, -9])
    picture = compose(static, (Capsule(start, end, 2.5, (255, 255, 255)),))
    m = camera.pixel_from_ras
    a, b = (m[:3, :3] @ p + m[:3, 3] for p in (start, end))
    for y, x in itertools.product(range(40), range(50)):
        d = (b - a)[:2]
        t = min(max(float((np.array((x, y)) - a[:2]) @ d / (d @ d)), 0.0), 1.0)
        off = float(np.hypot(*(np.array((x, y)) - a[:2] - t * d)))
        if off > 2.5 + 1e-9:
            assert tuple(picture[y, x, :3]) == (0, 0, 0)
        elif off < 2.5 - 1e-9:
            want = 255 * (0.25 + 0.75 * math.sqrt(2.5**2 - off**2) / 2.5)
            assert picture[y, x, 0] == pytest.approx(want, abs=1.0)


@pytest.mark.parametrize("seed", range(4))
def test_ellipsoid_layers_agree_with_twin(seed: int) -> None:
    """Front and back blended exactly where a ray meets them, each only when nothing opaque is nearer."""
    rng = np.random.default_rng(seed)
    camera = Camera.of(camera_axes(30.0 * seed, 15.0), (0, 0, 0), 60, 50, 1.0)
    wall = rng.uniform(-12, 12)  # an opaque sheet across the zone, in the right half of the picture
    corners = np.array([[30, -10, wall], [90, -10, wall], [90, 70, wall], [30, 70, wall]], float)
    sheet = Mesh.of(corners @ camera.ras_from_pixel[:3, :3].T + camera.ras_from_pixel[:3, 3], [[0, 1, 2], [0, 2, 3]])
    static = rasterise((Surface.of(sheet, (100, 100, 100)),), camera, (0, 0, 0))
    axis = rng.normal(size=3)
    axis /= np.linalg.norm(axis)
    zone = Ellipsoid(np.array([1.0, -2, 0.5]), axis, 20.0, 12.0, (200, 200, 200))
    picture = compose(static, ellipsoids=(zone,))
    into = camera.axes.into
    layers = 0
    for y, x in itertools.product(range(50), range(60)):
        base = camera.ras_from_pixel[:3, :2] @ (x, y) + camera.ras_from_pixel[:3, 3]
        shape = np.outer(axis, axis) / 20.0 + (np.eye(3) - np.outer(axis, axis)) / 12.0
        q, w = shape @ (base - zone.centre_ras), shape @ into
        roots = np.roots([w @ w, 2 * q @ w, q @ q - 1.0])
        value = float(static.colour[y, x, 0])
        if np.isreal(roots).all() and abs(roots[0] - roots[1]) > 1e-6:
            for z in sorted(roots.real, reverse=True):  # back first
                if z < static.depth[y, x]:
                    facing = min(abs(float((q + z * w) @ w)) / float(np.linalg.norm(w)), 1.0)
                    alpha = 0.22 + 0.38 * (1 - facing) ** 2
                    value = math.floor(value * (1 - alpha) + 200 * (0.55 + 0.45 * facing) * alpha + 0.5)
                    layers += 1
        assert picture[y, x, 0] == pytest.approx(value, abs=1.0)
    assert layers > 500
    assert np.array_equal(static.colour, rasterise((Surface.of(sheet, (100, 100, 100)),), camera, (0, 0, 0)).colour)


def test_axial_pane_of_a_pixel_grid_is_the_image_itself() -> None:
    """At ratio 1 and equal grids the blend copies the image (black stays 1: inside)."""
    rng = np.random.default_rng(0)
    image = rng.integers(1, 255, (20, 30)).astype(np.uint8)
    m = plane_matrix(AXIAL, (4, 5, 6), 30, 20, 0.4)
    pane = np.zeros((20, 30), np.uint8)
    assert blend_image(image, m, m, 1.0, pane) == 600
    assert np.array_equal(pane, image)
