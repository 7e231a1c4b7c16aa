"""Tumour surface and margin: analytic spheres, orientation, anisotropy, exact distances, what the sigma says, speed."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from tumour_phantoms import CENTRE, OBLIQUE, ball, zone

from nav.ablation.margin import compute_margin, point_margin_mm, surface_margins_mm
from nav.ablation.tumour import TumourError, TumourModel
from nav.geometry.volume import Volume

UP = np.array([0.0, 0.0, 1.0])


@pytest.fixture(scope="module")
def ten() -> TumourModel:
    """A ball of 10 mm radius in 1 mm voxels."""
    return TumourModel.from_mask(ball(10.0, (1.0, 1.0, 1.0)))


@pytest.mark.parametrize(("distance", "margin"), [(0.0, 6.0), (3.0, 3.0), (5.0, 1.0), (6.0, 0.0), (8.0, -2.0)])
def test_concentric_and_shifted_spheres(ten: TumourModel, distance: float, margin: float) -> None:
    """Spheres of 10 and 16 mm: minimum margin = 16 − 10 − distance."""
    result = compute_margin(ten, zone(CENTRE + distance * UP, 16.0, 16.0))
    assert result.min_margin_mm == pytest.approx(margin, abs=0.2)
    if distance:
        away = (result.worst_point_ras - CENTRE) / np.linalg.norm(result.worst_point_ras - CENTRE)
        assert away @ -UP > 0.9


@pytest.mark.parametrize(("distance", "share"), [(3.0, 0.6), (5.0, 0.48), (6.0, 0.4375), (8.0, 0.365625)])
def test_share_of_the_surface_with_five_mm(ten: TumourModel, distance: float, share: float) -> None:
    """Fraction of the tumour's surface with a margin of 5 mm or more, closed form for spheres."""
    margins = surface_margins_mm(ten.surface_points, zone(CENTRE + distance * UP, 16.0, 16.0))
    weights = ten.surface_weights
    assert weights[margins >= 5.0].sum() / weights.sum() == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize(
    ("radius", "spacing", "tolerance"),
    [
        (10.0, (0.5, 0.5, 0.5), 0.2),
        (12.0, (0.7, 0.7, 2.5), 0.3),
        (10.0, (1.0, 1.0, 1.0), 0.2),
        (4.0, (1.0, 1.0, 1.0), 0.2),
        # Flat terraces of 7 mm radius at the poles of an axis-aligned ball.
        (25.0, (1.0, 1.0, 1.0), 0.35),
        (10.0, (0.8, 0.8, 5.0), 0.8),
    ],
)
def test_anisotropic_and_oblique_voxels(radius: float, spacing: tuple[float, float, float], tolerance: float) -> None:
    """Voxel borders would give 4.0 to 5.5 instead of 6 here (bias of 0.5 to 2 mm)."""
    for directions in (np.eye(3), OBLIQUE, OBLIQUE * (-1.0, 1.0, 1.0)):
        model = TumourModel.from_mask(ball(radius, spacing, directions=directions))
        for shift in (np.zeros(3), 3.0 * UP):
            result = compute_margin(model, zone(CENTRE + shift, radius + 6.0, radius + 6.0))
            assert result.min_margin_mm == pytest.approx(6.0 - np.linalg.norm(shift), abs=tolerance)
            assert abs(result.min_margin_mm - 6.0 + np.linalg.norm(shift)) < 3.0 * result.sigma_mm
        distances = np.linalg.norm(model.surface_points - CENTRE, axis=1) - radius
        assert abs(np.average(distances, weights=model.surface_weights)) < 0.05


def test_model_of_a_ball(ten: TumourModel) -> None:
    assert ten.volume_ml == pytest.approx(4.0 / 3.0 * math.pi, rel=0.01)
    np.testing.assert_allclose(ten.centroid_ras, CENTRE, atol=0.1)
    assert ten.surface_weights.sum() == pytest.approx(4.0 * math.pi * 100.0, rel=0.02)
    assert 2000 < len(ten.surface_points) < 6000
    assert ten.covering_radius_mm < 1.0
    assert ten.warnings == ()
    # Tumour + 5 mm: a ball of 15 mm, one sample per mm³.
    assert ten.volume_spacing_mm == 1.0
    assert len(ten.volume_points) == pytest.approx(4.0 / 3.0 * math.pi * 15.0**3, rel=0.02)
    assert np.linalg.norm(ten.volume_points - CENTRE, axis=1).max() < 15.4


