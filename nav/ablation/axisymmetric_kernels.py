"""Heat around one straight needle: a cylinder of cells (z, r), explicit finite volumes, one thread.

Balances are exact by construction: what leaves a cell through a face enters its neighbour.
"""

from __future__ import annotations

import math

from numba import njit

from nav.geometry.kernels import KernelSpec

__all__ = ["KERNELS", "march"]


@njit(nogil=True, cache=True)
def _sum(h, c, start, slope):  # type: ignore[no-untyped-def]
    """Straight pieces over enthalpy, K: ``c[start]`` and the four slopes from ``c[slope]`` (`StateCurve.constants`)."""
    return (
        c[start]
        + c[slope] * min(h, c[2])
        + c[slope + 1] * min(max(h - c[2], 0.0), c[5])
        + c[slope + 2] * min(max(h - c[3], 0.0), c[6])
        + c[slope + 3] * max(h - c[4], 0.0)
    )


@njit(nogil=True, cache=True)
def _t_of(h, c):  # type: ignore[no-untyped-def]
    """Temperature above the reference, K."""
    return _sum(h, c, 0, 7)


@njit(nogil=True, cache=True)
def _u_of(h, c):  # type: ignore[no-untyped-def]
    """Conduction potential, K."""
    return _sum(h, c, 1, 11)


@njit(nogil=True, cache=True, error_model="numpy")
def march(  # type: ignore[no-untyped-def]
    h,
    heating,
    free,
    perfusion,
    curve,
    spacing,
    diffusivity,
    dt,
    steps,
    switch_off,
    reference_c,
    blood_c,
    death,
    limit_c,
    insulated,
    omega,
    coldest,
    snapshots,
    snap_steps,
    u,
    balance,
):
    """March ``steps`` explicit steps of ``dt`` s; everything is changed in place.

    Parameters
    ----------
    h : (nz, nr) float64
        Reduced enthalpy, K; column 0 touches the axis. Beyond the other edges ``h`` stays 0, unless ``insulated``.
    heating : (nz, nr) float64
        Source over heat capacity, K/s, at full power.
    free : (nz, nr) bool
        False where the temperature is held.
    perfusion : (nz, nr) float64
        1/s; set to 0 where it stops.
    curve : (15,) float64
        `StateCurve.constants`.
    spacing : float
        mm.
    diffusivity : float
        mm²/s at the reference.
    switch_off : int
        Step from which there is no source.
    death : (5,) float64
        ln of the frequency (1/s), energy over gas constant (K), and the temperature above which it counts, C; damage
        at which, and temperature (C) below which perfusion stops.
    limit_c : float
        Above this hottest temperature the generator takes power back; infinity for none.
    insulated : bool
        No flow through the three edges.
    omega, coldest : (nz, nr) float64
        Arrhenius integral; lowest temperature seen, C.
    snapshots : (m, nz, nr) float64; snap_steps : (m,) int64
        ``omega`` after so many steps.
    u : (nz, nr) float64
        Scratch.
    balance : (4,) float64
        Added up in K mm³: delivered by the source, taken by perfusion, left through the edges, given by what is held.
    """
    nz, nr = h.shape
    gain = diffusivity * dt / (spacing * spacing)
    power = 1.0
    snap = 0
    for k in range(nz):
        for i in range(nr):
            u[k, i] = _u_of(h[k, i], curve)
    edge = _u_of(0.0, curve)
    for step in range(steps):
        hottest = -math.inf
        on = power if step < switch_off else 0.0
        for k in range(nz):
            for i in range(nr):
                volume = (2 * i + 1) * math.pi * spacing**3
                here = u[k, i]
                outside = here if insulated else edge
                below = u[k - 1, i] if k > 0 else outside
                above = u[k + 1, i] if k < nz - 1 else outside
                outer = u[k, i + 1] if i < nr - 1 else outside
                inner = u[k, i - 1] if i > 0 else here
                share = 1.0 / (i + 0.5)
                flow = above + below - 2.0 * here + share * ((i + 1) * (outer - here) - i * (here - inner))
                if k == 0:
                    balance[2] += gain * (here - outside) * volume
                if k == nz - 1:
                    balance[2] += gain * (here - outside) * volume
                if i == nr - 1:
                    balance[2] += gain * share * (i + 1) * (here - outside) * volume
                t = reference_c + _t_of(h[k, i], curve)
                if not free[k, i]:
                    balance[3] -= gain * flow * volume
                    continue
                taken = dt * perfusion[k, i] * (t - blood_c)
                given = on * dt * heating[k, i]
                balance[0] += given * volume
                balance[1] += taken * volume
                h[k, i] += gain * flow + given - taken
        for k in range(nz):
            for i in range(nr):
                u[k, i] = _u_of(h[k, i], curve)
                t = reference_c + _t_of(h[k, i], curve)
                if t > hottest:
                    hottest = t
                if not t >= coldest[k, i]:  # NaN stays NaN
                    coldest[k, i] = t
                    if t < death[4]:
                        perfusion[k, i] = 0.0
                if t > death[2] and omega[k, i] < 50.0:
                    omega[k, i] += dt * math.exp(death[0] - death[1] / (t + 273.15))
                    if omega[k, i] >= death[3]:
                        perfusion[k, i] = 0.0
        # The generator falls back within seconds and comes back within tens of seconds.
        if hottest > limit_c:
            power *= math.exp(-dt / 4.0)
        elif power < 1.0:
            power = min(1.0, power * math.exp(dt / 20.0))
        while snap < len(snap_steps) and snap_steps[snap] <= step + 1:
            snapshots[snap] = omega
            snap += 1
    return power


_GRID = "float64[:, ::1]"
_READ = "Array(float64, 2, 'C', readonly=True)"

KERNELS: tuple[KernelSpec, ...] = (
    KernelSpec(
        "heat around a needle",
        march,
        (
            f"{_GRID}, {_READ}, Array(bool_, 2, 'C', readonly=True), {_GRID}, Array(float64, 1, 'C', readonly=True), "
            f"float64, float64, float64, int64, int64, float64, float64, "
            f"Array(float64, 1, 'C', readonly=True), float64, bool_, "
            f"{_GRID}, {_GRID}, float64[:, :, ::1], Array(int64, 1, 'C', readonly=True), {_GRID}, float64[::1]",
        ),
    ),
)
