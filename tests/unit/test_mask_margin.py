"""Margins of measured ablations: spheres with closed forms, turned and coarse grids, capsule, coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tumour_phantoms import OBLIQUE, ball_on, empty_grid, zone

from nav.ablation.margin import compute_margin
from nav.ablation.mask_margin import MarginMap, measure_margin, share_below
from nav.ablation.mask_surface import MaskSurface, MaskSurfaceError, border_near
from nav.ablation.tumour import TumourModel
from nav.ablation.voxel_border import voxel_border_margin
from nav.geometry.volume import Volume

ORIGIN = np.zeros(3)
UP = np.array([0.0, 0.0, 1.0])
FINE = (1.0, 1.0, 1.0)
COARSE = (0.8, 0.8, 5.0)


def measured(grid: Volume, shift: np.ndarray, *, histogram: bool = False, **more: object) -> MarginMap:
    """Spheres of 10 and 16 mm, the second one shifted."""
    tumour = MaskSurface.of_mask(ball_on(grid, ORIGIN, 10.0))
    ablation = MaskSurface.of_mask(ball_on(grid, shift, 16.0), what="ablation")
    return measure_margin(tumour, ablation, histogram=histogram, **more)


@pytest.mark.parametrize(
    ("distance", "ge5", "lt0"), [(0, 1.0, 0.0), (3, 0.6, 0.0), (5, 0.48, 0.0), (8, 0.365625, 0.2125)]
)
def test_spheres_in_fine_voxels_in_any_grid(distance: float, ge5: float, lt0: float) -> None:
    """MAM = 6 − d, and the shares of the surface in closed form; the same in a turned grid."""
    found = [measured(empty_grid(FINE, half_mm=25.0, directions=d), distance * UP) for d in (np.eye(3), OBLIQUE)]
    for result in found:
        assert result.whole.min_margin_mm == pytest.approx(6.0 - distance, abs=0.2)
        assert abs(result.whole.min_margin_mm - 6.0 + distance) <= result.voxel_uncertainty_mm
        assert result.whole.ge5 == pytest.approx(ge5, abs=0.01)
        assert result.whole.lt0 == pytest.approx(lt0, abs=0.01)
        if distance:
            assert result.result.worst_point_ras[2] < -9.0
    assert found[0].whole.min_margin_mm == pytest.approx(found[1].whole.min_margin_mm, abs=0.2)


def test_spheres_in_thick_slices_stay_within_a_millimetre_and_within_what_is_stated() -> None:
    for shift in ((0.0, 0.0, 0.0), (0.3, 0.2, 0.45)):
        grid = empty_grid(COARSE, half_mm=25.0, shift_voxels=shift)
        for centre in (ORIGIN, 3.0 * UP, np.array([3.0, 0.0, 0.0])):
            result = measured(grid, centre)
            error = result.whole.min_margin_mm - 6.0 + np.linalg.norm(centre)
            assert abs(error) <= 1.0
            assert abs(error) <= result.voxel_uncertainty_mm < 5.0


def test_spheres_at_any_place_in_voxels_of_a_millimetre() -> None:
    rng = np.random.default_rng(3)
    for turned in (np.eye(3), OBLIQUE):
        for _ in range(3):
            shift = rng.normal(size=3)
            shift *= 4.0 / np.linalg.norm(shift)
            grid = empty_grid(FINE, half_mm=25.0, directions=turned, shift_voxels=tuple(rng.uniform(-0.5, 0.5, 3)))
            assert measured(grid, shift).whole.min_margin_mm == pytest.approx(2.0, abs=0.2)


def test_a_dent_in_the_ablation_is_not_filled_and_narrow_shapes_keep_their_ends() -> None:
    """A vessel's dent, the waist of two ablations, and a long tumour: smoothing alone says 0.8 to 1.4 mm too much."""
    grid = empty_grid(FINE, half_mm=26.0)
    tumour = MaskSurface.of_mask(ball_on(grid, ORIGIN, 8.0))
    whole = ball_on(grid, ORIGIN, 16.0).array > 0
    dent = ball_on(grid, 16.0 * UP, 5.0).array > 0
    dented = MaskSurface.of_mask(Volume.of((whole & ~dent).astype(np.uint8), grid.ras_from_index), what="ablation")
    found = measure_margin(tumour, dented, histogram=False)
    assert found.whole.min_margin_mm == pytest.approx(3.0, abs=0.5)
    assert found.result.worst_point_ras[2] > 7.0
    two = sum(ball_on(grid, side * 7.0 * UP, 13.0).array for side in (-1.0, 1.0))
    waist = MaskSurface.of_mask(Volume.of(two, grid.ras_from_index), what="ablation")
    assert measure_margin(tumour, waist, histogram=False).whole.min_margin_mm == pytest.approx(
        math.sqrt(13.0**2 - 7.0**2) - 8.0, abs=0.5
    )
    cigar = MaskSurface.of_mask(ball_on(grid, ORIGIN, np.array([3.5, 3.5, 12.0])))
    round_ablation = MaskSurface.of_mask(ball_on(grid, ORIGIN, 16.0), what="ablation")
    assert measure_margin(cigar, round_ablation, histogram=False).whole.min_margin_mm == pytest.approx(4.0, abs=0.55)


