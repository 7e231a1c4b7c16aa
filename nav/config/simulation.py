"""Settings of the simulated procedure room (``[simulation]`` in a room's TOML)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["SimulationConfig"]


class SimulationConfig(BaseModel):
    """What the simulated room plays; the defaults are the fixed default room, so that figures compare."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(1, ge=0)
    tracker_noise_mm: float = Field(0.15, ge=0, description="per axis, standard deviation")
    tracker_noise_deg: float = Field(0.1, ge=0, description="per axis, standard deviation")
    dropout_fraction: float = Field(0.02, ge=0, lt=1)
    latency_ms: float = Field(30.0, ge=0)
    latency_spread_ms: float = Field(10.0, ge=0, description="half width of the uniform distribution")
    clock_offset_s: float = 3.0
    picking_rms_mm: float = Field(1.0, ge=0, description="3-D rms of the operator's landmark touches")
    breathing_mm: float = Field(10.0, ge=0, description="peak-to-peak cranio-caudal liver motion")
    breathing_period_s: float = Field(4.0, gt=0)
    advance_mm_s: float = Field(10.0, gt=0)
