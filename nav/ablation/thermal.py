"""What heat and cold do to a material: stored heat against temperature, conductivity, and the death of cells.

Heat is counted as *reduced enthalpy* ``h`` in kelvin: the heat stored above the reference temperature divided by the
heat capacity there. Temperature is a piecewise linear function of it, so the heat of vaporisation or of freezing is
stored exactly, however large a step is. What drives conduction is ``u``, the integral of the conductivity (relative to
its value at the reference) over temperature (Kirchhoff): between two cells of the same material the flow is exactly
proportional to the difference of ``u``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from nav.config.load import ConfigError, load_toml, shipped_config

__all__ = ["SEGMENTS", "Arrhenius", "Freezing", "Material", "StateCurve", "Tissue", "list_tissues", "load_tissue"]

Array = NDArray[np.float64]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

#: Straight pieces of every curve: the kernels unroll them.
SEGMENTS = 4
GAS_CONSTANT = 8.314462618
KELVIN = 273.15
#: Where tissue loses its water, and how much heat that takes: 0.7 of its mass at 2.26 MJ/kg, spread over 10 K, the
#: simple form of Yang et al. 2007 (Med Phys 34:4102). Above it conductivity is held.
VAPOUR_C = (100.0, 110.0)
VAPOUR_SHARE, VAPOUR_J_PER_KG = 0.7, 2.26e6
#: Per kelvin from 37 C (linear set of Kroeger et al. 2006): conductivity and density of heated liver.
CONDUCTIVITY_PER_K, DENSITY_PER_K = 0.0025, -0.00056


class Arrhenius(BaseModel):
    """Rate of cell death ``A exp(-E / R T)``, 1/s; dead where its integral over time reaches 1 (63 % of cells)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    frequency_per_s: Positive
    energy_j_per_mol: Positive
    above_c: float = Field(43.0, description="no damage below: the rate would kill at body temperature within an hour")

    def rate(self, celsius: ArrayLike) -> Array:
        """Rate in 1/s at ``celsius``, 0 at and below ``above_c``."""
        t = np.asarray(celsius, dtype=np.float64)
        with np.errstate(over="ignore"):
            rate = self.frequency_per_s * np.exp(-self.energy_j_per_mol / (GAS_CONSTANT * (t + KELVIN)))
        return np.where(t > self.above_c, rate, np.where(np.isnan(t), np.nan, 0.0))


