"""How the patient breathes: when (a pure function of the script's time) and where (a smooth weight in RAS).

The state at exhale is the CT's, exactly: a held breath has zero displacement everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates

from nav.geometry.volume import Volume

__all__ = ["BreathingField", "inhalation"]

F64 = NDArray[np.float64]

#: Motion of the liver at full inhalation per mm of cranio-caudal motion: down, and somewhat forwards (von Siebenthal
#: 2007 and others: antero-posterior about a quarter of the cranio-caudal part).
DIRECTION = np.array([0.0, 0.25, -1.0])


def inhalation(elapsed_s: F64 | float, duration_s: float, period_s: float) -> F64:
    """Depth of breath, 0 (exhale) to 1, within a spell of free breathing that begins and ends at exhale.

    The cos⁴ model of Lujan et al. (Med. Phys. 26:715, 1999), with a whole number of breaths fitted into
    ``duration_s``. Outside the spell 0.
    """
    t = np.asarray(elapsed_s, dtype=np.float64)
    breaths = max(1, round(duration_s / period_s))
    depth = np.sin(np.pi * breaths * t / duration_s) ** 4
    return np.asarray(np.where((t <= 0.0) | (t >= duration_s), 0.0, depth))


@dataclass(frozen=True, slots=True, eq=False)
class BreathingField:
    """Tissue at exhale position X moves to ``X + depth * amplitude * weight(X) * DIRECTION``.

    Attributes
    ----------
    weight : (k, j, i) float32
        0..1 on a coarse grid: 1 in the liver, small at the skin, 0 at the spine.
    ras_from_index : (4, 4) float64
    amplitude_mm : float
        Peak-to-peak cranio-caudal motion where the weight is 1.
    """

    weight: NDArray[np.float32]
    ras_from_index: F64
    amplitude_mm: float

    def weight_at(self, ras: F64) -> F64:
        """Weight at points (n, 3) RAS mm; the nearest one outside the grid."""
        points = np.atleast_2d(np.asarray(ras, dtype=np.float64))
        inverse = np.linalg.inv(self.ras_from_index)
        index = points @ inverse[:3, :3].T + inverse[:3, 3]
        return np.asarray(map_coordinates(self.weight, index[:, ::-1].T, order=1, mode="nearest", output=np.float64))

    def displacement(self, exhale_ras: F64, depth: float) -> F64:
        """(n, 3) mm: how far tissue that is at ``exhale_ras`` (n, 3) at exhale has moved."""
        return np.asarray((depth * self.amplitude_mm) * self.weight_at(exhale_ras)[:, None] * DIRECTION)

    def exhale_from_present(self, present_ras: F64, depth: float, iterations: int = 12) -> F64:
        """(n, 3): where the tissue now at ``present_ras`` is at exhale (fixed point; the field contracts)."""
        points = np.atleast_2d(np.asarray(present_ras, dtype=np.float64))
        exhale = points.copy()
        for _ in range(iterations):
            exhale = points - self.displacement(exhale, depth)
        return exhale


def breathing_weight(
    ct: Volume, body: NDArray[np.bool_], liver: NDArray[np.bool_], spine: NDArray[np.bool_], pitch_mm: float = 6.0
) -> tuple[NDArray[np.float32], F64]:
    """Make the weight on a coarse grid from masks (k, j, i) on the CT's grid; returns it with its affine."""
    stride = np.maximum(1, np.rint(pitch_mm / ct.spacing_mm).astype(int))
    cut = tuple(slice(None, None, int(s)) for s in stride[::-1])
    pitch = tuple(float(s) for s in (ct.spacing_mm * stride)[::-1])

    def distance(mask: NDArray[np.bool_], what: float) -> NDArray[np.float64]:
        coarse = mask[cut]
        if not coarse.any():
            return np.full(coarse.shape, what)
        return np.asarray(distance_transform_edt(~coarse, sampling=pitch), dtype=np.float64)

    def ramp(mm: NDArray[np.float64], start: float, end: float) -> NDArray[np.float64]:
        t = np.clip((mm - start) / (end - start), 0.0, 1.0)
        return t * t * (3.0 - 2.0 * t)

    near_liver = 1.0 - 0.85 * ramp(distance(liver, 0.0), 0.0, 60.0)
    # The air touches the skin; beyond the CT's ends the body goes on, so only air within the grid counts.
    below_skin = ramp(distance(~body, 1e3), 2.0, 44.0)
    weight = gaussian_filter(near_liver * (0.08 + 0.92 * below_skin), 1.2, mode="nearest")
    weight *= ramp(distance(spine, 1e3), 6.0, 42.0)
    affine = ct.ras_from_index.copy()
    affine[:3, :3] = ct.ras_from_index[:3, :3] * stride
    peak = float(weight.max())
    return np.asarray(weight / peak if peak > 0 else weight, dtype=np.float32), affine
