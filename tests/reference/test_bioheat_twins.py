"""The heat kernels against plain twins, cell by cell."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from nav.ablation.axisymmetric_kernels import march
from nav.ablation.bioheat_kernels import lay_source, step
from nav.ablation.thermal import StateCurve, load_tissue

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]

CURVES = {
    "heated": StateCurve.heated(load_tissue("liver")),
    "frozen": StateCurve.frozen(37.0, (-8.0, -1.0), 60.0, 0.5, 4.0),
}


def readonly(array: object, kind: type = np.float64) -> NDArray[np.generic]:
    out: NDArray[np.generic] = np.ascontiguousarray(array, kind)
    out.setflags(write=False)
    return out


def step_twin(
    h: F32, heat: F32, loss: F32, gain: F32, conduct: F32, box: list[int], curve: StateCurve, power: float, blood: float
) -> F64:
    """Enthalpy after one step: a sum over the 18 neighbours, each pair with the harmonic mean of its conductivities."""
    u, t = curve.potential(h), curve.celsius(h) - curve.reference_c
    out = h.astype(np.float64)
    for k, j, i in itertools.product(*(range(box[2 * a], box[2 * a + 1]) for a in range(3))):
        flow = 0.0
        for d in itertools.product((-1, 0, 1), repeat=3):
            apart = sum(map(abs, d))
            if apart in (1, 2):
                there = (k + d[0], j + d[1], i + d[2])
                a, b = float(conduct[k, j, i]), float(conduct[there])
                flow += (2.0 if apart == 1 else 1.0) / 6.0 * 2.0 * a * b / (a + b) * (u[there] - u[k, j, i])
        out[k, j, i] += gain[k, j, i] * flow + power * heat[k, j, i] - loss[k, j, i] * (t[k, j, i] - blood)
    return out


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
@pytest.mark.parametrize("uniform", [True, False])
def test_a_step_in_the_box(curve: StateCurve, uniform: bool) -> None:
    rng = np.random.default_rng(3)
    shape = (5, 6, 9)
    h = rng.uniform(-120.0, 500.0, shape).astype(np.float32)
    h[2, 3, 4] = np.nan
    heat, gain = rng.uniform(0, 2, shape).astype(np.float32), rng.uniform(0, 0.2, shape).astype(np.float32)
    loss = rng.uniform(0, 0.02, shape).astype(np.float32)
    conduct = np.ones(shape, np.float32) if uniform else rng.uniform(0.3, 3.0, shape).astype(np.float32)
    box = [1, 4, 2, 5, 1, 7]
    death = (math.log(1e3), 3000.0, 310.15, 10.0, float(curve.enthalpy(curve.reference_c + 10.0)), 0.9, 5.0)
    omega = rng.uniform(0.0, 1.0, shape).astype(np.float32)
    coldest, hottest = np.zeros(shape, np.float32), np.zeros(5, np.float32)
    expected = step_twin(h, heat, loss, gain, conduct, box, curve, 0.7, -2.0)

    u, u_new = curve.potential(h).astype(np.float32), np.zeros(shape, np.float32)
    new, new_omega, new_loss = h.copy(), omega.copy(), loss.copy()
    step(
        new, u, u_new, readonly(heat, np.float32), new_loss, readonly(gain, np.float32),
        readonly(conduct if not uniform else np.ones((1, 1, 1)), np.float32), uniform, new_omega, coldest,
        readonly(box, np.int64), readonly(curve.constants, np.float32), np.float32(0.7), np.float32(-2.0),
        readonly(death, np.float32), True, hottest,
    )  # fmt: skip
    inside = (slice(1, 4), slice(2, 5), slice(1, 7))
    np.testing.assert_allclose(new, expected, rtol=2e-5, atol=2e-3)
    np.testing.assert_allclose(u_new[inside], curve.potential(new[inside]), rtol=1e-5, atol=2e-3)
    t = curve.celsius(new) - curve.reference_c
    np.testing.assert_allclose(coldest[inside], np.minimum(t, 0.0)[inside], rtol=1e-5, atol=2e-3)
    hot = np.zeros(shape, bool)
    hot[inside] = t[inside] > 10.0
    rate = np.where(hot, 1e3 * np.exp(-3000.0 / (np.where(hot, t, 0.0) + 310.15)), 0.0)
    np.testing.assert_allclose(new_omega, omega + rate, rtol=1e-4)
    cold = np.zeros(shape, bool)
    cold[inside] = t[inside] < 5.0
    dead = hot & (new_omega >= 0.9)
    assert dead.any()
    assert cold.any()
    np.testing.assert_array_equal(new_loss, np.where(dead | cold, np.float32(0.0), loss))
    for k in range(1, 4):
        plane = t[k][hot[k]]
        assert hottest[k] == pytest.approx(plane.max(), rel=1e-5) if len(plane) else hottest[k] < -1e29


def test_a_step_is_the_same_on_one_thread_and_on_two() -> None:
    numba = pytest.importorskip("numba")
    rng = np.random.default_rng(5)
    curve, shape = CURVES["heated"], (7, 6, 9)
    results = []
    h0 = rng.uniform(0.0, 300.0, shape).astype(np.float32)
    for threads in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
        before = numba.get_num_threads()
        numba.set_num_threads(threads)
        try:
            h, omega = h0.copy(), np.zeros(shape, np.float32)
            u, u_new = curve.potential(h).astype(np.float32), np.zeros(shape, np.float32)
            full = readonly(np.full(shape, 0.1), np.float32)
            step(
                h, u, u_new, full, np.full(shape, 0.01, np.float32), full, readonly(np.ones((1, 1, 1)), np.float32),
                True, omega, np.zeros((1, 1, 1), np.float32), readonly([1, 6, 1, 5, 1, 8], np.int64),
                readonly(curve.constants, np.float32), np.float32(1), np.float32(0),
                readonly((7.0, 3000.0, 310.15, 6.0, 6.0, 1.0, -1e30), np.float32), False, np.zeros(7, np.float32),
            )  # fmt: skip
        finally:
            numba.set_num_threads(before)
        results.append((h.tobytes(), omega.tobytes(), u_new.tobytes()))
    assert results[0] == results[1]


@pytest.mark.parametrize("insulated", [True, False])
@pytest.mark.parametrize("shape", [(4, 5), (1, 1)])
def test_steps_around_a_needle(shape: tuple[int, int], insulated: bool) -> None:
    rng = np.random.default_rng(8)
    curve, pitch, dt, alpha, steps = CURVES["heated"], 1.5, 0.4, 0.14, 6
    h = rng.uniform(-5.0, 90.0, shape)
    heating, free = rng.uniform(0.0, 8.0, shape), rng.uniform(size=shape) > 0.2
    perfusion = np.where(free, 0.02, 0.0)
    death = (math.log(1e3), 3000.0, 43.0, 0.8, 8.0)
    limit_c = 100.0

    expected, omega, w, power = h.copy(), np.zeros(shape), perfusion.copy(), 1.0
    coldest = np.full(shape, 37.0)
    sums = np.zeros(4)
    areas = np.arange(shape[1] + 1) * 2.0 * math.pi * pitch * pitch
    rings = (2.0 * np.arange(shape[1]) + 1.0) * math.pi * pitch**3
    for n in range(steps):
        u = curve.potential(expected)
        edge = float(curve.potential(0.0))
        change = np.zeros(shape)
        on = power if n < 4 else 0.0
        for k, i in itertools.product(range(shape[0]), range(shape[1])):
            flow = 0.0
            for dk, di, area in (
                (-1, 0, rings[i] / pitch), (1, 0, rings[i] / pitch), (0, -1, areas[i]), (0, 1, areas[i + 1]),
            ):  # fmt: skip
                kk, ii = k + dk, i + di
                if ii < 0:
                    continue
                if 0 <= kk < shape[0] and ii < shape[1]:
                    flow += area / pitch * (u[kk, ii] - u[k, i])
                elif not insulated:
                    flow += area / pitch * (edge - u[k, i])
                    sums[2] += dt * alpha * area / pitch * (u[k, i] - edge)
            if free[k, i]:
                t = float(curve.celsius(expected[k, i]))
                change[k, i] = dt * (alpha * flow / rings[i] + on * heating[k, i] - w[k, i] * (t - 36.0))
                sums[0] += dt * on * heating[k, i] * rings[i]
                sums[1] += dt * w[k, i] * (t - 36.0) * rings[i]
            else:
                sums[3] -= dt * alpha * flow
        expected += change
        t_all = curve.celsius(expected)
        coldest = np.minimum(coldest, t_all)
        omega += np.where(t_all > 43.0, dt * 1e3 * np.exp(-3000.0 / (t_all + 273.15)), 0.0)
        w = np.where((omega >= 0.8) | (t_all < 8.0), 0.0, w)
        power = power * math.exp(-dt / 4.0) if t_all.max() > limit_c else min(1.0, power * math.exp(dt / 20.0))

    found, found_omega, found_cold = h.copy(), np.zeros(shape), np.full(shape, 37.0)
    snapshots, balance = np.zeros((2, *shape)), np.zeros(4)
    last = march(
        found, readonly(heating), readonly(free, np.bool_), perfusion, readonly(curve.constants), pitch, alpha, dt,
        steps, 4, 37.0, 36.0, readonly(death), limit_c, insulated, found_omega, found_cold, snapshots,
        readonly([3, 6], np.int64), np.zeros(shape), balance,
    )  # fmt: skip
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(found_omega, omega, rtol=1e-9)
    np.testing.assert_allclose(found_cold, coldest, rtol=1e-12)
    np.testing.assert_array_equal(snapshots[1], found_omega)
    assert (snapshots[0] <= snapshots[1]).all()
    np.testing.assert_allclose(balance, sums, rtol=1e-9, atol=1e-9)
    assert last == pytest.approx(power)


def test_a_source_on_cells() -> None:
    rng = np.random.default_rng(9)
    table = rng.uniform(size=(12, 6))
    axis = np.array([1.0, -2.0, 2.0]) / 3.0
    tip, origin, pitch = np.array([0.4, -0.3, 0.8]), np.array([-2.0, -3.0, -2.5]), 1.1
    out = np.empty((4, 5, 3))
    lay_source(readonly(table), -5.0, 0.9, readonly(tip), readonly(axis), readonly(origin), pitch, 2, out)
    from scipy.interpolate import RegularGridInterpolator

    lookup = RegularGridInterpolator(
        (-5.0 + 0.9 * np.arange(12), 0.9 * (np.arange(6) + 0.5)), table, bounds_error=False, fill_value=0.0
    )
    for k, j, i in itertools.product(range(4), range(5), range(3)):
        total = 0.0
        for c, b, a in itertools.product((-0.25, 0.25), repeat=3):
            p = origin + pitch * np.array([i + a, j + b, k + c]) - tip
            along = float(p @ axis)
            r = math.sqrt(max(float(p @ p) - along**2, 0.0))
            total += float(lookup((along, max(r, 0.45)))[()])
        assert out[k, j, i] == pytest.approx(total / 8.0, rel=1e-9), (k, j, i)