class Freezing(BaseModel):
    """How a tissue freezes, between two temperatures; needed for cryoablation alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    from_c: float = Field(-1.0, gt=-20.0, le=0.0, description="where it begins to freeze")
    to_c: float = Field(-8.0, ge=-40.0, lt=0.0, description="where all of it is frozen")
    latent_mj_per_m3: Positive
    conductivity_w_per_m_k: Positive = Field(description="of frozen tissue")
    density_kg_per_m3: Positive
    heat_capacity_j_per_kg_k: Positive

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.to_c >= self.from_c:
            raise ValueError(f"to_c {self.to_c:g} must lie below from_c {self.from_c:g}")
        return self


class Tissue(BaseModel):
    """One tissue, as in ``configs/tissues/*.toml``; properties at 37 C."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    citation: str = Field(min_length=1, description="where the numbers come from")
    note: str = ""
    conductivity_w_per_m_k: Positive
    density_kg_per_m3: Positive
    heat_capacity_j_per_kg_k: Positive
    perfusion_ml_per_min_kg: NotNegative = Field(description="heat transfer rate of blood; 0 for excised tissue")
    perfusion_sd: NotNegative = Field(description="1 sigma of the logarithm of the perfusion between patients")
    initial_c: float = Field(37.0, ge=0.0, le=45.0)
    blood_c: float = Field(37.0, ge=0.0, le=45.0)
    conductivity_s_per_m: Positive | None = Field(None, description="electric, at 500 kHz and 37 C")
    death: Arrhenius
    freezing: Freezing | None = None

    @model_validator(mode="after")
    def _dry(self) -> Self:
        if self.perfusion_ml_per_min_kg == 0.0 and self.perfusion_sd > 0.0:
            raise ValueError("perfusion_sd must be 0 where there is no perfusion")
        return self

    @property
    def heat_per_volume(self) -> float:
        """Density times heat capacity, J/(m3 K)."""
        return self.density_kg_per_m3 * self.heat_capacity_j_per_kg_k

    @property
    def diffusivity_mm2_per_s(self) -> float:
        """Thermal diffusivity at 37 C."""
        return 1e6 * self.conductivity_w_per_m_k / self.heat_per_volume

    def perfusion_per_s(self, scale: float = 1.0) -> float:
        """Rate at which blood takes heat: ``omega rho_b c_b / (rho c)``, 1/s, omega in mL of blood per mL and second.

        Blood: 1050 kg/m3, 3617 J/(kg K) (IT'IS database).
        """
        omega = scale * self.perfusion_ml_per_min_kg * self.density_kg_per_m3 / 6e7
        return omega * 1050.0 * 3617.0 / self.heat_per_volume


def list_tissues() -> tuple[str, ...]:
    """Names of the tissues that ship with the program."""
    return tuple(sorted(p.stem for p in shipped_config("tissues").glob("*.toml")))


def load_tissue(name: str) -> Tissue:
    """Load a shipped tissue by name, or a site's own file by path (ends in ``.toml``).

    Raises
    ------
    ConfigError
        Unknown name (the known ones are listed), unreadable or invalid file.
    """
    from pathlib import Path

    if name.endswith(".toml"):
        return load_toml(Path(name), Tissue)
    known = list_tissues()
    if name not in known:
        raise ConfigError(f"tissue {name!r}", [f"unknown; known: {', '.join(known)}; or give the path of a .toml file"])
    return load_toml(shipped_config("tissues", f"{name}.toml"), Tissue)


@dataclass(frozen=True, slots=True)
class StateCurve:
    """Temperature ``t`` and conduction potential ``u`` over reduced enthalpy ``h``, in `SEGMENTS` straight pieces.

    Attributes
    ----------
    reference_c : float
        Temperature at ``h = 0``.
    breaks : (SEGMENTS - 1,) tuple
        Where pieces meet, in ``h`` (K), ascending.
    t_slopes, u_slopes : (SEGMENTS,) tuple
        dt/dh and du/dh of each piece.
    """

    reference_c: float
    breaks: tuple[float, ...]
    t_slopes: tuple[float, ...]
    u_slopes: tuple[float, ...]

    @classmethod
    def of(
        cls, reference_c: float, knots_c: tuple[float, ...], heat: tuple[float, ...], conductivity: tuple[float, ...]
    ) -> StateCurve:
        """From temperatures where pieces meet, and of each piece the heat capacity and the conductivity.

        Both relative to their value at the reference temperature; latent heat is a large capacity.
        """
        if len(knots_c) != SEGMENTS - 1 or len(heat) != SEGMENTS or len(conductivity) != SEGMENTS:
            raise ValueError(f"a curve has {SEGMENTS} pieces and {SEGMENTS - 1} places where they meet")
        if list(knots_c) != sorted(set(knots_c)) or min(heat) <= 0.0 or min(conductivity) <= 0.0:
            raise ValueError("temperatures must rise, capacities and conductivities must be above 0")
        edges = (-math.inf, *knots_c, math.inf)

        def enthalpy(celsius: float) -> float:
            total = 0.0
            for low, high, capacity in zip(edges[:-1], edges[1:], heat, strict=True):
                part = min(max(celsius, low), high) - min(max(reference_c, low), high)
                total += capacity * part
            return total

        return cls(
            reference_c,
            tuple(enthalpy(k) for k in knots_c),
            tuple(1.0 / c for c in heat),
            tuple(k / c for k, c in zip(conductivity, heat, strict=True)),
        )

    @classmethod
    def linear(cls, reference_c: float = 37.0) -> StateCurve:
        """Constant properties."""
        one = (1.0,) * SEGMENTS
        return cls.of(reference_c, (1e6, 2e6, 3e6), one, one)

    @classmethod
    def heated(cls, tissue: Tissue) -> StateCurve:
        """Soft tissue from the cold to far above boiling: warmer tissue conducts better, and its water takes heat."""
        low, boil, dry = 0.5 * (37.0 + VAPOUR_C[0]), *VAPOUR_C
        latent = VAPOUR_SHARE * VAPOUR_J_PER_KG / (tissue.heat_capacity_j_per_kg_k * (dry - boil))

        def piece(a: float, b: float) -> tuple[float, float]:
            middle = 0.5 * (a + b) - 37.0
            return 1.0 + DENSITY_PER_K * middle, 1.0 + CONDUCTIVITY_PER_K * middle

        warm, hot = piece(37.0, low), piece(low, boil)
        held = 1.0 + CONDUCTIVITY_PER_K * (boil - 37.0)
        gone = 1.0 + DENSITY_PER_K * (boil - 37.0)
        return cls.of(
            tissue.initial_c, (low, boil, dry), (warm[0], hot[0], gone + latent, gone), (warm[1], hot[1], held, held)
        )

    @classmethod
    def frozen(
        cls, reference_c: float, freezing_c: tuple[float, float], latent_k: float, ice_capacity: float, ice_k: float
    ) -> StateCurve:
        """Tissue that freezes between two temperatures (lower, upper).

        Parameters
        ----------
        latent_k : float
            Heat of freezing over the heat capacity of unfrozen tissue, K.
        ice_capacity, ice_k : float
            Heat capacity and conductivity of frozen tissue relative to unfrozen.
        """
        low, high = freezing_c
        middle = 0.5 * (low + high)
        slush = latent_k / (high - low) + 0.5 * (1.0 + ice_capacity)
        quarter = 0.25 * (1.0 - ice_k)
        return cls.of(
            reference_c, (low, middle, high), (ice_capacity, slush, slush, 1.0),
            (ice_k, ice_k + quarter, 1.0 - quarter, 1.0),
        )  # fmt: skip

    @property
    def constants(self) -> Array:
        """(15,) as the kernels take them: t and u at h = 0 of the pieces' sums, breaks, widths, slopes of t and u."""
        b = self.breaks
        zero = np.zeros(())
        start = (-float(self._sum(self.t_slopes, zero)), -float(self._sum(self.u_slopes, zero)))
        return np.array([*start, *b, b[1] - b[0], b[2] - b[1], *self.t_slopes, *self.u_slopes])

    def _sum(self, slopes: tuple[float, ...], h: Array) -> Array:
        b = self.breaks
        total = slopes[0] * np.minimum(h, b[0]) + slopes[1] * np.clip(h - b[0], 0.0, b[1] - b[0])
        return np.asarray(
            total + slopes[2] * np.clip(h - b[1], 0.0, b[2] - b[1]) + slopes[3] * np.maximum(h - b[2], 0.0)
        )

    def celsius(self, h: ArrayLike) -> Array:
        """Temperature at reduced enthalpy ``h`` (K)."""
        return self.reference_c + float(self.constants[0]) + self._sum(self.t_slopes, np.asarray(h, dtype=np.float64))

    def enthalpy(self, celsius: ArrayLike) -> Array:
        """Reduced enthalpy (K) at a temperature: the inverse of `celsius`."""
        t = np.asarray(celsius, dtype=np.float64)
        b, a = self.breaks, self.t_slopes
        low, middle, high = (float(v) for v in self.celsius(np.array(b)))
        h = b[0] + np.minimum(t - low, 0.0) / a[0] + np.clip(t - low, 0.0, middle - low) / a[1]
        return np.asarray(h + np.clip(t - middle, 0.0, high - middle) / a[2] + np.maximum(t - high, 0.0) / a[3])

    def potential(self, h: ArrayLike) -> Array:
        """Conduction potential at reduced enthalpy ``h`` (K)."""
        return float(self.constants[1]) + self._sum(self.u_slopes, np.asarray(h, dtype=np.float64))

    @property
    def stiffest(self) -> float:
        """Largest du/dh: how much faster than at the reference heat spreads where it spreads fastest."""
        return max(self.u_slopes)


@dataclass(frozen=True, slots=True)
class Material:
    """A homogeneous material for a solver, without the reasons behind its numbers.

    Attributes
    ----------
    curve : StateCurve
    conductivity_w_per_m_k, heat_per_volume : float
        At the reference temperature; W/(m K) and J/(m3 K).
    perfusion_per_s : float
        Rate at which perfusion takes heat (`Tissue.perfusion_per_s`).
    blood_c : float
    death : Arrhenius or None
    stasis_damage : float
        Damage integral at which perfusion stops; infinity where blood cannot clot (heparin).
    stasis_c : float
        Temperature below which perfusion stops for good; minus infinity for none.
    """

    curve: StateCurve
    conductivity_w_per_m_k: float
    heat_per_volume: float
    perfusion_per_s: float = 0.0
    blood_c: float = 37.0
    death: Arrhenius | None = None
    stasis_damage: float = 1.0
    stasis_c: float = -math.inf

    @property
    def diffusivity_mm2_per_s(self) -> float:
        """At the reference temperature."""
        return 1e6 * self.conductivity_w_per_m_k / self.heat_per_volume

    @classmethod
    def heated(cls, tissue: Tissue, perfusion_scale: float = 1.0) -> Material:
        """``tissue`` for a heating, with all its dependence on temperature."""
        return cls(
            StateCurve.heated(tissue), tissue.conductivity_w_per_m_k, tissue.heat_per_volume,
            tissue.perfusion_per_s(perfusion_scale), tissue.blood_c, tissue.death,
        )  # fmt: skip

    @classmethod
    def frozen(cls, tissue: Tissue, perfusion_scale: float = 1.0) -> Material:
        """``tissue`` for a freezing; perfusion stops for good where it is half frozen.

        Raises
        ------
        ValueError
            The tissue's file does not say how it freezes.
        """
        ice = tissue.freezing
        if ice is None:
            raise ValueError(f"{tissue.name}: its file has no [freezing], so nothing can be frozen in it")
        curve = StateCurve.frozen(
            tissue.initial_c, (ice.to_c, ice.from_c), 1e6 * ice.latent_mj_per_m3 / tissue.heat_per_volume,
            ice.density_kg_per_m3 * ice.heat_capacity_j_per_kg_k / tissue.heat_per_volume,
            ice.conductivity_w_per_m_k / tissue.conductivity_w_per_m_k,
        )  # fmt: skip
        return cls(
            curve, tissue.conductivity_w_per_m_k, tissue.heat_per_volume, tissue.perfusion_per_s(perfusion_scale),
            tissue.blood_c, stasis_c=0.5 * (ice.from_c + ice.to_c),
        )  # fmt: skip
