"""Cuts of planes with meshes, ellipsoids and image outlines."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from nav.geometry.volume import Volume
from nav.imaging.contours import Mesh, cut_ellipsoid, cut_mesh, cut_quadrilateral
from nav.imaging.planes import AXIAL, PlaneAxes, pixel_from_ras, plane_matrix
from nav.imaging.surfaces import mask_surface, sphere_mesh

CENTRE = np.array([12.0, -30.0, 145.0])


def random_plane(seed: int, centre: np.ndarray, mm_per_px: float = 0.27) -> np.ndarray:
    r = Rotation.random(random_state=seed).as_matrix()
    return plane_matrix(PlaneAxes(r[:, 0], r[:, 1]), centre, 201, 161, mm_per_px)


@pytest.mark.parametrize("depth", [0.0, 4.0, -8.5])
def test_sphere_contour_has_the_right_radius_to_a_tenth_of_a_pixel(depth: float) -> None:
    mesh = sphere_mesh(CENTRE, 10.0, subdivisions=5)
    m = random_plane(1, CENTRE)
    segments = cut_mesh(mesh, pixel_from_ras(m), offset_mm=depth)
    radius_px = np.linalg.norm(segments - (100, 80), axis=1)
    assert len(segments) > 100
    assert np.abs(radius_px - np.sqrt(100.0 - depth**2) / 0.27).max() < 0.1


def test_mesh_contour_is_closed_also_through_vertices() -> None:
    """Every end point belongs to exactly two segments, even where the plane runs through vertices (the equator)."""
    mesh = sphere_mesh(np.zeros(3), 10.0, subdivisions=3)
    for centre in ((0, 0, 0), (0.3, 0.2, 1.7)):
        segments = cut_mesh(mesh, pixel_from_ras(plane_matrix(AXIAL, centre, 200, 200, 0.25)))
        pairs = segments.reshape(-1, 2, 2)
        pairs = pairs[np.linalg.norm(pairs[:, 0] - pairs[:, 1], axis=1) > 1e-9]
        _, counts = np.unique(np.round(pairs.reshape(-1, 2), 6), axis=0, return_counts=True)
        assert len(counts) > 20
        assert (counts == 2).all()


def test_plane_that_misses_gives_nothing() -> None:
    mesh = sphere_mesh(np.zeros(3), 10.0)
    m = plane_matrix(AXIAL, (0, 0, 10.5), 100, 100, 0.25)
    assert cut_mesh(mesh, pixel_from_ras(m)).shape == (0, 2)
    assert cut_ellipsoid((0, 0, 0), (1, 0, 0), 20, 10, m) is None
    empty = Mesh.of(np.empty((0, 3)), np.empty((0, 3)))
    assert cut_mesh(empty, pixel_from_ras(m)).shape == (0, 2)


def test_large_contour_is_not_cut_short() -> None:
    """More segments than the first buffer holds."""
    mesh = sphere_mesh(np.zeros(3), 10.0, subdivisions=5)
    many = Mesh.of(
        np.concatenate([mesh.vertices + np.array((30.0 * n, 0, 0)) for n in range(12)]),
        np.concatenate([mesh.triangles + len(mesh.vertices) * n for n in range(12)]),
    )
    m = pixel_from_ras(plane_matrix(AXIAL, (0, 0, 0.1), 100, 100, 0.25))
    one = cut_mesh(mesh, m)
    assert len(cut_mesh(many, m)) == 12 * len(one) > 4096


@pytest.mark.parametrize("seed", range(6))
def test_ellipsoid_cut_equals_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    axis = rng.normal(size=3)
    axis /= np.linalg.norm(axis)
    long_mm, short_mm = rng.uniform(12, 25), rng.uniform(8, 20)
    m = random_plane(seed, CENTRE + rng.uniform(-4, 4, 3), 0.5)
    outline = cut_ellipsoid(CENTRE, axis, long_mm, short_mm, m, points=64)
    assert outline is not None
    # Every outline point lies on the surface ...
    p = m[:3, :2] @ outline.T + m[:3, 3][:, None] - CENTRE[:, None]
    along = axis @ p
    across = np.sqrt((p**2).sum(axis=0) - along**2)
    assert np.allclose((along / long_mm) ** 2 + (across / short_mm) ** 2, 1.0)
    # ... and encloses as many pixels as are inside the ellipsoid.
    x, y = np.meshgrid(np.arange(-50, 300), np.arange(-50, 300))
    q = m[:3, 0, None, None] * x + m[:3, 1, None, None] * y + (m[:3, 3] - CENTRE)[:, None, None]
    along = np.einsum("i,ijk->jk", axis, q)
    inside = (along / long_mm) ** 2 + ((q**2).sum(axis=0) - along**2) / short_mm**2 <= 1.0
    assert not inside[[0, -1]].any()
    fine = cut_ellipsoid(CENTRE, axis, long_mm, short_mm, m, points=2000)
    assert fine is not None
    area = 0.5 * abs(np.sum(fine[:, 0] * np.roll(fine[:, 1], -1) - fine[:, 1] * np.roll(fine[:, 0], -1)))
    assert area == pytest.approx(inside.sum(), rel=0.01)


def test_ellipsoid_axes_must_be_positive() -> None:
    with pytest.raises(ValueError, match="above 0"):
        cut_ellipsoid((0, 0, 0), (0, 0, 1), 10.0, 0.0, np.eye(4))


def test_trace_of_an_image_plane() -> None:
    corners = np.array([[-20, 0, -10], [20, 0, -10], [20, 0, 30], [-20, 0, 30]], float)
    m = plane_matrix(AXIAL, (0, 0, 0), 201, 201, 0.5)
    trace = cut_quadrilateral(corners, pixel_from_ras(m))
    assert trace is not None
    assert np.allclose(sorted(trace[:, 0]), (60, 140))
    assert np.allclose(trace[:, 1], 100)
    assert cut_quadrilateral(corners, pixel_from_ras(plane_matrix(AXIAL, (0, 0, 31), 201, 201, 0.5))) is None


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.6, 0.6, 2.5)])
@pytest.mark.parametrize("mirror", [1.0, -1.0])
@pytest.mark.parametrize("shape_based", [True, False])
def test_mask_surface_of_a_sphere(spacing: tuple[float, float, float], mirror: float, shape_based: bool) -> None:
    matrix = np.diag([*(np.array(spacing) * (mirror, mirror, 1.0)), 1.0])
    matrix[:3, 3] = (5, -7, 40)
    shape = tuple(int(46 / s) for s in spacing[::-1])
    index = np.indices(shape)[::-1].reshape(3, -1).T
    centre = Volume.of(np.zeros(shape, np.uint8), matrix).centre_ras()
    r = np.linalg.norm(index @ matrix[:3, :3].T + matrix[:3, 3] - centre, axis=1)
    mask = Volume.of((r <= 15.0).astype(np.uint8).reshape(shape), matrix)
    mesh = mask_surface(mask, 6000, shape_based=shape_based)
    assert mesh is not None
    assert len(mesh.triangles) <= 6000
    assert mesh.volume_mm3 == pytest.approx(4 / 3 * np.pi * 15**3, rel=0.02 if shape_based else 0.05)
    assert np.abs(np.linalg.norm(mesh.vertices - centre, axis=1) - 15.0).mean() < 0.35
    assert np.abs(mesh.vertices.mean(axis=0) - centre).max() < 0.15


def test_tiny_and_empty_masks() -> None:
    one = np.zeros((5, 5, 5), np.uint8)
    assert mask_surface(Volume.of(one, np.eye(4)), 1000) is None
    one[2, 2, 2] = 1
    mesh = mask_surface(Volume.of(one, np.eye(4)), 1000)
    assert mesh is not None
    assert 0.1 < mesh.volume_mm3 < 1.5
    assert np.allclose(mesh.vertices.mean(axis=0), 2.0, atol=0.3)


def test_mask_that_touches_the_border_has_a_closed_surface() -> None:
    mesh = mask_surface(Volume.of(np.ones((12, 12, 12), np.uint8), np.eye(4)), 20_000)
    assert mesh is not None
    edges = np.sort(np.concatenate([mesh.triangles[:, [a, b]] for a, b in ((0, 1), (1, 2), (2, 0))]), axis=1)
    _, counts = np.unique(edges, axis=0, return_counts=True)
    assert (counts == 2).all()
    assert mesh.volume_mm3 == pytest.approx(12.0**3, rel=0.06)


def test_mesh_checks_its_input() -> None:
    with pytest.raises(ValueError, match="vertex"):
        Mesh.of([[0, 0, 0]], [[0, 0, 1]])
    with pytest.raises(ValueError, match="finite"):
        Mesh.of([[0, np.nan, 0]], np.empty((0, 3)))
