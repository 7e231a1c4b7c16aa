"""Zones beside vessels (tier 1's rule) and unions of zones: closed forms, exact distances, what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from tumour_phantoms import CENTRE, ball, zone

from nav.ablation.margin import compute_margin, surface_margins_mm
from nav.ablation.needle_zone import NeedleShape, shape_of_distance
from nav.ablation.sources import NeedleGrid
from nav.ablation.tumour import TumourModel
from nav.ablation.vessel_cut import NoVesselRuleError, VesselWalls, cut_planes, cut_zone, radius_share, vessel_walls
from nav.ablation.zone import NeedleZone, ZoneUnion
from nav.ablation.zone_surface import surface_grid
from nav.geometry.rigid import Rigid
from nav.geometry.volume import Volume

F64 = NDArray[np.float64]
TILTED = Rigid.from_matrix(
    [[0.8, 0.0, 0.6, 5.0], [0.0, 1.0, 0.0, -7.0], [-0.6, 0.0, 0.8, 3.0], [0.0, 0.0, 0.0, 1.0]], "TipToRas"
)


def capsule(radius: float, length: float) -> NeedleShape:
    grid = NeedleGrid(-50.0, 1.0, 101, 32)
    half = 0.5 * length - radius
    beyond = np.maximum(np.abs(grid.z_mm + 10.0) - half, 0.0)
    return shape_of_distance(grid, radius - np.hypot(beyond[:, None], grid.r_mm[None]))


def placed(shape: NeedleShape) -> NeedleZone:
    return NeedleZone(TILTED, shape, "device", 60.0, 300.0, "liver", "computed")


def tube(distance: float, diameter: float, direction: tuple[float, float, float] = (0.0, 0.0, 1.0)) -> Volume:
    """Beside the middle of `placed` zones, in the needle's frame along ``direction``."""
    n, pitch = 101, 0.8
    matrix = np.diag([pitch, pitch, pitch, 1.0])
    matrix[:3, 3] = TILTED.apply(np.array([0.0, 0.0, -10.0])) - 0.5 * (n - 1) * pitch
    empty = Volume.of(np.zeros((n, n, n), np.uint8), matrix)
    along = np.array(direction) / np.linalg.norm(direction)
    away = (empty.voxels_ras() - TILTED.translation) @ TILTED.rotation - (distance, 0.0, -10.0)
    away -= (away @ along)[:, None] * along
    inside = np.linalg.norm(away, axis=1) <= 0.5 * diameter
    return Volume.of(inside.reshape(n, n, n).astype(np.uint8), matrix)


def reach(one: NeedleZone, direction: tuple[float, float, float]) -> float:
    """From the zone's middle to its surface, in a direction of the needle's frame."""
    steps = np.linspace(0.0, 30.0, 1501)
    margins = surface_margins_mm(one.centre_ras + steps[:, None] * (TILTED.rotation @ direction), one)
    return float(steps[np.flatnonzero(margins < 0.0)[0]])


def test_the_share_left_is_the_published_one() -> None:
    np.testing.assert_allclose(radius_share([7.5, 12.5, 17.5, 40.0]), [0.372, 0.801, 1.0, 1.0])
    assert radius_share(10.0) == pytest.approx(0.5865)
    assert radius_share(0.0) == pytest.approx(0.372)


@pytest.mark.parametrize(("distance", "diameter"), [(10.0, 5.0), (15.0, 5.0), (8.0, 4.0), (16.0, 9.0)])
def test_a_zone_is_drawn_in_towards_a_vessel_and_not_away_from_it(distance: float, diameter: float) -> None:
    free = placed(capsule(16.0, 40.0))
    walls = vessel_walls(tube(distance, diameter))
    cut = cut_zone(free, walls, "microwave")
    assert cut.cut is not None
    wall = distance - 0.5 * diameter
    wanted = min(16.0 * float(radius_share(wall)), wall)
    slack = cut.cut.slack_mm
    # The wall is known to about half a voxel, the share grows by 1.4 mm a mm there.
    assert wanted - slack - 1.0 < reach(cut, (1.0, 0.0, 0.0)) < wanted + 0.7
    assert reach(cut, (-1.0, 0.0, 0.0)) == pytest.approx(16.0, abs=0.1)
    assert reach(cut, (0.0, 1.0, 0.0)) == pytest.approx(16.0, abs=0.1)
    assert "empirical" in cut.basis
    # What was left out is paid for: no wall point alone would draw it in further, but for what lies between samples.
    rng = np.random.default_rng(2)
    points = free.centre_ras + rng.uniform(-22.0, 22.0, (4000, 3))
    normals, heights = cut_planes(free.shape, (walls.points_ras - TILTED.translation) @ TILTED.rotation, walls.depth_mm)
    every = (heights - (points - TILTED.translation) @ TILTED.rotation @ normals.T).min(axis=1)
    margins = surface_margins_mm(points, cut)
    inside = margins > 0.0
    assert inside.sum() > 200
    assert (margins <= np.minimum(surface_margins_mm(points, free), every) + 0.1)[inside].all()


