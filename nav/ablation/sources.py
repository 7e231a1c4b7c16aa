"""Where applicators put their energy: around a straight needle, in cells (z, r), energy-normalised.

Frame of a needle: origin at the tip, +z the direction of advance, the shaft along -z.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["NeedleGrid", "joule_source", "line_source", "warmed"]

Array = NDArray[np.float64]

#: Electric conductivity of liver grows by 1.5 % of its value at 37 C per kelvin (published: 1.2 to 2 %, Beitel-White
#: 2021, Kroeger et al. 2006), up to boiling; what boils is left to the generator, which keeps tissue from drying.
_ELECTRIC_PER_K, _BOILS_C = 0.015, 100.0


@dataclass(frozen=True, slots=True)
class NeedleGrid:
    """Square cells around a needle: row ``k`` is centred at ``first_z_mm + k · spacing``, column ``i`` at ``i + ½``.

    Attributes
    ----------
    first_z_mm, spacing_mm : float
    rows, columns : int
    """

    first_z_mm: float
    spacing_mm: float
    rows: int
    columns: int

    @property
    def z_mm(self) -> Array:
        """(rows,) centres along the needle."""
        return np.asarray(self.first_z_mm + self.spacing_mm * np.arange(self.rows))

    @property
    def r_mm(self) -> Array:
        """(columns,) centres across."""
        return np.asarray(self.spacing_mm * (np.arange(self.columns) + 0.5))

    @property
    def volumes_mm3(self) -> Array:
        """(1, columns) volume of a ring."""
        return np.asarray((2.0 * np.pi * self.spacing_mm**2 * self.r_mm)[None], dtype=np.float64)


def line_source(
    grid: NeedleGrid, centre_z_mm: float, length_mm: float, absorption_per_m: float, *, points: int = 24
) -> Array:
    """Power density of a microwave antenna per watt, 1/mm³ (rows, columns); its integral over the grid is 1.

    Points on the active length, weighted by the cosine of a half-wave current, each radiate
    ``2a exp(-2a d) / (4π d²)``. Cells near the antenna are averaged over their own volume.

    Parameters
    ----------
    centre_z_mm, length_mm : float
        Middle and length of the active part, mm.
    absorption_per_m : float
        Field attenuation ``a``; power falls by ``exp(-2a d)``.
    """
    fine = 3
    step = grid.spacing_mm / fine
    z = grid.first_z_mm - 0.5 * grid.spacing_mm + step * (np.arange(grid.rows * fine) + 0.5)
    r = step * (np.arange(grid.columns * fine) + 0.5)
    s = (np.arange(points) + 0.5) / points - 0.5
    weight = np.cos(np.pi * s)
    weight /= weight.sum()
    two_a = 2e-3 * absorption_per_m
    density = np.zeros((len(z), len(r)))
    for position, share in zip(centre_z_mm + s * length_mm, weight, strict=True):
        d2 = (z[:, None] - position) ** 2 + r[None] ** 2
        density += share * two_a * np.exp(-two_a * np.sqrt(d2)) / (4.0 * np.pi * d2)
    ring = 2.0 * np.pi * r * step * step
    total = (density * ring).reshape(grid.rows, fine, grid.columns, fine).sum(axis=(1, 3))
    source: Array = total / grid.volumes_mm3
    return source / float((source * grid.volumes_mm3).sum())


def joule_source(grid: NeedleGrid, centre_z_mm: float, length_mm: float, radius_mm: float) -> Array:
    """Power density of a radiofrequency electrode per watt, 1/mm³ (rows, columns); its integral over the grid is 1.

    The electrode's surface has one potential: charges on its axis are found so that it does (method of charge
    simulation), and the density is the square of their field. The return electrode is far away; conductivity is
    uniform (what boiling does to it is left to the generator's roll-off).

    Parameters
    ----------
    centre_z_mm, length_mm, radius_mm : float
        Middle and length of the bare part, and its radius, mm.
    """
    half = 0.5 * length_mm - radius_mm
    if half <= 0.0:
        raise ValueError(f"electrode of {length_mm:g} mm length is shorter than its diameter {2 * radius_mm:g} mm")
    n = max(8, int(2.0 * length_mm / radius_mm / 2.0))
    charge_z = centre_z_mm + half * (2.0 * (np.arange(n) + 0.5) / n - 1.0)
    # On the side of the electrode and on its round ends.
    along = np.linspace(-half, half, 3 * n)
    angle = np.linspace(0.0, np.pi / 2.0, 6)[1:]
    side = np.stack([centre_z_mm + along, np.full(along.shape, radius_mm)], axis=1)
    ends = [
        np.stack([centre_z_mm + sign * (half + radius_mm * np.sin(angle)), radius_mm * np.cos(angle)], axis=1)
        for sign in (-1.0, 1.0)
    ]
    surface = np.concatenate([side, *ends])
    matrix = 1.0 / np.hypot(surface[:, :1] - charge_z, surface[:, 1:])
    charge = np.linalg.lstsq(matrix, np.ones(len(surface)), rcond=1e-8)[0]
    fine = 4
    step = grid.spacing_mm / fine
    z = grid.first_z_mm - 0.5 * grid.spacing_mm + step * (np.arange(grid.rows * fine) + 0.5)
    r = step * (np.arange(grid.columns * fine) + 0.5)
    field_z = np.zeros((len(z), len(r)))
    field_r = np.zeros_like(field_z)
    for position, q in zip(charge_z, charge, strict=True):
        dz = z[:, None] - position
        cube = (dz**2 + r[None] ** 2) ** -1.5
        field_z += q * dz * cube
        field_r += q * r[None] * cube
    density = field_z**2 + field_r**2
    beyond = np.maximum(np.abs(z - centre_z_mm) - half, 0.0)
    density[np.hypot(beyond[:, None], r[None]) < radius_mm] = 0.0
    ring = 2.0 * np.pi * r * step * step
    total = (density * ring).reshape(grid.rows, fine, grid.columns, fine).sum(axis=(1, 3))
    source: Array = total / grid.volumes_mm3
    return source / float((source * grid.volumes_mm3).sum())


def warmed(grid: NeedleGrid, source: Array, celsius: Array) -> Array:
    """A `joule_source` in warm tissue: a current heats less where tissue conducts better; its integral stays.

    The current keeps to its paths in uniform tissue, which is exact for layers around a long electrode.

    Parameters
    ----------
    source, celsius : (rows, columns) float64
        Power density, W/mm³; temperature.
    """
    density = source / (1.0 + _ELECTRIC_PER_K * (np.clip(celsius, 0.0, _BOILS_C) - 37.0))
    whole = float((source * grid.volumes_mm3).sum())
    out: Array = density * (whole / float((density * grid.volumes_mm3).sum()))
    return out
