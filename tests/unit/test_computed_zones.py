"""Zones computed around a needle and in a box: sources, shapes, bands, vessels, margins."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from nav.ablation.applicators import ChartRangeError, load_applicator
from nav.ablation.margin import compute_margin, surface_margins_mm
from nav.ablation.needle_zone import NeedleShape, shape_of_damage
from nav.ablation.prediction import (
    Applied,
    NoHeatModelError,
    box_zone,
    place_shape,
    predict_band,
    predict_box,
    predict_shape,
    wide_vessels,
)
from nav.ablation.sources import NeedleGrid, joule_source, line_source
from nav.ablation.thermal import Arrhenius, StateCurve, load_tissue
from nav.ablation.tumour import TumourModel
from nav.config.load import ConfigError
from nav.geometry.rigid import Rigid
from nav.geometry.volume import Volume

EMPRINT = load_applicator("emprint")
LIVER = load_tissue("liver")
UPRIGHT = Rigid.identity("TipToRas")


def ball(radius: float, spacing: float = 1.0) -> Volume:
    n = 2 * math.ceil(radius / spacing) + 9
    x = (np.arange(n) - n // 2) * spacing
    inside = x[:, None, None] ** 2 + x[None, :, None] ** 2 + x[None, None, :] ** 2 < radius**2
    matrix = np.diag([spacing, spacing, spacing, 1.0])
    matrix[:3, 3] = -(n // 2) * spacing
    return Volume.of(inside.astype(np.uint8), matrix)


def ball_shape(radius: float, centre_z: float = 0.0) -> NeedleShape:
    grid = NeedleGrid(-30.0, 1.0, 61, 30)
    r = np.hypot(grid.z_mm[:, None] - centre_z, grid.r_mm[None])
    return shape_of_damage(grid, np.exp(0.7 * (radius - r)))


def test_death_and_stored_heat_have_the_published_numbers() -> None:
    liver = Arrhenius(frequency_per_s=7.39e39, energy_j_per_mol=2.577e5)
    assert liver.rate(60.0) == pytest.approx(0.2915, rel=1e-3)
    assert LIVER.death.rate(60.0) == pytest.approx(1.069, rel=1e-2)
    assert LIVER.death.rate([37.0, 43.0]).tolist() == [0.0, 0.0]
    assert np.isnan(LIVER.death.rate(math.nan))
    curve = StateCurve.heated(LIVER)
    latent = (curve.enthalpy(110.0) - curve.enthalpy(100.0)) * LIVER.heat_per_volume
    dry = 10.0 * (1.0 - 0.00056 * 63.0) * LIVER.heat_per_volume
    assert latent - dry == pytest.approx(0.7 * 1079.0 * 2.26e6, rel=1e-9)
    cold = StateCurve.frozen(37.0, (-8.0, -1.0), 69.4, 0.5, 4.0)
    for some in (curve, cold):
        t = np.linspace(-120.0, 400.0, 300)
        np.testing.assert_allclose(some.celsius(some.enthalpy(t)), t, atol=1e-9)
    freezing = (cold.enthalpy(-1.0) - cold.enthalpy(-8.0)) - 0.5 * 1.5 * 7.0
    assert freezing == pytest.approx(69.4)


def test_sources_give_off_what_they_are_given() -> None:
    grid = NeedleGrid(-40.0, 1.0, 81, 40)
    for source in (line_source(grid, -3.0, 14.0, 40.0), joule_source(grid, -3.0, 30.0, 0.75)):
        assert (source * grid.volumes_mm3).sum() == pytest.approx(1.0, abs=1e-9)
        assert (source >= 0.0).all()
        middle = float((source * grid.volumes_mm3 * grid.z_mm[:, None]).sum())
        assert middle == pytest.approx(-3.0, abs=0.2)  # the grid reaches farther on one side
    # A short electrode is a sphere from afar: its field falls with the square, its power with the fourth power.
    point = joule_source(grid, 0.0, 3.2, 1.5)
    at = point[40]
    assert at[30] / at[15] == pytest.approx((15.5 / 30.5) ** 4, rel=0.05)
    with pytest.raises(ValueError, match="shorter than its diameter"):
        joule_source(grid, 0.0, 1.0, 0.75)


def test_a_shape_is_found_between_cells() -> None:
    shape = ball_shape(12.3, 1.7)
    assert shape.long_mm == pytest.approx(24.6, abs=0.05)
    assert shape.short_mm == pytest.approx(24.6, abs=0.05)
    assert shape.centre_z_mm == pytest.approx(1.7, abs=0.02)
    assert shape.volume_ml == pytest.approx(4e-3 / 3.0 * math.pi * 12.3**3, rel=0.005)
    r = np.hypot(shape.grid.z_mm[:, None] - 1.7, shape.grid.r_mm[None])
    near = r < 20.0
    np.testing.assert_allclose(shape.distance_mm[near], (12.3 - r)[near], atol=0.06)
    np.testing.assert_allclose(np.hypot(shape.outline_mm[:, 0] - 1.7, shape.outline_mm[:, 1]), 12.3, atol=0.05)
    nothing = shape_of_damage(shape.grid, np.full(shape.distance_mm.shape, 0.5))
    assert nothing.volume_ml == 0.0
    assert (nothing.distance_mm == -np.inf).all()
    with pytest.raises(ValueError, match="edge of a grid"):
        ball_shape(31.0)


def test_zones_are_as_wide_and_as_long_as_the_device_showed() -> None:
    assert EMPRINT.heating is not None
    errors = []
    for row in EMPRINT.chart:
        if row.time_s in (150.0, 600.0):
            shape = predict_shape(EMPRINT, row.power_w, row.time_s, LIVER)
            errors.append((shape.long_mm - row.long_mm, shape.short_mm - row.short_mm))
            assert shape.centre_z_mm == pytest.approx(-row.offset_mm, abs=0.3)
    long, short = np.sqrt((np.array(errors) ** 2).mean(axis=0))
    assert long < EMPRINT.heating.held_out.long_mm
    assert short < 1.5 * EMPRINT.heating.held_out.short_mm


def test_perfusion_and_power_move_the_zone_and_the_band_holds_them() -> None:
    shape = predict_shape(EMPRINT, 75.0, 300.0, LIVER)
    low = predict_shape(EMPRINT, 75.0, 300.0, LIVER, perfusion=1.35, energy=0.9)
    high = predict_shape(EMPRINT, 75.0, 300.0, LIVER, perfusion=0.74, energy=1.1)
    assert low.short_mm < shape.short_mm - 1.0 < shape.short_mm + 1.0 < high.short_mm
    band = predict_band(EMPRINT, 75.0, 300.0, LIVER, shape)
    assert band.inner.short_mm < low.short_mm
    assert band.outer.short_mm > high.short_mm
    assert band.inner.volume_ml < shape.volume_ml < band.outer.volume_ml
    sure = LIVER.model_copy(update={"perfusion_sd": 0.0})
    assert predict_band(EMPRINT, 75.0, 300.0, sure, shape).inner.short_mm > band.inner.short_mm + 0.3
    tip = predict_band(EMPRINT, 75.0, 300.0, LIVER, shape, np.diag([4.0, 4.0, 4.0, 0.0, 0.0, 0.0]))
    wider = math.hypot(band.sigma_mm[shape.grid.rows // 2, 15], 2.0 * math.sqrt(0.5))
    assert tip.sigma_mm[shape.grid.rows // 2, 15] == pytest.approx(wider, rel=0.05) or (
        tip.inner.short_mm < band.inner.short_mm - 1.0
    )
    with pytest.raises(ValueError, match="kill nothing"):
        predict_band(EMPRINT, 75.0, 300.0, LIVER, replace(shape, volume_ml=0.0))


def test_three_dimensions_agree_with_one_needle_alone_and_a_vessel_pulls_its_side_in() -> None:
    pose = np.eye(4)
    pose[:3, :3] = np.array([[1.0, 0.0, 0.0], [0.0, 0.8, 0.6], [0.0, -0.6, 0.8]])
    pose[:3, 3] = (3.3, -7.1, 12.4)
    tip = Rigid.from_matrix(pose, "TipToRas")
    shape = predict_shape(EMPRINT, 75.0, 300.0, LIVER)
    one = Applied(EMPRINT, 75.0, 300.0, tip)
    told: list[float] = []
    box = predict_box([one], LIVER, progress=lambda share, _: told.append(share))
    assert told[-1] == 1.0
    assert len(told) > 10
    assert box.long_mm == pytest.approx(shape.long_mm, abs=0.3)
    assert box.short_mm == pytest.approx(shape.short_mm, abs=0.3)
    assert box.volume_ml == pytest.approx(shape.volume_ml, rel=0.02)
    placed = place_shape(EMPRINT, 75.0, 300.0, LIVER, shape, tip)
    assert np.abs(surface_margins_mm(box.surface_ras, placed)).max() < 0.5

    # A vessel of 6 mm along the needle, 12 mm to its right.
    centre = placed.centre_ras
    matrix = np.eye(4)
    matrix[:3, 3] = centre - 30.0
    k, j, i = np.indices((61, 61, 61))
    away = np.stack([i, j, k], axis=-1) - 30.0
    along = away @ tip.rotation[:, 2]
    across = away - along[..., None] * tip.rotation[:, 2]
    vessel = np.linalg.norm(across - 12.0 * tip.rotation[:, 0], axis=-1) < 3.0
    beside = predict_box([one], LIVER, vessels=Volume.of(vessel.astype(np.uint8), matrix))

    def reach(direction: NDArray[np.float64]) -> tuple[float, float]:
        points = centre + np.linspace(0.0, 25.0, 251)[:, None] * direction
        return tuple(float((surface_margins_mm(points, z) >= 0.0).sum()) * 0.1 for z in (box, beside))  # type: ignore[return-value]

    right, right_beside = reach(tip.rotation[:, 0])
    left, left_beside = reach(-tip.rotation[:, 0])
    assert right == pytest.approx(left, abs=0.3)
    assert right_beside < 9.5 < right - 3.0
    assert left_beside == pytest.approx(left, abs=0.5)
    thin = np.linalg.norm(across - 12.0 * tip.rotation[:, 0], axis=-1) < 1.0
    unmoved = predict_box([one], LIVER, vessels=Volume.of(thin.astype(np.uint8), matrix))
    assert unmoved.volume_ml == box.volume_ml


def test_two_needles_at_once_kill_more_than_both_alone() -> None:
    second = np.eye(4)
    second[0, 3] = 18.0
    both = [Applied(EMPRINT, 45.0, 300.0, p) for p in (UPRIGHT, Rigid.from_matrix(second, "TipToRas"))]
    alone = predict_shape(EMPRINT, 45.0, 300.0, LIVER).volume_ml
    together = predict_box(both, LIVER).volume_ml
    assert together > 2.2 * alone


@pytest.mark.parametrize(("width", "stays"), [(2.0, False), (5.0, True)])
def test_only_wide_vessels_are_sinks(width: float, stays: bool) -> None:
    x = np.arange(40) - 19.5
    tube = np.broadcast_to(np.hypot(x[:, None], x[None]) < width / 2.0, (20, 40, 40)).copy()
    found = wide_vessels(tube, 1.0)
    assert (found[10] == (tube[10] & stays)).mean() > 0.995
    assert not wide_vessels(np.zeros((4, 4, 4), bool), 1.0).any()


@pytest.mark.parametrize("offset", [0.0, 2.0])
def test_margins_of_computed_zones(offset: float) -> None:
    tumour = TumourModel.from_mask(ball(10.0))
    zone = place_shape(EMPRINT, 75.0, 300.0, LIVER, ball_shape(16.0, offset), UPRIGHT)
    found = compute_margin(tumour, zone, np.eye(3))
    assert found.min_margin_mm == pytest.approx(6.0 - offset, abs=0.25)
    assert found.coverage == pytest.approx(1.0 if offset == 0.0 else 0.99, abs=0.02)
    assert 1.0 < found.sigma_mm < 1.3
    if offset:
        assert found.worst_point_ras[2] < -9.0
    level = ball(16.0, 0.8)
    x = [level.to_ras(np.eye(3)[a] * np.arange(level.array.shape[0])[:, None])[:, a] for a in range(3)]
    r = np.sqrt(x[0][None, None] ** 2 + x[1][None, :, None] ** 2 + (x[2][:, None, None] - offset) ** 2)
    box = box_zone(Volume.of((16.0 - r).astype(np.float32), level.ras_from_index), np.array([0.0, 0.0, 1.0]), "", "")
    assert box.long_mm == pytest.approx(32.0, abs=0.1)
    assert box.volume_ml == pytest.approx(4e-3 / 3.0 * math.pi * 16.0**3, rel=0.01)
    assert compute_margin(tumour, box).min_margin_mm == pytest.approx(6.0 - offset, abs=0.25)
    far = np.array([[0.0, 0.0, -100.0], [math.nan, 0.0, 0.0]])
    for one in (zone, box):
        margins = surface_margins_mm(far, one)
        assert margins[0] == pytest.approx(-(84.0 + offset), abs=0.5)
        assert np.isnan(margins[1])


def test_what_cannot_be_computed_is_refused() -> None:
    with pytest.raises(ChartRangeError, match="45 to 100 W"):
        predict_shape(EMPRINT, 120.0, 300.0, LIVER)
    with pytest.raises(NoHeatModelError, match=r"no \[heating\]"):
        predict_shape(load_applicator("neuwave_kidney"), 65.0, 300.0, LIVER)
    with pytest.raises(ValueError, match="no applicator"):
        predict_box([], LIVER)
    with pytest.raises(ConfigError, match="known: "):
        load_tissue("spleen")
