"""Limits, weights and safety distances of a plan (``configs/planning/*.toml``)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from nav.config.load import load_toml, shipped_config
from nav.planning.anatomy import MOST_CLEARANCE_MM

__all__ = ["PlanSettings", "load_settings"]

Weight = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
Clearance = Annotated[float, Field(ge=0, le=MOST_CLEARANCE_MM, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LimitSettings(_Part):
    """Hard constraints."""

    needle_length_mm: float = Field(ge=10, le=500)
    parenchyma_mm: float = Field(ge=0, le=100)
    capsule_angle_deg: float = Field(ge=0, le=80)
    from_below_deg: float = Field(ge=-90, le=90)
    out_of_plane_deg: float | None = Field(None, ge=0, le=90)
    pose_angle_deg: float | None = Field(None, ge=0, le=180)


class WeightSettings(_Part):
    """Exponents of the soft criteria."""

    length: Weight
    risk: Weight
    capsule_angle: Weight
    out_of_plane: Weight
    alignment: Weight
    coverage: Weight


class CoverSettings(_Part):
    """What shall be covered, and how hard to look for it."""

    margin_mm: float = Field(gt=0, le=20)
    coverage: float = Field(gt=0.5, le=1)
    most_applicators: int = Field(ge=1, le=30)
    time_limit_s: float = Field(gt=0, le=3600)


class RobustnessSettings(_Part):
    """Sampled placement errors."""

    placement_sigma_mm: float = Field(ge=0, le=20)
    draws: int = Field(ge=10, le=10_000)
    seed: int = Field(ge=0)


class PlanSettings(_Part):
    """A settings file."""

    limits: LimitSettings
    clearance_mm: dict[str, Clearance]
    weights: WeightSettings
    cover: CoverSettings
    robustness: RobustnessSettings

    def clearance_of(self, name: str) -> float:
        """Of a structure that was given none: by its name, else ``default`` (5 mm without one)."""
        return self.clearance_mm.get(name, self.clearance_mm.get("default", 5.0))


def load_settings(path: Path | None = None) -> PlanSettings:
    """A site's file, or the one that ships with the program.

    Raises
    ------
    ConfigError
        Unreadable or invalid; all mistakes are listed.
    """
    return load_toml(shipped_config("planning", "default.toml") if path is None else path, PlanSettings)