def test_surface_points_are_well_spread(ten: TumourModel) -> None:
    """No patch of the sphere is empty: the true sphere's points all have a sample within the covering radius."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(500, 3))
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    on_sphere = CENTRE + 10.0 * directions
    gaps = np.linalg.norm(on_sphere[:, None] - ten.surface_points[None], axis=2).min(axis=1)
    assert gaps.max() < ten.covering_radius_mm + 0.3


@pytest.mark.parametrize("distance", [0.0, 4.0, 9.0])
def test_coverage_of_tumour_and_margin(ten: TumourModel, distance: float) -> None:
    """Share of the 15 mm ball inside a 14 mm ball, by the lens formula."""
    big, small = 15.0, 14.0
    if distance <= big - small:
        overlap = 4.0 / 3.0 * math.pi * small**3
    else:
        d = distance
        overlap = (
            math.pi
            * (big + small - d) ** 2
            * (d * d + 2.0 * d * small - 3.0 * small**2 + 2.0 * d * big + 6.0 * small * big - 3.0 * big**2)
            / (12.0 * d)
        )
    expected = overlap / (4.0 / 3.0 * math.pi * big**3)
    assert compute_margin(ten, zone(CENTRE + distance * UP, small, small)).coverage == pytest.approx(expected, abs=0.01)


def test_a_large_tumour_keeps_its_budget() -> None:
    model = TumourModel.from_mask(ball(30.0, (1.0, 1.0, 1.0)))
    assert len(model.volume_points) <= 60_000
    assert model.volume_spacing_mm > 1.0
    assert len(model.surface_points) < 6000


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 2), (2, 2, 2), (1, 4, 4)])
def test_the_smallest_tumours_have_a_surface_of_their_own_volume(shape: tuple[int, int, int]) -> None:
    array = np.zeros((9, 11, 10), np.uint8)
    array[4 : 4 + shape[0], 5 : 5 + shape[1], 3 : 3 + shape[2]] = 1
    model = TumourModel.from_mask(Volume.of(array, np.diag([1.0, 1.0, 1.0, 1.0])))
    assert model.volume_ml == pytest.approx(math.prod(shape) / 1000.0)
    corners = model.vertices[model.faces]
    enclosed = np.einsum("ij,ij->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6.0
    assert enclosed == pytest.approx(math.prod(shape), rel=0.05)
    assert model.signed_distance_mm(model.centroid_ras) < 0.0


def test_sheared_mask_of_a_tilted_gantry() -> None:
    straight = ball(10.0, (1.0, 1.0, 2.0), pad_mm=8.0)
    affine = straight.ras_from_index.copy()
    affine[1, 2] += 0.4
    affine[1, 3] -= 0.4 * (straight.size[2] - 1) / 2.0
    tilted = Volume.of(straight.array, affine)
    k, j, i = np.indices(straight.array.shape)
    points = tilted.to_ras(np.stack([i, j, k], axis=-1).reshape(-1, 3))
    inside = (np.sum((points - CENTRE) ** 2, axis=1) <= 100.0).reshape(straight.array.shape)
    model = TumourModel.from_mask(Volume.of(inside.astype(np.uint8), affine))
    assert compute_margin(model, zone(CENTRE, 16.0, 16.0)).min_margin_mm == pytest.approx(6.0, abs=0.4)


def test_signed_distance(ten: TumourModel) -> None:
    assert ten.signed_distance_mm(CENTRE) == pytest.approx(-10.0, abs=0.25)
    for depth in (-4.0, -1.0, 1.0, 5.0, 40.0):
        for direction in Rotation.random(8, rng=1).apply(UP):
            point = CENTRE + (10.0 + depth) * direction
            assert ten.signed_distance_mm(point) == pytest.approx(depth, abs=0.25)


def test_warnings_name_what_is_odd() -> None:
    array = np.zeros((12, 12, 20), np.uint8)
    array[3:7, 3:7, 0:5] = 1
    array[3:7, 3:7, 12:16] = 1
    warnings = TumourModel.from_mask(Volume.of(array, np.eye(4))).warnings
    assert any("border" in w for w in warnings)
    assert any("2 separate parts" in w for w in warnings)


def test_empty_masks_and_wrong_margins_are_refused() -> None:
    with pytest.raises(TumourError, match="empty"):
        TumourModel.from_mask(Volume.of(np.zeros((3, 4, 5), np.uint8), np.eye(4)))
    with pytest.raises(TumourError, match="margin_mm is 0"):
        TumourModel.from_mask(Volume.of(np.ones((3, 4, 5), np.uint8), np.eye(4)), margin_mm=0.0)


def test_arrays_give_back_the_same_bits(ten: TumourModel) -> None:
    back = TumourModel.from_arrays({k: v.copy() for k, v in ten.to_arrays().items()})
    z = zone(CENTRE + np.array([1.0, 2.0, 3.0]), 20.0, 16.0, (0.1, 0.2, 1.0))
    a, b = compute_margin(ten, z, np.eye(3)), compute_margin(back, z, np.eye(3))
    assert (a.min_margin_mm, a.coverage, a.sigma_mm) == (b.min_margin_mm, b.coverage, b.sigma_mm)
    assert back.signed_distance_mm(CENTRE + 3.0) == ten.signed_distance_mm(CENTRE + 3.0)
    assert not back.surface_points.flags.writeable
    arrays = ten.to_arrays()
    del arrays["faces"]
    with pytest.raises(TumourError, match="'faces' is missing"):
        TumourModel.from_arrays(arrays)
    with pytest.raises(TumourError, match=r"'scalars' has shape \(3,\)"):
        TumourModel.from_arrays({**ten.to_arrays(), "scalars": np.zeros(3)})


def test_point_margin_of_an_ellipsoid() -> None:
    z = zone(CENTRE, 20.0, 15.0, (0.0, 1.0, 0.0))
    axis = np.array([0.0, 1.0, 0.0])
    assert point_margin_mm(CENTRE, z) == pytest.approx(15.0)
    assert point_margin_mm(CENTRE + 20.0 * axis, z) == pytest.approx(0.0, abs=1e-9)
    assert point_margin_mm(CENTRE + 27.0 * axis, z) == pytest.approx(-7.0)
    assert point_margin_mm(CENTRE + 15.0 * UP, z) == pytest.approx(0.0, abs=1e-9)
    assert point_margin_mm(CENTRE + 25.0 * UP, z) == pytest.approx(-10.0)


def test_sigma_is_the_tip_error_along_the_worst_direction(ten: TumourModel) -> None:
    z = zone(CENTRE + 3.0 * UP, 16.0, 16.0)
    alone = compute_margin(ten, z).sigma_mm
    assert alone == pytest.approx(math.sqrt(1.0 / 12.0), rel=0.1)
    assert compute_margin(ten, z, np.diag([0.0, 0.0, 4.0])).sigma_mm == pytest.approx(2.0, abs=0.15)
    assert compute_margin(ten, z, np.diag([4.0, 0.0, 0.0])).sigma_mm < 1.0


def test_sigma_agrees_with_moved_tips(ten: TumourModel) -> None:
    """The spread of the margin when the tip is moved by its covariance is the stated one."""
    rng = np.random.default_rng(4)
    covariance = np.diag([0.2, 0.5, 1.0])
    result = compute_margin(ten, zone(CENTRE + 5.0 * UP, 20.0, 16.0), covariance)
    moved = [
        compute_margin(ten, zone(CENTRE + 5.0 * UP + rng.normal(size=3) * np.sqrt(np.diag(covariance)), 20.0, 16.0))
        for _ in range(400)
    ]
    spread = float(np.std([m.min_margin_mm for m in moved]))
    alone = compute_margin(ten, zone(CENTRE + 5.0 * UP, 20.0, 16.0)).sigma_mm
    assert math.sqrt(result.sigma_mm**2 - alone**2) == pytest.approx(spread, rel=0.35)


def test_margin_is_fast_enough_for_every_pose(ten: TumourModel) -> None:
    z = zone(CENTRE + np.array([1.0, 2.0, 3.0]), 20.5, 18.0, (0.2, 0.1, 1.0))
    compute_margin(ten, z, np.eye(3))
    best = math.inf
    for _ in range(20):
        start = time.thread_time()
        compute_margin(ten, z, np.eye(3))
        best = min(best, time.thread_time() - start)
    assert best < 3e-3
