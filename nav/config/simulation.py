"""Settings of the simulated procedure room (``[simulation]`` in a room's TOML)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nav.config.network import NetworkText

__all__ = ["SimulationConfig"]


class SimulationConfig(BaseModel):
    """What the simulated room plays; the defaults are the fixed default room, so that figures compare."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(1, ge=0, description="of noise, drop-outs, latency and the operator's hand")
    patient_seed: int = Field(1, ge=0, description="of the built-in patient's anatomy")
    tracker_noise_mm: float = Field(0.15, ge=0, description="per axis, standard deviation")
    tracker_noise_deg: float = Field(0.1, ge=0, description="per axis, standard deviation")
    sampling_jitter_ms: float = Field(1.0, ge=0, le=5, description="standard deviation of the sampling instants")
    dropout_fraction: float = Field(0.02, ge=0, le=0.5, description="share of the time that a tool is not seen")
    dropout_min_ms: float = Field(40.0, gt=0, description="shortest drop-out")
    dropout_max_ms: float = Field(160.0, gt=0, le=1000, description="longest drop-out")
    latency_ms: float = Field(30.0, ge=0, description="mean transport delay")
    latency_spread_ms: float = Field(10.0, ge=0, description="half width of the uniform distribution")
    clock_offset_s: float = Field(3.0, ge=-86400, le=86400, description="the devices' clock ahead of this computer's")
    picking_rms_mm: float = Field(1.0, ge=0, description="3-D rms of the operator's landmark touches")
    tremor_mm: float = Field(0.1, ge=0, description="hand tremor per axis, rms")
    aiming_mm: float = Field(1.5, ge=0, description="lateral distance of the operator's entry from the planned one")
    aiming_deg: float = Field(1.0, ge=0, le=20, description="angle of the operator's needle to the planned path")
    breathing_mm: float = Field(10.0, ge=0, le=40, description="peak-to-peak cranio-caudal liver motion")
    breathing_period_s: float = Field(4.0, gt=0.5, description="length of one breath")
    advance_mm_s: float = Field(10.0, gt=0, description="speed of the needle")
    ultrasound_depth_mm: float = Field(150.0, ge=60, le=250, description="depth of the ultrasound image")
    fluoro_fps: Literal[6, 12] = Field(6, description="frame rate of the CT-fluoroscopy")
    allow: tuple[NetworkText, ...] = Field(
        (), description="networks that may connect, where a source's host is an address of the network"
    )
    fluoro_noise_hu: float = Field(35.0, ge=0, description="standard deviation of the low-dose noise")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.dropout_min_ms > self.dropout_max_ms:
            raise ValueError(
                f"dropout_min_ms {self.dropout_min_ms:g} is above dropout_max_ms {self.dropout_max_ms:g}; "
                "give the shorter one first"
            )
        if self.latency_spread_ms > self.latency_ms:
            raise ValueError(
                f"latency_spread_ms {self.latency_spread_ms:g} is above latency_ms {self.latency_ms:g}; "
                "a message cannot arrive before it was sent"
            )
        return self