def test_voxel_borders_are_biased_as_published() -> None:
    fine, coarse = empty_grid(FINE), empty_grid(COARSE)
    concentric = voxel_border_margin(ball_on(fine, ORIGIN, 10.0), ball_on(fine, ORIGIN, 16.0))
    assert concentric.whole.min_margin_mm == pytest.approx(5.10, abs=0.005)
    shifted = voxel_border_margin(ball_on(fine, ORIGIN, 10.0), ball_on(fine, 3.0 * UP, 16.0))
    assert shifted.whole.ge5 == pytest.approx(0.570, abs=0.005)
    thick = voxel_border_margin(ball_on(coarse, ORIGIN, 10.0), ball_on(coarse, ORIGIN, 16.0))
    assert thick.whole.min_margin_mm == pytest.approx(4.0, abs=0.005)
    # On another grid the distances are still taken in space.
    other = voxel_border_margin(ball_on(fine, ORIGIN, 10.0), ball_on(empty_grid((0.5, 0.5, 0.5)), ORIGIN, 16.0))
    assert 5.0 < other.whole.min_margin_mm < 6.0


def test_coverage_of_shells_by_the_lens_formula() -> None:
    result = measured(empty_grid(FINE, half_mm=28.0), 4.0 * UP, histogram=True)

    def lens(a: float, b: float, d: float) -> float:
        if d <= abs(a - b):
            return 4.0 / 3.0 * math.pi * min(a, b) ** 3
        return math.pi * (a + b - d) ** 2 * (d * d + 2 * d * (a + b) - 3 * (a - b) ** 2) / (12 * d)

    inner = lens(10.0, 16.0, 4.0)
    for shell in result.coverage:
        m = shell.margin_mm
        whole = 4.0 / 3.0 * math.pi * ((10.0 + m) ** 3 - 1000.0)
        assert shell.coverage == pytest.approx((lens(10.0 + m, 16.0, 4.0) - inner) / whole, abs=0.015)
        assert shell.shell_ml == pytest.approx(whole / 1000.0, rel=0.04)
        assert shell.uncovered_ml == pytest.approx((1.0 - shell.coverage) * shell.shell_ml)
    assert result.tumour_covered == 1.0
    assert result.result.coverage == pytest.approx(lens(15.0, 16.0, 4.0) / (4.0 / 3.0 * math.pi * 15.0**3), abs=0.01)


def test_live_ellipsoid_and_its_mask_afterwards_give_one_number() -> None:
    grid = empty_grid(FINE, half_mm=26.0)
    mask = ball_on(grid, ORIGIN, 9.0)
    semi = np.array([15.0, 15.0, 21.0])
    centre = np.array([1.0, 2.0, 3.0])
    ellipsoid = zone(centre, 21.0, 15.0)
    live = compute_margin(TumourModel.from_mask(mask), ellipsoid)
    chart = measure_margin(MaskSurface.of_mask(mask), ellipsoid, histogram=False)
    after = measure_margin(
        MaskSurface.of_mask(mask),
        MaskSurface.of_mask(ball_on(grid, centre, semi), what="ablation"),
        histogram=False,
    )
    assert chart.result.min_margin_mm == pytest.approx(live.min_margin_mm, abs=0.03)
    assert after.result.min_margin_mm == pytest.approx(live.min_margin_mm, abs=0.2)
    np.testing.assert_allclose(after.result.worst_point_ras, live.worst_point_ras, atol=2.0)


def test_the_tumour_moves_and_the_ablation_stays() -> None:
    grid = empty_grid(FINE, half_mm=26.0)
    tumour = MaskSurface.of_mask(ball_on(grid, -4.0 * UP, 10.0))
    ablation = MaskSurface.of_mask(ball_on(grid, ORIGIN, 16.0), what="ablation")
    result = measure_margin(tumour, ablation, moved=lambda p: p + 3.0 * UP, back=lambda p: p - 3.0 * UP)
    assert result.result.min_margin_mm == pytest.approx(5.0, abs=0.2)
    assert result.result.worst_point_ras[2] == pytest.approx(-11.0, abs=0.4)
    assert result.coverage[2].coverage == pytest.approx(1.0, abs=0.005)
    with pytest.raises(ValueError, match="does not reach the whole tumour"):
        measure_margin(tumour, ablation, moved=lambda p: np.where(p[:, 2:] < 0.0, np.nan, p), back=lambda p: p)


