"""Zones computed around a needle and in a box: sources, shapes, bands, vessels, margins."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from nav.ablation.applicators import Applicator, ChartRangeError, load_applicator
from nav.ablation.axisymmetric import heat_needle
from nav.ablation.margin import compute_margin, surface_margins_mm
from nav.ablation.needle_zone import NeedleShape, shape_of_damage
from nav.ablation.prediction import (
    Applied,
    NoHeatModelError,
    around_needle,
    box_zone,
    place_shape,
    predict_band,
    predict_box,
    predict_shape,
    wide_vessels,
)
from nav.ablation.sources import NeedleGrid, joule_source, line_source, warmed
from nav.ablation.thermal import Arrhenius, Material, StateCurve, load_tissue
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


def cooled_electrode(power: float = 33.0) -> Applicator:
    return Applicator.model_validate({
        "name": "Electrode", "manufacturer": "-", "device": "-", "modality": "radiofrequency", "basis": "-",
        "citation": "-",
        "chart": [{"power_w": 50, "time_s": 720, "long_mm": 45, "short_mm": 30, "offset_mm": 15}],
        "heating": {
            "tissue": "liver", "fitted_to": "-", "power_w": power, "active_length_mm": 30, "radius_mm": 0.75,
            "shaft_c": 15, "held_out": {"long_mm": 2, "short_mm": 2},
        },
    })  # fmt: skip


def test_a_current_heats_less_where_tissue_conducts_better() -> None:
    grid = NeedleGrid(-20.0, 1.0, 41, 20)
    source = 30.0 * joule_source(grid, 0.0, 20.0, 0.75)
    warm = np.full(source.shape, 37.0)
    np.testing.assert_allclose(warmed(grid, source, warm), source)
    warm[:, :5] = 97.0
    found = warmed(grid, source, warm)
    assert (found * grid.volumes_mm3).sum() == pytest.approx(30.0)
    np.testing.assert_allclose((found[:, 7] / found[:, 2]) / (source[:, 7] / source[:, 2]), 1.0 + 0.015 * 60.0)


def test_a_cooled_electrode_is_as_sensitive_to_perfusion_as_measured() -> None:
    """Huang 2012: 39.25 mm - 4.4 mm per 10 ml/min/100 g, with heparinised blood that does not clot."""
    model = cooled_electrode().heating
    assert model is not None
    grid, widths, flows = NeedleGrid(-49.5, 1.0, 100, 45), [], np.array([10.0, 30.0, 50.0])
    for flow in flows:
        tissue = LIVER.model_copy(update={"perfusion_ml_per_min_kg": 10.0 * flow})
        around = around_needle(model, "W", 50.0, grid, 0.0, tissue)
        flows_on = replace(around, material=replace(around.material, stasis_damage=math.inf))
        widths.append(shape_of_damage(grid, flows_on.heat(grid, [720.0]).damage[0]).short_mm)
    assert np.polyfit(flows / 10.0, widths, 1)[0] == pytest.approx(-4.4, abs=1.0)
    assert np.abs(np.array(widths) - (39.25 - 0.44 * flows)).max() < 4.0
    # Where blood clots in dead tissue, it protects less.
    stops = shape_of_damage(grid, around.heat(grid, [720.0]).damage[0]).short_mm
    assert stops > widths[-1] + 5.0


def test_a_source_that_varies_keeps_its_snapshots_and_its_heat() -> None:
    grid = NeedleGrid(-30.0, 1.0, 61, 25)
    source = 20.0 * joule_source(grid, 0.0, 20.0, 0.75)
    fixed = heat_needle(grid, Material.heated(LIVER), source, [61.0, 130.0, 200.0], off_s=150.0)
    asked: list[float] = []

    def same(celsius: NDArray[np.float64]) -> NDArray[np.float64]:
        asked.append(float(celsius.max()))
        return source

    varied = heat_needle(grid, Material.heated(LIVER), same, [61.0, 130.0, 200.0], off_s=150.0)
    np.testing.assert_allclose(varied.damage, fixed.damage, rtol=1e-12)
    np.testing.assert_allclose(varied.balance_k_mm3, fixed.balance_k_mm3, rtol=1e-9)
    assert 35 <= len(asked) <= 42  # every 5 s, in whole steps
    assert asked[0] == 37.0 < asked[10]
    with pytest.raises(ValueError, match="does not depend"):
        heat_needle(grid, Material.heated(LIVER), same, [10.0], limit_c=100.0)


@pytest.mark.parametrize("name", ["visica2_liver", "electrode"])
def test_cold_probes_and_cooled_shafts_are_alike_in_three_dimensions(name: str) -> None:
    device, power, seconds = (
        (cooled_electrode(), 50.0, 720.0) if name == "electrode" else (load_applicator(name), 1.0, 240.0)
    )
    pose = np.eye(4)
    pose[:3, :3] = np.array([[1.0, 0.0, 0.0], [0.0, 0.8, 0.6], [0.0, -0.6, 0.8]])
    shape = predict_shape(device, power, seconds, LIVER)
    box = predict_box([Applied(device, power, seconds, Rigid.from_matrix(pose, "TipToRas"))], LIVER)
    assert box.long_mm == pytest.approx(shape.long_mm, abs=1.0)
    assert box.short_mm == pytest.approx(shape.short_mm, abs=1.0)


def test_a_frozen_zone_and_what_is_surely_dead_in_it() -> None:
    probe = load_applicator("visica2_liver")
    assert probe.heating is not None
    shape = predict_shape(probe, 1.0, 240.0, LIVER)
    row = probe.chart[0]
    assert abs(shape.long_mm - row.long_mm) < probe.heating.held_out.long_mm
    assert abs(shape.short_mm - row.short_mm) < probe.heating.held_out.short_mm
    sure = predict_shape(probe, 1.0, 240.0, LIVER, lethal_c=-40.0)
    assert sure.short_mm < shape.short_mm - 2.0
    assert (sure.distance_mm <= shape.distance_mm + 0.2).all()
    warmer = predict_shape(probe, 1.0, 240.0, LIVER, perfusion=2.0)
    assert warmer.short_mm < shape.short_mm - 0.3
    # Perfusion stops where it froze: tissue that kept it would stay warmer.
    grid, held = NeedleGrid(-15.0, 1.0, 31, 20), np.full((31, 20), np.nan)
    held[:, 0] = -150.0
    frozen = Material.frozen(LIVER)
    stops, flows = (
        heat_needle(grid, m, np.zeros(held.shape), [240.0], held_c=held)
        for m in (frozen, replace(frozen, stasis_c=-1e9))
    )
    assert stops.celsius[15, 3] < flows.celsius[15, 3] - 5.0


def test_two_cryoprobes_freeze_what_neither_does_alone() -> None:
    probe = load_applicator("visica2_liver")
    second = np.eye(4)
    second[0, 3] = 14.0
    both = [Applied(probe, 1.0, 240.0, p) for p in (UPRIGHT, Rigid.from_matrix(second, "TipToRas"))]
    alone = predict_shape(probe, 1.0, 240.0, LIVER).volume_ml
    assert predict_box(both, LIVER).volume_ml > 2.3 * alone
    with pytest.raises(ValueError, match="freeze cannot be computed together"):
        predict_box([both[0], Applied(EMPRINT, 75.0, 300.0, UPRIGHT)], LIVER)
    with pytest.raises(ValueError, match="start and stop together"):
        predict_box([both[0], replace(both[1], start_s=10.0)], LIVER)


def test_a_zone_held_at_a_temperature_grows_with_it() -> None:
    device, excised = load_applicator("uniblate"), load_tissue("liver_ex_vivo")
    assert device.heating is not None
    for row in (device.chart[0], device.chart[4]):
        shape = predict_shape(device, row.power_w, row.time_s, excised)
        assert abs(shape.short_mm - row.short_mm) < 2.0 * device.heating.held_out.short_mm
    widths = [predict_shape(device, c, 900.0, excised).short_mm for c in (83.0, 93.0, 103.0)]
    assert widths[0] + 1.0 < widths[1] < widths[2] - 1.0


def test_what_cannot_be_computed_is_refused() -> None:
    with pytest.raises(NoHeatModelError, match=r"Fat: its file has no \[freezing\]"):
        predict_shape(load_applicator("visica2_liver"), 1.0, 240.0, load_tissue("fat"))
    with pytest.raises(ChartRangeError, match="temperature 120 C, the chart covers 83 to 113 C"):
        predict_shape(load_applicator("uniblate"), 120.0, 900.0, LIVER)
    with pytest.raises(ChartRangeError, match="45 to 100 W"):
        predict_shape(EMPRINT, 120.0, 300.0, LIVER)
    with pytest.raises(NoHeatModelError, match=r"no \[heating\]"):
        predict_shape(load_applicator("neuwave_kidney"), 65.0, 300.0, LIVER)
    with pytest.raises(ValueError, match="no applicator"):
        predict_box([], LIVER)
    with pytest.raises(ConfigError, match="known: "):
        load_tissue("spleen")