def test_the_distance_to_a_cut_surface_is_exact_inside() -> None:
    cut = cut_zone(placed(capsule(16.0, 40.0)), vessel_walls(tube(12.0, 5.0, (0.3, 1.0, 0.2))), "microwave")
    grid = surface_grid(cut, 0.5).reshape(-1, 3)
    np.testing.assert_allclose(surface_margins_mm(grid, cut), 0.0, atol=0.1)
    rng = np.random.default_rng(4)
    points = cut.centre_ras + rng.uniform(-12.0, 12.0, (800, 3))
    margins = surface_margins_mm(points, cut)
    inside = margins > 1.0
    true = cKDTree(grid).query(points[inside])[0]
    assert inside.sum() > 100
    np.testing.assert_allclose(margins[inside], true, atol=0.2)
    beyond = margins < -1.0
    assert (-margins[beyond] <= cKDTree(grid).query(points[beyond])[0] + 0.1).all()


def test_thin_and_far_vessels_draw_nothing_in() -> None:
    free = placed(capsule(16.0, 40.0))
    assert not len(vessel_walls(tube(10.0, 2.0)).points_ras)
    for vessel in (tube(10.0, 2.0), tube(24.0, 5.0)):
        cut = cut_zone(free, vessel_walls(vessel), "microwave")
        points = surface_grid(free, 2.0).reshape(-1, 3)
        assert surface_margins_mm(points, cut).tobytes() == surface_margins_mm(points, free).tobytes()
        assert "no vessel" in cut.basis


def test_a_vessel_on_the_antenna_leaves_nothing_of_its_side() -> None:
    tip = TILTED.apply(np.array([[0.0, 0.0, -10.0]]))
    walls = VesselWalls(tip, 0.5, cKDTree(tip))
    cut = cut_zone(placed(capsule(16.0, 32.0)), walls, "microwave")
    across = TILTED.rotation[:, 0]
    ahead, behind = surface_margins_mm(np.array([cut.centre_ras + 1.0 * across, cut.centre_ras - 6.0 * across]), cut)
    assert ahead < -0.5
    assert behind == pytest.approx(6.0, abs=0.5)


def test_a_vessel_stays_whole_on_a_grid_half_a_voxel_off() -> None:
    x = np.arange(41) - 20.0
    disc = np.hypot(x[:, None], x[None]) <= 2.5
    matrix = np.eye(4)
    vessel = Volume.of(np.broadcast_to(disc, (41, 41, 41)).astype(np.uint8), matrix)
    matrix[:3, 3] = 0.5
    there = vessel.holds(Volume.of(np.zeros((41, 41, 41), np.uint8), matrix).voxels_ras()).reshape(41, 41, 41)
    assert (there[:40].sum(axis=(1, 2)) == disc.sum()).all()


def test_other_modalities_and_empty_masks_are_refused() -> None:
    walls = vessel_walls(tube(10.0, 5.0))
    with pytest.raises(NoVesselRuleError, match="microwaves only, not for radiofrequency"):
        cut_zone(placed(capsule(16.0, 40.0)), walls, "radiofrequency")
    with pytest.raises(ValueError, match="empty"):
        vessel_walls(Volume.of(np.zeros((4, 4, 4), np.uint8), np.eye(4)))


def two_balls(apart: float) -> ZoneUnion:
    return ZoneUnion(tuple(zone(CENTRE + np.array([side * apart, 0.0, 0.0]), 18.0, 18.0) for side in (-0.5, 0.5)))


@pytest.mark.parametrize(
    ("apart", "waist", "volume"), [(15, 16.363, 38.81), (20, 14.967, 42.69), (25, 12.952, 45.79), (30, 9.950, 47.90)]
)
def test_a_union_is_as_deep_as_its_waist_is_wide(apart: float, waist: float, volume: float) -> None:
    union, model = two_balls(apart), TumourModel.from_mask(ball(5.0, (0.7, 0.7, 0.7)))
    found = compute_margin(model, union)
    # Never more than is there; less by the sampling of the union's surface and of the tumour.
    assert waist - 5.0 - 0.4 < found.min_margin_mm < waist - 5.0 + 0.05
    assert abs((found.worst_point_ras - CENTRE)[0]) < 2.5
    assert found.coverage == pytest.approx(1.0, abs=0.001 if apart < 30 else 0.05)
    points = CENTRE + np.stack(np.meshgrid(*[np.arange(-36.0, 36.0)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    assert (surface_margins_mm(points, union) >= 0.0).sum() / 1000.0 == pytest.approx(volume, rel=0.01)


def test_a_union_of_one_place_is_that_zone_and_the_worst_outside_is_exact() -> None:
    model = TumourModel.from_mask(ball(10.0, (1.0, 1.0, 1.0)))
    one = placed(capsule(16.0, 40.0))
    single = zone(CENTRE + np.array([2.0, 0.0, 0.0]), 20.0, 17.0)
    alone, twice = compute_margin(model, single), compute_margin(model, ZoneUnion((single, single)))
    assert alone.min_margin_mm - 0.05 < twice.min_margin_mm <= alone.min_margin_mm + 1e-9
    assert twice.coverage == alone.coverage
    far = two_balls(30.0)
    big = TumourModel.from_mask(ball(12.0, (1.0, 1.0, 1.0)))
    assert compute_margin(big, far).min_margin_mm == pytest.approx(
        surface_margins_mm(big.surface_points, far).min(), abs=1e-12
    )
    assert compute_margin(big, far).min_margin_mm == pytest.approx(18.0 - math.hypot(15.0, 12.0), abs=0.3)
    mixed = ZoneUnion((one, single))
    assert mixed.tier == 0
    assert "tier 1: computed" in mixed.basis
    with pytest.raises(ValueError, match="at least one"):
        ZoneUnion(())
