"""B-mode ultrasound computed from the patient's volume in the plane of the probe.

Each beam runs through the (breathing) tissue: what scatters makes speckle, where the acoustic impedance jumps it
reflects, and both use up the beam, so that bone and gas throw shadows by themselves. Impedance is taken as proportional
to density, and density follows from HU (1 + HU/1000, the usual linear approximation); see Shams, Hartley and Navab,
"Real-time simulation of medical ultrasound from CT images", MICCAI 2008, for the idea. Speckle is a fixed random field
of the tissue, so it moves with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from drivers.room.breathing import DIRECTION
from drivers.room.geometry import RoomError, RoomSetup
from drivers.room.operator import FACE_COLUMN, FACE_ROW, Script
from drivers.room.patient import PatientModel
from nav.geometry.kernels import KernelSpec

__all__ = ["KERNELS", "SIZE", "UltrasoundSimulator"]

F32 = NDArray[np.float32]

#: Columns and rows of the image.
SIZE = 512

#: Radius of the curved array and half of the opening angle.
ARRAY_RADIUS_MM, HALF_ANGLE_RAD = 50.0, 0.42

_BEAMS, _SAMPLES = 176, 448
_SPECKLE, _SPECKLE_PITCH_MM = 80, 0.42

#: Gel fills up to this much between the array and the skin, mm.
_GEL_MM = 22.0


@njit(nogil=True, cache=True)
def trace_beams(
    hu: Any,
    index_from_ras: Any,
    weight: Any,
    weight_from_ras: Any,
    motion: Any,
    speckle: Any,
    speckle_pitch: float,
    ras_from_probe: Any,
    apex: Any,
    lateral: Any,
    axial: Any,
    radius: float,
    half_angle: float,
    depth: float,
    gel: float,
    needle: Any,
    real: Any,
    imag: Any,
    edge: Any,
) -> None:
    """Follow every beam and write what comes back from each depth.

    Parameters
    ----------
    hu : (k, j, i) int16
    index_from_ras : (4, 4) float64
    weight : (k, j, i) float32
        Breathing weight, with ``weight_from_ras`` (4, 4).
    motion : (3,) float64
        Present displacement (mm) of tissue of weight 1.
    speckle : (n, n, n, 2) int8
        Random field (two quadratures, 40 per standard deviation), repeated every ``n * speckle_pitch`` mm.
    ras_from_probe : (4, 4) float64
    apex, lateral, axial : (3,) float64
        In Probe: centre of the array's curvature, unit vectors along the array and along the middle beam.
    radius, half_angle, depth, gel : float
        mm, rad, mm; gel fills up to ``gel`` mm in front of the skin.
    needle : (2, 3) float64
        Tip and a point far up the shaft, RAS mm; NaN when there is none.
    real, imag, edge : (beams, samples) float32, written
        Scattered field (two quadratures) and specular echo.
    """
    beams, samples = real.shape
    nk, nj, ni = hu.shape
    wk, wj, wi = weight.shape
    n = speckle.shape[0]
    step = depth / max(samples, 1)
    moving = motion[0] != 0.0 or motion[1] != 0.0 or motion[2] != 0.0
    has_needle = not np.isnan(needle[0, 0])
    nx, ny, nz = needle[1, 0] - needle[0, 0], needle[1, 1] - needle[0, 1], needle[1, 2] - needle[0, 2]
    needle_length2 = nx * nx + ny * ny + nz * nz + 1e-9
    per_pitch = 1.0 / speckle_pitch
    # Across the image plane (elevation) the beam is some three times as wide as within it.
    m = ras_from_probe
    cx = lateral[1] * axial[2] - lateral[2] * axial[1]
    cy = lateral[2] * axial[0] - lateral[0] * axial[2]
    cz = lateral[0] * axial[1] - lateral[1] * axial[0]
    lx = m[0, 0] * cx + m[0, 1] * cy + m[0, 2] * cz
    ly = m[1, 0] * cx + m[1, 1] * cy + m[1, 2] * cz
    lz = m[2, 0] * cx + m[2, 1] * cy + m[2, 2] * cz
    for b in range(beams):
        angle = half_angle * (2.0 * b / max(beams - 1, 1) - 1.0)
        s, c = np.sin(angle), np.cos(angle)
        # Beam in RAS: origin on the array, direction.
        px = s * lateral[0] + c * axial[0]
        py = s * lateral[1] + c * axial[1]
        pz = s * lateral[2] + c * axial[2]
        ox, oy, oz = apex[0] + radius * px, apex[1] + radius * py, apex[2] + radius * pz
        dx = m[0, 0] * px + m[0, 1] * py + m[0, 2] * pz
        dy = m[1, 0] * px + m[1, 1] * py + m[1, 2] * pz
        dz = m[2, 0] * px + m[2, 1] * py + m[2, 2] * pz
        rx = m[0, 0] * ox + m[0, 1] * oy + m[0, 2] * oz + m[0, 3]
        ry = m[1, 0] * ox + m[1, 1] * oy + m[1, 2] * oz + m[1, 3]
        rz = m[2, 0] * ox + m[2, 1] * oy + m[2, 2] * oz + m[2, 3]
        energy = 1.0
        dry = True
        before = -1.0e9
        ux, uy, uz = 0.0, 0.0, 0.0
        for q in range(samples):
            r = (q + 0.5) * step
            x, y, z = rx + r * dx, ry + r * dy, rz + r * dz
            echo_needle = 0.0
            if has_needle:
                ax, ay, az = x - needle[0, 0], y - needle[0, 1], z - needle[0, 2]
                t = (ax * nx + ay * ny + az * nz) / needle_length2
                if t >= 0.0:
                    ax, ay, az = ax - t * nx, ay - t * ny, az - t * nz
                    across = ax * lx + ay * ly + az * lz
                    away = (ax * ax + ay * ay + az * az - across * across) / 0.6 + across * across / 6.0
                    if away < 6.0:
                        echo_needle = np.exp(-away)
            if moving:
                if q % 8 == 0:
                    # Where this tissue is at exhale; the weight varies slowly, so every eighth sample will do.
                    ex, ey, ez = x - ux, y - uy, z - uz
                    for _ in range(2):
                        fi = weight_from_ras[0, 0] * ex + weight_from_ras[0, 1] * ey + weight_from_ras[0, 2] * ez
                        fj = weight_from_ras[1, 0] * ex + weight_from_ras[1, 1] * ey + weight_from_ras[1, 2] * ez
                        fk = weight_from_ras[2, 0] * ex + weight_from_ras[2, 1] * ey + weight_from_ras[2, 2] * ez
                        fi = min(max(fi + weight_from_ras[0, 3], 0.0), wi - 1.0)
                        fj = min(max(fj + weight_from_ras[1, 3], 0.0), wj - 1.0)
                        fk = min(max(fk + weight_from_ras[2, 3], 0.0), wk - 1.0)
                        i0, j0, k0 = int(fi), int(fj), int(fk)
                        i1, j1, k1 = min(i0 + 1, wi - 1), min(j0 + 1, wj - 1), min(k0 + 1, wk - 1)
                        gi, gj, gk = fi - i0, fj - j0, fk - k0
                        low = (weight[k0, j0, i0] * (1 - gi) + weight[k0, j0, i1] * gi) * (1 - gj) + (
                            weight[k0, j1, i0] * (1 - gi) + weight[k0, j1, i1] * gi
                        ) * gj
                        high = (weight[k1, j0, i0] * (1 - gi) + weight[k1, j0, i1] * gi) * (1 - gj) + (
                            weight[k1, j1, i0] * (1 - gi) + weight[k1, j1, i1] * gi
                        ) * gj
                        w = low * (1 - gk) + high * gk
                        ux, uy, uz = w * motion[0], w * motion[1], w * motion[2]
                        ex, ey, ez = x - ux, y - uy, z - uz
                x, y, z = x - ux, y - uy, z - uz
            fi = index_from_ras[0, 0] * x + index_from_ras[0, 1] * y + index_from_ras[0, 2] * z + index_from_ras[0, 3]
            fj = index_from_ras[1, 0] * x + index_from_ras[1, 1] * y + index_from_ras[1, 2] * z + index_from_ras[1, 3]
            fk = index_from_ras[2, 0] * x + index_from_ras[2, 1] * y + index_from_ras[2, 2] * z + index_from_ras[2, 3]
            value = -1000.0
            if 0.0 <= fi < ni - 1 and 0.0 <= fj < nj - 1 and 0.0 <= fk < nk - 1:
                i0, j0, k0 = int(fi), int(fj), int(fk)
                gi, gj, gk = fi - i0, fj - j0, fk - k0
                low = (hu[k0, j0, i0] * (1 - gi) + hu[k0, j0, i0 + 1] * gi) * (1 - gj) + (
                    hu[k0, j0 + 1, i0] * (1 - gi) + hu[k0, j0 + 1, i0 + 1] * gi
                ) * gj
                high = (hu[k0 + 1, j0, i0] * (1 - gi) + hu[k0 + 1, j0, i0 + 1] * gi) * (1 - gj) + (
                    hu[k0 + 1, j0 + 1, i0] * (1 - gi) + hu[k0 + 1, j0 + 1, i0 + 1] * gi
                ) * gj
                value = low * (1 - gk) + high * gk
            if dry and value < -300.0 and r < gel:
                value = 5.0
            elif value > -300.0:
                dry = False
            if before < -1.0e8:
                before = value
            # Reflection at a jump of impedance (density, from HU): intensity ((Z2 - Z1) / (Z2 + Z1))².
            z1, z2 = 1.02 + 0.001 * max(before, -990.0), 1.02 + 0.001 * max(value, -990.0)
            jump = (z2 - z1) / (z2 + z1)
            before = value
            # Backscatter of tissue by HU: fat bright, blood and fluid dark, liver between, bone strong, gas none.
            if value < -300.0:
                scatter, loss = 0.02, 0.9
            elif value < -30.0:
                scatter, loss = 0.55, 0.0075
            elif value < 25.0:
                scatter, loss = 0.04 + 0.4 * max(0.0, (-value - 5.0) / 25.0), 0.003
            elif value < 90.0:
                scatter, loss = 0.16 + 0.001 * (value - 25.0), 0.0065
            elif value < 145.0:
                scatter, loss = 0.46, 0.0065
            elif value < 200.0:
                scatter, loss = 0.46 - 0.43 * min(1.0, (value - 145.0) / 14.0), 0.003
            else:
                # Cortical bone takes some 5 dB per mm on the way there and back again.
                scatter, loss = 0.3, 0.01 + 1.1 * min(max(value - 220.0, 0.0) / 150.0, 1.0)
            amplitude = energy * scatter * 0.025
            ia = (int(x * per_pitch + 65536.0)) % n
            ja = (int(y * per_pitch + 65536.0)) % n
            ka = (int(z * per_pitch + 65536.0)) % n
            real[b, q] = amplitude * speckle[ka, ja, ia, 0]
            imag[b, q] = amplitude * speckle[ka, ja, ia, 1]
            edge[b, q] = energy * (abs(jump) * 9.0 + 2.2 * echo_needle)
            half = 0.5 * loss * step
            energy *= (1.0 - min(0.97, 4.0 * jump * jump)) * max(1.0 - half, 0.0) / (1.0 + half)
            energy *= 1.0 - 0.05 * echo_needle
            if energy < 2e-4:
                # Nothing comes back from here on: the shadow.
                for rest in range(q + 1, samples):
                    real[b, rest] = 0.0
                    imag[b, rest] = 0.0
                    edge[b, rest] = 0.0
                break


@njit(nogil=True, cache=True)
def envelope(real: Any, imag: Any, edge: Any, gain: Any, out: Any) -> None:
    """Point spread (three samples along, five beams across), envelope, gain by depth, log compression to 0..255.

    ``real``, ``imag``, ``edge``, ``out`` are (beams, samples) float32, ``gain`` (samples,) float32; ``out`` is written.
    """
    beams, samples = real.shape
    for b in range(beams):
        b0, b1, b3, b4 = max(b - 2, 0), max(b - 1, 0), min(b + 1, beams - 1), min(b + 2, beams - 1)
        for q in range(samples):
            q0, q2 = max(q - 1, 0), min(q + 1, samples - 1)
            re = (
                0.45 * (0.12 * real[b0, q] + 0.24 * real[b1, q] + 0.28 * real[b, q] + 0.24 * real[b3, q]
                        + 0.12 * real[b4, q])
                - 0.27 * (0.3 * real[b1, q0] + 0.4 * real[b, q0] + 0.3 * real[b3, q0])
                - 0.27 * (0.3 * real[b1, q2] + 0.4 * real[b, q2] + 0.3 * real[b3, q2])
            )  # fmt: skip
            im = (
                0.45 * (0.12 * imag[b0, q] + 0.24 * imag[b1, q] + 0.28 * imag[b, q] + 0.24 * imag[b3, q]
                        + 0.12 * imag[b4, q])
                + 0.27 * (0.3 * imag[b1, q0] + 0.4 * imag[b, q0] + 0.3 * imag[b3, q0])
                + 0.27 * (0.3 * imag[b1, q2] + 0.4 * imag[b, q2] + 0.3 * imag[b3, q2])
            )  # fmt: skip
            specular = 0.5 * edge[b, q] + 0.2 * (edge[b1, q] + edge[b3, q]) + 0.15 * (edge[b, q0] + edge[b, q2])
            strength = np.sqrt(re * re + im * im) * 2.4 + specular
            # Time gain makes up for the attenuation of soft tissue on the way there and back.
            level = strength * gain[q]
            out[b, q] = min(255.0, max(0.0, 255.0 + 43.0 * np.log(level + 1e-9)))


@njit(nogil=True, cache=True)
def scan_convert(polar: Any, pixel: Any, beam: Any, sample: Any, out: Any) -> None:
    """Fill the fan of the image from the beams, bilinear.

    Parameters
    ----------
    polar : (beams, samples) float32
    pixel : (n,) int32
        Flat index of each pixel of the fan.
    beam, sample : (n,) float32
        Where it lies among the beams.
    out : (rows * columns,) uint8, written at ``pixel`` only
    """
    beams, samples = polar.shape
    for n in range(pixel.shape[0]):
        b0, q0 = min(int(beam[n]), beams - 1), min(int(sample[n]), samples - 1)
        b1, q1 = min(b0 + 1, beams - 1), min(q0 + 1, samples - 1)
        gb, gq = beam[n] - b0, sample[n] - q0
        low = polar[b0, q0] * (1 - gq) + polar[b0, q1] * gq
        high = polar[b1, q0] * (1 - gq) + polar[b1, q1] * gq
        out[pixel[n]] = np.uint8(low * (1 - gb) + high * gb)


KERNELS = (
    KernelSpec(
        "ultrasound beams",
        trace_beams,
        (
            "Array(int16, 3, 'C', readonly=True), Array(float64, 2, 'C'), Array(float32, 3, 'C'), "
            "Array(float64, 2, 'C'), Array(float64, 1, 'C'), Array(int8, 4, 'C'), float64, Array(float64, 2, 'C'), "
            "Array(float64, 1, 'C'), Array(float64, 1, 'C'), Array(float64, 1, 'C'), float64, float64, float64, "
            "float64, Array(float64, 2, 'C'), Array(float32, 2, 'C'), Array(float32, 2, 'C'), Array(float32, 2, 'C')",
        ),
    ),
    KernelSpec(
        "ultrasound envelope",
        envelope,
        (
            "Array(float32, 2, 'C'), Array(float32, 2, 'C'), Array(float32, 2, 'C'), Array(float32, 1, 'C'), "
            "Array(float32, 2, 'C')",
        ),
    ),
    KernelSpec(
        "ultrasound scan conversion",
        scan_convert,
        (
            "Array(float32, 2, 'C'), Array(int32, 1, 'C'), Array(float32, 1, 'C'), Array(float32, 1, 'C'), "
            "Array(uint8, 1, 'C')",
        ),
    ),
)


class UltrasoundSimulator:
    """Draws the probe's image at any time of a script."""

    def __init__(self, patient: PatientModel, setup: RoomSetup, beams: int = _BEAMS, samples: int = _SAMPLES) -> None:
        self.setup = setup
        self.beams, self.samples = beams, samples
        self._field = patient.breathing(setup.simulation.breathing_mm)
        # In memory: the beams of every frame cross these pages anyway.
        hu = np.array(patient.clean.array, dtype=np.int16, order="C")
        hu.setflags(write=False)
        self._hu = hu
        self._index_from_ras = np.ascontiguousarray(patient.clean.index_from_ras)
        self._weight = np.ascontiguousarray(self._field.weight)
        self._weight_from_ras = np.ascontiguousarray(np.linalg.inv(self._field.ras_from_index))
        rng = np.random.default_rng([setup.simulation.patient_seed, 0x05])
        field = rng.standard_normal((_SPECKLE, _SPECKLE, _SPECKLE, 2), dtype=np.float32)
        self._speckle = np.clip(np.rint(field * 40.0), -127, 127).astype(np.int8)
        self._real = np.zeros((beams, samples), dtype=np.float32)
        self._imag = np.zeros_like(self._real)
        self._edge = np.zeros_like(self._real)
        self._polar = np.zeros_like(self._real)
        m = setup.probe_from_image
        columns, rows = m[:3, 0], m[:3, 1]
        self._lateral = columns / np.linalg.norm(columns)
        self._axial = rows / np.linalg.norm(rows)
        face = m[:3, :3] @ np.array([FACE_COLUMN, FACE_ROW, 0.0]) + m[:3, 3]
        self._apex = face - ARRAY_RADIUS_MM * self._axial
        self._pixel, self._beam, self._sample = self._fan(float(np.linalg.norm(columns)), float(np.linalg.norm(rows)))
        per_sample = setup.simulation.ultrasound_depth_mm / samples
        self._gain = (0.38 * np.exp(0.0060 * per_sample * np.arange(samples))).astype(np.float32)

    def _fan(self, mm_column: float, mm_row: float) -> tuple[NDArray[np.int32], F32, F32]:
        """The pixels inside the fan, and where each lies among the beams."""
        row, column = np.mgrid[0:SIZE, 0:SIZE]
        x = (column - FACE_COLUMN) * mm_column
        y = (row - FACE_ROW) * mm_row + ARRAY_RADIUS_MM
        angle, radius = np.arctan2(x, y), np.hypot(x, y) - ARRAY_RADIUS_MM
        beam = (angle / HALF_ANGLE_RAD + 1.0) * 0.5 * (self.beams - 1)
        sample = radius / self.setup.simulation.ultrasound_depth_mm * self.samples - 0.5
        inside = (beam >= 0) & (beam <= self.beams - 1) & (sample >= 0) & (sample <= self.samples - 1)
        return (
            np.flatnonzero(inside).astype(np.int32),
            beam[inside].astype(np.float32),
            sample[inside].astype(np.float32),
        )

    def image(self, script: Script, script_s: float, frame: int = 0) -> NDArray[np.uint8]:
        """(512, 512) uint8: the B-mode image at a script time, s. ``frame`` is not used: tissue makes the speckle."""
        del frame
        t = np.array([script_s])
        pose = np.ascontiguousarray(script.probe(t)[0])
        breath = float(script.breath(t)[0])
        tip = script.needle_tip(t)[0]
        inserted = float(script.depth(t)[0]) > 0.5
        shaft = np.stack([tip[:3, 3], tip[:3, 3] - 150.0 * tip[:3, 2]]) if inserted else np.full((2, 3), np.nan)
        return self.picture(pose, breath, shaft)

    def picture(
        self, ras_from_probe: NDArray[np.float64], breath: float, needle: NDArray[np.float64] | None = None
    ) -> NDArray[np.uint8]:
        """(512, 512) uint8 for a probe pose (4, 4), a depth of breath (0..1) and a needle (tip, shaft point) RAS mm."""
        if not np.isfinite(ras_from_probe).all() or not 0.0 <= breath <= 1.0:
            raise RoomError(f"ultrasound: probe pose {ras_from_probe.tolist()} or breath {breath} is not usable")
        motion = breath * self._field.amplitude_mm * DIRECTION
        line = np.full((2, 3), np.nan) if needle is None else np.ascontiguousarray(needle)
        trace_beams(
            self._hu, self._index_from_ras, self._weight, self._weight_from_ras, motion, self._speckle,
            _SPECKLE_PITCH_MM, ras_from_probe, self._apex, self._lateral, self._axial, ARRAY_RADIUS_MM, HALF_ANGLE_RAD,
            self.setup.simulation.ultrasound_depth_mm, _GEL_MM, line, self._real, self._imag, self._edge,
        )  # fmt: skip
        envelope(self._real, self._imag, self._edge, self._gain, self._polar)
        out = np.zeros(SIZE * SIZE, dtype=np.uint8)
        scan_convert(self._polar, self._pixel, self._beam, self._sample, out)
        return out.reshape(SIZE, SIZE)
