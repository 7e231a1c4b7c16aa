"""Surfaces of zones: closed, of the right volume, turned outwards, and on the surface that margins are measured to."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from nav.ablation.margin import surface_margins_mm
from nav.ablation.needle_zone import NeedleShape, blend_shapes, outline_at, shape_of_distance
from nav.ablation.prediction import box_zone
from nav.ablation.sources import NeedleGrid
from nav.ablation.zone import BoxZone, EllipsoidZone, NeedleZone
from nav.ablation.zone_surface import shape_mesh, zone_map, zone_mesh
from nav.geometry.rigid import Rigid
from nav.geometry.volume import Volume

TIP = np.array([20.0, -10.0, 40.0])
TURN = Rotation.from_euler("zyx", [20.0, -35.0, 50.0], degrees=True).as_matrix()
AXIS = TURN[:, 2]
RADIUS = 12.0


def sphere_shape(radius_mm: float = RADIUS) -> NeedleShape:
    grid = NeedleGrid(-40.0, 1.0, 61, 30)
    r = np.hypot(grid.z_mm[:, None] + 10.0, grid.r_mm[None])
    return shape_of_distance(grid, radius_mm - r)


def ellipsoid() -> EllipsoidZone:
    return EllipsoidZone(TIP - 10.0 * AXIS, AXIS, RADIUS, RADIUS, 0, "chart", 100.0, 600.0, "", "")


def needle_zone() -> NeedleZone:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = TURN, TIP
    return NeedleZone(Rigid.from_matrix(pose, "TipToRas"), sphere_shape(), "needle", 100.0, 600.0, "liver", "")


def sphere_in_box() -> BoxZone:
    matrix = np.eye(4)
    matrix[:3, 3] = np.round(TIP - 10.0 * AXIS) - 20.0
    grid = Volume.of(np.zeros((41, 41, 41), np.float32), matrix)
    level = RADIUS - np.linalg.norm(grid.voxels_ras() - (TIP - 10.0 * AXIS), axis=1)
    return box_zone(Volume.of(level.reshape(41, 41, 41).astype(np.float32), matrix), AXIS, "liver", "")


@pytest.mark.parametrize("make", [ellipsoid, needle_zone, sphere_in_box])
def test_mesh_is_the_surface_that_margins_are_measured_to(make) -> None:  # type: ignore[no-untyped-def]
    zone = make()
    mesh = zone_mesh(zone)
    assert mesh.volume_mm3 == pytest.approx(4.0 / 3.0 * np.pi * RADIUS**3, rel=0.025)
    np.testing.assert_allclose(surface_margins_mm(mesh.vertices, zone), 0.0, atol=0.08)
    # Every edge is walked once in each direction: closed, without a hole. Vertices that coincide count as one.
    same = np.unique(np.round(mesh.vertices, 6), axis=0, return_inverse=True)[1].ravel()[mesh.triangles]
    edges = Counter(map(tuple, np.concatenate([same[:, [0, 1]], same[:, [1, 2]], same[:, [2, 0]]]).tolist()))
    assert set(edges.values()) == {1}
    assert all((b, a) in edges for a, b in edges)
    (mask,) = zone_map([zone], 1.0, 2.0)
    assert np.count_nonzero(mask.array) == pytest.approx(mesh.volume_mm3, rel=0.03)
    assert not mask.array[:2].any()
    assert not mask.array[..., -2:].any()


def test_margins_in_a_box_are_exact_near_its_surface_and_go_on_beyond_it() -> None:
    zone = sphere_in_box()
    directions = Rotation.random(200, random_state=3).as_matrix()[:, 0]
    for depth in (5.0, 0.5, -0.5, -4.0):
        points = TIP - 10.0 * AXIS + (RADIUS - depth) * directions
        np.testing.assert_allclose(surface_margins_mm(points, zone), depth, atol=0.06)
    far = surface_margins_mm((TIP - 10.0 * AXIS + [[60.0, 0.0, 0.0]]), zone)
    assert far == pytest.approx(RADIUS - 60.0, abs=1.0)
    assert np.isnan(surface_margins_mm(np.array([[np.nan, 0.0, 0.0]]), zone)).all()


def test_inner_outline_is_parallel_and_vanishes_where_nothing_is_that_deep() -> None:
    shape = sphere_shape()
    inner = outline_at(shape, 5.0)
    np.testing.assert_allclose(np.hypot(inner[:, 0] + 10.0, inner[:, 1]), RADIUS - 5.0, atol=0.1)
    assert len(outline_at(shape, 12.5)) == 0
    assert len(shape_mesh(shape, 12.5).vertices) == 0


def test_blend_moves_the_surface_evenly_and_is_nothing_until_the_end_when_it_begins_with_nothing() -> None:
    small, large = sphere_shape(6.0), sphere_shape(12.0)
    assert blend_shapes(small, large, 0.25).short_mm == pytest.approx(15.0, abs=0.1)
    assert blend_shapes(small, large, 1.0) is large
    nothing = shape_of_distance(small.grid, np.full_like(small.distance_mm, -3.0))
    assert nothing.is_empty
    assert blend_shapes(nothing, large, 0.99).is_empty
    assert blend_shapes(nothing, large, 1.0) is large
