"""CT-fluoroscopy: low-dose axial slices, 4 mm thick, near the needle's tip, in the scanner's frame (RAS of the CT)."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

from drivers.room.breathing import DIRECTION
from drivers.room.geometry import RoomSetup
from drivers.room.operator import Script
from drivers.room.patient import PatientModel
from nav.geometry.kernels import KernelSpec

__all__ = ["KERNELS", "SIZE", "SLICE_MM", "FluoroSimulator"]

#: Columns and rows of a slice, and its thickness.
SIZE, SLICE_MM = 512, 4.0

_NEEDLE_RADIUS_MM, _METAL_HU = 0.8, 3000.0
_NOISE_TILE = 1024
_STREAK_REACH_MM = 45.0


@njit(nogil=True, cache=True)
def axial_slice(
    hu: Any,
    index_from_ras: Any,
    weight: Any,
    weight_from_ras: Any,
    motion: Any,
    ras_from_index: Any,
    thickness: float,
    noise: Any,
    row0: int,
    column0: int,
    out: Any,
) -> None:
    """One slice: the mean of three planes within its thickness, trilinear, through breathing tissue, with noise.

    Parameters
    ----------
    hu : (k, j, i) int16
    index_from_ras : (4, 4) float64
    weight : (k, j, i) float32
        Breathing weight, with ``weight_from_ras`` (4, 4).
    motion : (3,) float64
        Present displacement (mm) of tissue of weight 1.
    ras_from_index : (4, 4) float64
        Of the slice; its third column points through the slice.
    thickness : float
        mm.
    noise : (n, n) float32
        HU; read from (``row0``, ``column0``) on, wrapping round.
    out : (rows, columns) float32, written
    """
    rows, columns = out.shape
    nk, nj, ni = hu.shape
    wk, wj, wi = weight.shape
    size = noise.shape[0]
    m = ras_from_index
    length = np.sqrt(m[0, 2] ** 2 + m[1, 2] ** 2 + m[2, 2] ** 2)
    sx, sy, sz = m[0, 2] / length, m[1, 2] / length, m[2, 2] / length
    moving = motion[0] != 0.0 or motion[1] != 0.0 or motion[2] != 0.0
    g = index_from_ras
    di = g[0, 0] * m[0, 0] + g[0, 1] * m[1, 0] + g[0, 2] * m[2, 0]
    dj = g[1, 0] * m[0, 0] + g[1, 1] * m[1, 0] + g[1, 2] * m[2, 0]
    dk = g[2, 0] * m[0, 0] + g[2, 1] * m[1, 0] + g[2, 2] * m[2, 0]
    for row in range(rows):
        for column in range(columns):
            out[row, column] = 0.0
        for part in range(3):
            shift = (part - 1) * thickness / 3.0
            ux, uy, uz = 0.0, 0.0, 0.0
            fi, fj, fk = 0.0, 0.0, 0.0
            for column in range(columns):
                if column % 16 == 0:
                    x = m[0, 0] * column + m[0, 1] * row + m[0, 3] + shift * sx
                    y = m[1, 0] * column + m[1, 1] * row + m[1, 3] + shift * sy
                    z = m[2, 0] * column + m[2, 1] * row + m[2, 3] + shift * sz
                    if moving:
                        for _ in range(2):
                            ex, ey, ez = x - ux, y - uy, z - uz
                            h = weight_from_ras
                            ai = h[0, 0] * ex + h[0, 1] * ey + h[0, 2] * ez + h[0, 3] + 0.5
                            aj = h[1, 0] * ex + h[1, 1] * ey + h[1, 2] * ez + h[1, 3] + 0.5
                            ak = h[2, 0] * ex + h[2, 1] * ey + h[2, 2] * ez + h[2, 3] + 0.5
                            w = weight[
                                min(max(int(ak), 0), wk - 1), min(max(int(aj), 0), wj - 1), min(max(int(ai), 0), wi - 1)
                            ]
                            ux, uy, uz = w * motion[0], w * motion[1], w * motion[2]
                        x, y, z = x - ux, y - uy, z - uz
                    fi = g[0, 0] * x + g[0, 1] * y + g[0, 2] * z + g[0, 3]
                    fj = g[1, 0] * x + g[1, 1] * y + g[1, 2] * z + g[1, 3]
                    fk = g[2, 0] * x + g[2, 1] * y + g[2, 2] * z + g[2, 3]
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
                out[row, column] += value / 3.0
                fi += di
                fj += dj
                fk += dk
        for column in range(columns):
            out[row, column] += noise[(row + row0) % size, (column + column0) % size]


@njit(nogil=True, cache=True)
def add_needle(picture: Any, pitch: float, ends: Any, share: float, reach: float, radius: float, metal: float) -> None:
    """Metal of a needle lying in a slice, with the dark and bright streaks beside and beyond it.

    Parameters
    ----------
    picture : (rows, columns) float32, changed
        HU.
    pitch : float
        mm per pixel.
    ends : (2, 2) float64
        (column, row) of the part of the needle within the slice; the second is towards the tip.
    share : float
        How much of the slice's thickness is metal, 0..1.
    reach, radius : float
        How far streaks are drawn; the needle's radius; mm.
    metal : float
        HU.
    """
    rows, columns = picture.shape
    dx, dy = (ends[1, 0] - ends[0, 0]) * pitch, (ends[1, 1] - ends[0, 1]) * pitch
    length = np.sqrt(dx * dx + dy * dy) + 1e-6
    dx, dy = dx / length, dy / length
    around = reach / pitch
    low_x = max(0, int(min(ends[0, 0], ends[1, 0]) - around))
    high_x = min(columns, int(max(ends[0, 0], ends[1, 0]) + around) + 1)
    low_y = max(0, int(min(ends[0, 1], ends[1, 1]) - around))
    high_y = min(rows, int(max(ends[0, 1], ends[1, 1]) + around) + 1)
    for row in range(low_y, high_y):
        for column in range(low_x, high_x):
            x, y = (column - ends[0, 0]) * pitch, (row - ends[0, 1]) * pitch
            along = x * dx + y * dy
            side = abs(x * dy - y * dx)
            beyond = max(along - length, -along, 0.0)
            distance = np.sqrt(side * side + beyond * beyond)
            cover = min(1.0, max(0.0, 0.5 - (distance - radius) / pitch))
            fade = np.exp(-beyond / 14.0)
            streak = (
                -420.0 * np.exp(-((side - 1.4) ** 2) / 1.6) * fade + 130.0 * np.exp(-((side - 4.2) ** 2) / 3.0) * fade
            )
            if beyond > 0.0:
                streak += -380.0 * np.exp(-side * side / 1.5) * fade
            old = picture[row, column] + share * streak * (1.0 - cover)
            picture[row, column] = old + cover * share * (metal - old)


KERNELS = (
    KernelSpec(
        "CT-fluoroscopy slice",
        axial_slice,
        (
            "Array(int16, 3, 'C', readonly=True), Array(float64, 2, 'C'), Array(float32, 3, 'C'), "
            "Array(float64, 2, 'C'), Array(float64, 1, 'C'), Array(float64, 2, 'C'), float64, "
            "Array(float32, 2, 'C'), int64, int64, Array(float32, 2, 'C')",
        ),
    ),
    KernelSpec(
        "CT-fluoroscopy needle",
        add_needle,
        ("Array(float32, 2, 'C'), float64, Array(float64, 2, 'C'), float64, float64, float64, float64",),
    ),
)


class FluoroSimulator:
    """Draws the scanner's slice at any time of a script."""

    def __init__(self, patient: PatientModel, setup: RoomSetup, size: int = SIZE) -> None:
        self.setup = setup
        self.size = size
        self._field = patient.breathing(setup.simulation.breathing_mm)
        hu = np.array(patient.clean.array, dtype=np.int16, order="C")
        hu.setflags(write=False)
        self._hu = hu
        self._index_from_ras = np.ascontiguousarray(patient.clean.index_from_ras)
        self._weight = np.ascontiguousarray(self._field.weight)
        self._weight_from_ras = np.ascontiguousarray(np.linalg.inv(self._field.ras_from_index))
        corners = patient.clean.corners_ras()
        self._middle = 0.5 * (corners.min(axis=0) + corners.max(axis=0))
        self._low_z, self._high_z = float(corners[:, 2].min()) + SLICE_MM, float(corners[:, 2].max()) - SLICE_MM
        self.pitch_mm = float(np.ptp(corners, axis=0)[:2].max()) / size
        rng = np.random.default_rng([setup.simulation.patient_seed, 0x0F])
        noise = rng.standard_normal((_NOISE_TILE, _NOISE_TILE), dtype=np.float32)
        grain = np.asarray(cv2.GaussianBlur(noise, (0, 0), 0.8, borderType=cv2.BORDER_REFLECT), dtype=np.float32)
        grain -= grain.mean()
        self._noise = np.ascontiguousarray(grain * np.float32(setup.simulation.fluoro_noise_hu / float(grain.std())))
        self._slice = np.zeros((size, size), dtype=np.float32)

    def ras_from_index(self, z_mm: float) -> NDArray[np.float64]:
        """(4, 4) of the slice at a height: columns run to the patient's left, rows to the back."""
        half = self.pitch_mm * (self.size - 1) / 2.0
        m = np.diag([-self.pitch_mm, -self.pitch_mm, SLICE_MM, 1.0])
        m[:3, 3] = self._middle[0] + half, self._middle[1] + half, z_mm
        return m

    def image(self, script: Script, script_s: float, frame: int = 0) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
        """(512, 512) int16 HU and its (4, 4) matrix to RAS mm: the slice that the table's position puts at the tip."""
        t = np.array([script_s])
        tip = script.needle_tip(t)[0]
        inserted = float(script.depth(t)[0]) > 0.5
        z = float(tip[2, 3]) if inserted else script.geometry.target[2]
        shaft = np.stack([tip[:3, 3] - 150.0 * tip[:3, 2], tip[:3, 3]]) if inserted else None
        return self.picture(round(z), float(script.breath(t)[0]), shaft, frame)

    def picture(
        self, z_mm: float, breath: float, needle: NDArray[np.float64] | None = None, frame: int = 0
    ) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
        """The slice at a height, for a depth of breath (0..1) and a needle ((2, 3): shaft point, tip; RAS mm)."""
        matrix = self.ras_from_index(float(np.clip(z_mm, self._low_z, self._high_z)))
        motion = breath * self._field.amplitude_mm * DIRECTION
        at = np.random.default_rng([frame, 0x0F]).integers(0, _NOISE_TILE, 2)
        axial_slice(
            self._hu, self._index_from_ras, self._weight, self._weight_from_ras, motion, matrix, SLICE_MM,
            self._noise, int(at[0]), int(at[1]), self._slice,
        )  # fmt: skip
        if needle is not None:
            self._draw_needle(matrix, needle)
        return np.clip(np.rint(self._slice), -1024, 3071).astype(np.int16), matrix

    def _draw_needle(self, matrix: NDArray[np.float64], needle: NDArray[np.float64]) -> None:
        low, high = matrix[2, 3] - SLICE_MM / 2.0, matrix[2, 3] + SLICE_MM / 2.0
        (x0, y0, z0), (x1, y1, z1) = needle
        rise = z1 - z0
        if abs(rise) < 1e-9:
            if not low <= z0 <= high:
                return
            first, last = 0.0, 1.0
        else:
            cuts = sorted(((low - z0) / rise, (high - z0) / rise))
            first, last = max(cuts[0], 0.0), min(cuts[1], 1.0)
            if first >= last:
                return
        inverse = np.linalg.inv(matrix)
        ends = np.array([[x0 + f * (x1 - x0), y0 + f * (y1 - y0), matrix[2, 3], 1.0] for f in (first, last)])
        pixels = np.ascontiguousarray((ends @ inverse.T)[:, :2])
        share = min(1.0, 2.0 * _NEEDLE_RADIUS_MM / SLICE_MM)
        add_needle(self._slice, self.pitch_mm, pixels, share, _STREAK_REACH_MM, _NEEDLE_RADIUS_MM, _METAL_HU)