def test_capsule_is_left_out_and_clips_the_shells() -> None:
    """Organ below z = 12 mm, tumour of 10 mm: the cap above 7 mm is subcapsular, 3/20 of the surface."""
    grid = empty_grid(FINE, half_mm=26.0)
    below = (grid.voxels_ras()[:, 2] < 12.0).reshape(grid.array.shape).astype(np.uint8)
    tumour = MaskSurface.of_mask(ball_on(grid, ORIGIN, 10.0))
    # Reaches the border but not beyond: the margin at the cap is small.
    ablation = MaskSurface.of_mask(ball_on(grid, -5.0 * UP, 17.0), what="ablation")
    organ, outside = border_near(Volume.of(below, grid.ras_from_index), np.full(3, -24.0), np.full(3, 24.0), tumour)
    assert outside == 0.0
    result = measure_margin(tumour, ablation, organ=organ)
    free = measure_margin(tumour, ablation)
    # The border lies midway between voxel centres, at 11.5 mm.
    assert result.excluded_fraction == pytest.approx((10.0 - 6.5) / 20.0, abs=0.02)
    assert result.whole.min_margin_mm == pytest.approx(2.0, abs=0.2)
    assert result.free is not None
    # At z = 6.5: distance to the ablation's centre √(100 − 6.5² + 11.5²).
    assert result.free.min_margin_mm == pytest.approx(17.0 - math.sqrt(100 - 6.5**2 + 11.5**2), abs=0.25)
    assert result.coverage[9].coverage > free.coverage[9].coverage + 0.05
    # A mask that leaves the tumour out has no capsule around it.
    hole = Volume.of(below * (1 - ball_on(grid, ORIGIN, 10.0).array), grid.ras_from_index)
    organ, outside = border_near(hole, np.full(3, -24.0), np.full(3, 24.0), tumour)
    assert outside > 0.9
    again = measure_margin(tumour, ablation, organ=organ, histogram=False)
    assert again.excluded_fraction == pytest.approx(result.excluded_fraction, abs=0.03)


def test_share_below_cuts_triangles() -> None:
    vertices = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    faces = np.array([[0, 1, 2]], np.int32)
    for limit in (-1.0, 0.0, 0.3, 0.7, 1.0, 2.0):
        # Values x + y: a small triangle is below; values 1 − x − y: all but one.
        small = 0.5 * min(max(limit, 0.0), 1.0) ** 2
        assert share_below(vertices, faces, np.array([0.0, 1.0, 1.0]), limit) == pytest.approx(small)
        assert share_below(vertices, faces, np.array([1.0, 0.0, 0.0]), 1.0 - limit) == pytest.approx(0.5 - small)


def test_distances_are_those_of_the_whole_mesh() -> None:
    """Four nearest vertices are enough: against every triangle."""
    grid = empty_grid((0.8, 0.8, 2.5))
    mask = ball_on(grid, ORIGIN, np.array([8.0, 12.0, 6.0]))
    model, surface = TumourModel.from_mask(mask), MaskSurface.of_mask(mask)
    points = np.random.default_rng(2).uniform(-16.0, 16.0, (300, 3))
    exact = [model.signed_distance_mm(p) for p in points]
    np.testing.assert_allclose(surface.signed_distance_mm(points), exact, atol=0.02)


def test_odd_masks_are_named() -> None:
    grid = empty_grid(FINE, half_mm=26.0)
    tumour = MaskSurface.of_mask(ball_on(grid, ORIGIN, 5.0))
    away = MaskSurface.of_mask(ball_on(grid, 20.0 * UP, 7.0), what="ablation")
    result = measure_margin(tumour, away)
    assert result.result.min_margin_mm == pytest.approx(-18.0, abs=0.3)
    assert any("do not overlap at all" in w for w in result.warnings)
    assert any("ablation touches the border" in w for w in result.warnings)
    two = Volume.of(ball_on(grid, 12.0 * UP, 6.0).array + ball_on(grid, -12.0 * UP, 6.0).array, grid.ras_from_index)
    result = measure_margin(tumour, MaskSurface.of_mask(two, what="ablation"), histogram=False)
    assert any("2 separate parts" in w for w in result.warnings)
    with pytest.raises(MaskSurfaceError, match="ablation mask is empty"):
        MaskSurface.of_mask(grid, what="ablation")
    with pytest.raises(MaskSurfaceError, match="not finite"):
        MaskSurface.of_mask(Volume.of(np.full((3, 3, 3), np.nan), np.eye(4)))
    with pytest.raises(MaskSurfaceError, match="tumour mask is empty"):
        voxel_border_margin(grid, ball_on(grid, ORIGIN, 5.0))


def test_probability_of_five_millimetres() -> None:
    """Measured 7 mm with 2 mm of sigma: 84 %."""
    result = measured(empty_grid(FINE, half_mm=25.0), ORIGIN)
    six = result.result.min_margin_mm
    sigma = math.sqrt(4.0 - result.result.sigma_mm**2)
    assert result.probability_of(six - 2.0, sigma) == pytest.approx(0.8413, abs=1e-4)
