"""Both heat solvers against exact solutions (k 0.52, rho 1079, c 3540, perfusion 0.0155 1/s unless said)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.special import erf, erfc, expi, k0

from nav.ablation.axisymmetric import heat_needle
from nav.ablation.bioheat import BoxGrid, BoxHeat, Burst, Cells, heat_box
from nav.ablation.sources import NeedleGrid, line_source
from nav.ablation.thermal import Material, StateCurve, load_tissue

Array = NDArray[np.float64]

K, RHO, C = 0.52, 1079.0, 3540.0
W = 0.0155 * 1050.0 * 3617.0
BETA = W / (RHO * C)
DELTA = 1e3 * math.sqrt(K / W)
ALPHA = 1e6 * K / (RHO * C)


def material(perfusion: float = BETA, curve: StateCurve | None = None) -> Material:
    return Material(curve or StateCurve.linear(), K, RHO * C, perfusion)


def box(n: int, pitch: float) -> tuple[BoxGrid, Array]:
    grid = BoxGrid((n, n, n), pitch, (-(n - 1) / 2 * pitch,) * 3)
    x = (np.arange(n) - (n - 1) / 2) * pitch
    return grid, np.sqrt(x[:, None, None] ** 2 + x[None, :, None] ** 2 + x[None, None, :] ** 2)


def rise(result: BoxHeat) -> Array:
    return result.celsius.astype(np.float64) - 37.0


@pytest.mark.parametrize(("perfusion", "seconds"), [(BETA, 60.0), (BETA, 600.0), (0.0, 150.0)])
def test_a_point_source_follows_its_exact_solution_from_four_cells_on(perfusion: float, seconds: float) -> None:
    grid, _ = box(61, 1.0)
    source = np.zeros(grid.shape)
    source[30, 30, 30] = 10.0
    found = rise(heat_box(grid, material(perfusion), [Burst(source, 0.0, 1e9)], [seconds]))
    for r in (4, 5, 8, 10):
        root = math.sqrt(perfusion / ALPHA) * r
        wave, time = r / (2.0 * math.sqrt(ALPHA * seconds)), math.sqrt(perfusion * seconds)
        exact = 10.0 / (8e-3 * math.pi * K * r) * (
            math.exp(-root) * erfc(wave - time) + math.exp(root) * erfc(wave + time)
        )  # fmt: skip
        assert found[30, 30, 30 + r] == pytest.approx(exact, rel=0.02), r
        if (perfusion, seconds, r) == (BETA, 600.0, 10):
            assert exact == pytest.approx(5.29095, abs=1e-4)


def test_a_uniform_sphere_follows_its_exact_solution() -> None:
    grid, _ = box(81, 0.5)
    fine = (np.arange(81 * 4) - 161.5) * 0.125
    inside = fine[:, None, None] ** 2 + fine[None, :, None] ** 2 + fine[None, None, :] ** 2 < 25.0
    share = inside.reshape(81, 4, 81, 4, 81, 4).mean(axis=(1, 3, 5))
    found = rise(heat_box(grid, material(), [Burst(1e-3 * share, 0.0, 1e9)], [400.0], takes_part_k=1e-3))
    exact = {0.0: 8.51479, 2.5: 7.47971, 5.0: 3.91311, 7.5: 1.12493, 10.0: 0.363814}
    for r, value in exact.items():
        assert found[40, 40, 40 + round(2 * r)] == pytest.approx(value, rel=0.02), r


def gaussian(r: float, seconds: float) -> float:
    """10 W with s = 4 mm."""
    q0 = 10.0 / (4e-3**3 * (2.0 * math.pi) ** 1.5)

    def rate(u: float) -> float:
        wide = 16.0 + 2.0 * ALPHA * u
        return float((16.0 / wide) ** 1.5) * math.exp(-(r**2) / (2.0 * wide) - BETA * u)

    return float(q0 / (RHO * C) * quad(rate, 0.0, seconds, limit=200)[0])


def test_error_falls_with_the_square_of_the_pitch() -> None:
    assert gaussian(0.0, 300.0) == pytest.approx(78.016, abs=1e-2)
    errors = []
    for pitch, n in ((2.0, 31), (1.0, 61)):
        grid, r = box(n, pitch)
        source = 10.0 / (4.0**3 * (2.0 * math.pi) ** 1.5) * np.exp(-(r**2) / 32.0)
        found = rise(heat_box(grid, material(), [Burst(source, 0.0, 1e9)], [60.0, 300.0], most_step_s=0.8 * pitch**2))
        middle = n // 2
        at = [found[middle, middle, middle + round(d / pitch)] for d in (0.0, 4.0, 10.0)]
        errors.append(np.array(at) - [gaussian(d, 300.0) for d in (0.0, 4.0, 10.0)])
    assert np.abs(errors[1] / [78.0, 54.3, 10.7]).max() < 0.01
    ratio = errors[0] / errors[1]
    assert ((ratio > 3.5) & (ratio < 4.5)).all(), ratio


def test_tissue_cools_as_it_should() -> None:
    grid, r = box(61, 1.0)
    source = 10.0 / (4.0**3 * (2.0 * math.pi) ** 1.5) * np.exp(-(r**2) / 32.0)
    found = rise(heat_box(grid, material(), [Burst(source, 0.0, 300.0)], [420.0], most_step_s=0.5))
    for d, value in ((0, 3.44613), (5, 2.79282), (10, 1.49788)):
        assert found[30, 30, 30 + d] == pytest.approx(value, rel=0.02), d


@pytest.mark.parametrize("cooled", [False, True])
def test_a_spherical_electrode_heats_as_it_should(cooled: bool) -> None:
    grid = NeedleGrid(-14.875, 0.25, 120, 60)
    r = np.hypot(grid.z_mm[:, None], grid.r_mm[None])
    r0, power = 1.5, 10.0
    source = np.where(r >= r0, power * r0 / (4.0 * math.pi * np.maximum(r, r0) ** 4), 0.0)
    c = power * r0 / (4e-3 * math.pi)
    if cooled:
        b = r0 * (15.0 - 37.0) + c / (2.0 * K * r0)
    else:
        b = power / (4e-3 * math.pi * K)
        c = b * r0 * K
    exact = np.where(r >= r0, b / np.maximum(r, r0) - c / (2.0 * K * np.maximum(r, r0) ** 2), 15.0 - 37.0)
    held = np.where(r > 12.0, 37.0 + exact, np.where((r < 2.0) & cooled, 37.0 + exact, np.nan))
    found = heat_needle(grid, material(0.0), source, [2000.0], held_c=held).celsius - 37.0
    far = (r > r0 + 4 * 0.25) & (r < 12.0)
    assert np.abs(found[far] / exact[far] - 1.0).max() < 0.02
    if cooled:
        at = r[far][np.argmax(found[far])]
        assert at == pytest.approx(c / (K * b), abs=0.3)
        assert found[far].max() == pytest.approx(116.765, rel=0.02)


def test_a_line_source_follows_its_exact_solution() -> None:
    grid = NeedleGrid(0.0, 0.5, 5, 60)
    source = np.zeros((5, 60))
    source[:, 0] = 1.0 / grid.volumes_mm3[0, 0] * 0.5
    found = heat_needle(grid, material(), source, [600.0], insulated=True).celsius[2] - 37.0
    for r in (2.25, 5.25, 10.25):
        exact = 1000.0 / (2.0 * math.pi * K) * k0(r / DELTA)
        assert np.interp(r, grid.r_mm, found) == pytest.approx(exact, rel=0.02), r


def test_a_warm_box_decays_at_its_rate() -> None:
    n, pitch = 31, 1.0
    grid, _ = box(n, pitch)
    length = (n - 1) * pitch
    mode = np.sin(math.pi * np.arange(n) / (n - 1))
    start = (37.0 + 10.0 * mode[:, None, None] * mode[None, :, None] * mode[None, None, :]).astype(np.float32)
    found = rise(heat_box(grid, material(), [], [60.0], cells=Cells(start_c=start), most_step_s=0.1))
    rate = ALPHA * math.pi**2 * 3.0 / length**2 + BETA
    assert found[15, 15, 15] == pytest.approx(10.0 * math.exp(-60.0 * rate), rel=0.005)
    assert found[15, 15, 7] == pytest.approx(found[15, 15, 15] * mode[7], rel=0.005)
    assert np.allclose(found, found.transpose(2, 1, 0), atol=1e-4)
    assert np.allclose(found, found[::-1, ::-1, ::-1], atol=1e-4)


def test_variable_conductivity_is_second_order() -> None:
    length, errors = 30.0, []
    for n, dt in ((16, 2.0), (31, 0.5)):
        pitch = length / (n - 1)
        grid = BoxGrid((n, n, n), pitch, (0.0, 0.0, 0.0))
        x = np.arange(n) * pitch
        s, c = np.sin(math.pi * x / length), np.cos(math.pi * x / length)
        shape = s[:, None, None] * s[None, :, None] * s[None, None, :]
        k = K * (1.0 + 0.3 * np.sin(2.0 * math.pi * x / length))
        slope = K * 0.6 * math.pi / length * np.cos(2.0 * math.pi * x / length)
        cross = s[:, None, None] * s[None, :, None] * (slope * math.pi / length * c)[None, None, :]
        spread = cross - 3.0 * (math.pi / length) ** 2 * k[None, None, :] * shape
        amplitude = 1e-9 * 40.0 * ((W - RHO * C / 100.0) * shape - 1e6 * spread)
        conduct = np.broadcast_to((k / K).astype(np.float32), grid.shape).copy()
        bursts = [
            Burst(amplitude * math.exp(-(step + 0.5) * dt / 100.0), step * dt, (step + 1) * dt)
            for step in range(round(40.0 / dt))
        ]
        start = (37.0 + 40.0 * shape).astype(np.float32)
        cells = Cells(conductivity=conduct, start_c=start)
        result = heat_box(grid, material(), bursts, [40.0], cells=cells, most_step_s=dt)
        assert result.step_s == pytest.approx(dt)
        errors.append(np.abs(rise(result) - 40.0 * math.exp(-0.4) * shape).max())
    assert math.log2(errors[0] / errors[1]) > 1.9, errors


ICE = {"latent_k": 250e6 / 3.6e6, "ice_capacity": 0.5, "ice_k": 4.0}


def freezing() -> Material:
    return Material(StateCurve.frozen(37.0, (-1.5, -0.5), **ICE), 0.5, 3.6e6)


def test_a_plane_freezes_as_it_should() -> None:
    grid = NeedleGrid(0.0, 0.5, 160, 1)
    held = np.full((160, 1), np.nan)
    held[0] = -100.0
    front, cold = 0.4329359, 2.0 / 1.8e6 * 1e6
    for seconds in (60.0, 300.0, 600.0):
        found = heat_needle(
            grid, freezing(), np.zeros((160, 1)), [seconds], held_c=held, insulated=True
        ).celsius[:, 0]  # fmt: skip
        exact = 2.0 * front * math.sqrt(cold * seconds)
        # Where the middle of the freezing band lies.
        assert np.interp(-1.0, found, grid.z_mm) == pytest.approx(exact, abs=0.5), seconds
    for z, value in ((2.0, -90.592), (5.0, -76.541), (10.0, -53.517), (20.0, -10.373), (30.0, 27.816)):
        assert np.interp(z, grid.z_mm, found) == pytest.approx(value, abs=1.0), z


@pytest.mark.parametrize(("watt", "radii"), [(1000.0, (18.762, 14.402, 11.028)), (2000.0, (25.996, 22.406, 19.325))])
def test_a_line_freezes_as_it_should(watt: float, radii: tuple[float, float, float]) -> None:
    grid = NeedleGrid(0.0, 0.5, 1, 140)
    source = np.zeros((1, 140))
    source[0, 0] = -watt * 1e-3 / (math.pi * 0.25)
    found = heat_needle(grid, freezing(), source, [600.0], insulated=True).celsius[0]
    for value, r in zip((-1.0, -20.0, -40.0), radii, strict=True):
        assert np.interp(value, found, grid.r_mm) == pytest.approx(r, abs=0.5), value
    # The reference itself: temperature at the front from the exact solution.
    front = radii[0] / (2.0 * math.sqrt(2.0 / 1.8e6 * 1e6 * 600.0))
    balance = watt / (4.0 * math.pi) * math.exp(-(front**2)) + 0.5 * 38.0 * math.exp(-8.0 * front**2) / expi(
        -8.0 * front**2
    )
    assert balance == pytest.approx(front**2 * 2.0 / 1.8e6 * 250e6, rel=2e-3)


def test_heat_is_conserved_with_all_physics() -> None:
    tissue = load_tissue("liver")
    needle = NeedleGrid(-40.0, 1.0, 81, 35)
    table = 60.0 * line_source(needle, 0.0, 13.0, 60.0)
    around = heat_needle(needle, Material.heated(tissue), table, [240.0, 300.0], off_s=240.0)
    delivered, perfused, left, given, stored = around.balance_k_mm3
    assert given == 0.0
    assert delivered == pytest.approx(60.0 * 240.0 * 1e9 / tissue.heat_per_volume, rel=5e-3)
    assert abs(delivered - perfused - left - stored) < 1e-6 * delivered
    assert around.celsius.max() > 100.0  # it boiled, and cools since
    assert around.damage[1].max() > 1.0

    grid, r = box(41, 1.5)
    source = 60.0 / (4.0**3 * (2.0 * math.pi) ** 1.5) * np.exp(-(r**2) / 32.0)
    result = heat_box(grid, Material.heated(tissue), [Burst(source, 0.0, 200.0)], [200.0, 240.0], ledger=True)
    balance = result.balance_k_mm3
    assert (result.damage[1] >= 1.0).sum() > 100
    # Far from the edges, so what neither blood took nor tissue holds is the error.
    assert abs(balance["left"]) < 0.005 * balance["delivered"]
    assert balance["perfused"] > 0.1 * balance["delivered"]


def test_the_box_and_the_cylinder_agree_with_all_physics() -> None:
    tissue = load_tissue("liver")
    material_hot = Material.heated(tissue)
    needle = NeedleGrid(-30.0, 1.0, 61, 30)
    table = 60.0 * line_source(needle, 0.0, 13.0, 60.0)
    around = heat_needle(needle, material_hot, table, [300.0])
    from nav.ablation.bioheat import needle_source

    grid = BoxGrid((56, 56, 60), 1.0, (-29.5, -27.5, -27.5))
    source = needle_source(grid, needle, table, np.zeros(3), np.array([1.0, 0.0, 0.0]))
    assert source.sum() == pytest.approx(60.0, rel=0.01)
    result = heat_box(grid, material_hot, [Burst(source, 0.0, 300.0)], [300.0])
    ml = float((result.damage[0] >= 1.0).sum()) / 1e3
    exact = float(((around.damage[0] >= 1.0) * needle.volumes_mm3).sum()) / 1e3
    assert ml == pytest.approx(exact, rel=0.03)


def test_stefan_numbers_are_those_of_the_closed_form() -> None:
    """The front's constant that the plane test uses solves Neumann's equation."""
    x = 0.4329359
    cold, warm = 2.0 / 1.8e6, 0.5 / 3.6e6
    ratio = cold / warm
    left = math.exp(-(x**2)) / erf(x) - 0.25 * math.sqrt(ratio) * 38.0 / 99.0 * math.exp(-(x**2) * ratio) / erfc(
        x * math.sqrt(ratio)
    )
    assert left == pytest.approx(x * 250e3 * math.sqrt(math.pi) / (1800.0 * 99.0), rel=1e-4)
