"""Applicators and their published zone charts (``configs/applicators/*.toml``), and the zone on the needle.

A chart says how large a zone the manufacturer's brochure shows at a power and a time. It is a reference, never a
prediction for a patient: clinical volumes are not predicted by charts (Ruiter 2019: energy against volume r = 0.54,
p = 0.27 in vivo). Inside the chart sizes are bilinear in power and log time; outside it there is no size.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from nav.ablation.zone import EllipsoidZone
from nav.config.load import ConfigError, load_toml, shipped_config
from nav.geometry.rigid import Rigid

__all__ = [
    "Applicator",
    "ChartRangeError",
    "ChartRow",
    "Cryoprobe",
    "Electrode",
    "Heating",
    "HeldOut",
    "ZoneSize",
    "list_applicators",
    "load_applicator",
    "place_zone",
    "zone_of_size",
]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

#: A power or time this close to a tabulated one (relative) is taken as that one.
_SAME = 1e-9
#: What is set on a device, by the unit of its chart's ``power_w``.
_SETTINGS = {"W": "power", "mA": "current", "C": "temperature", "cm": "target size"}


class ChartRangeError(ValueError):
    """A power or time outside the chart; the message names the value and the range."""


class ZoneSize(NamedTuple):
    """Diameters along and across the needle, and how far the centre lies behind the tip, mm."""

    long_mm: float
    short_mm: float
    offset_mm: float


class ChartRow(BaseModel):
    """One tabulated zone: full diameters, mm."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    power_w: Positive = Field(description="what is set on the device, in the unit of its ``control``: mostly W")
    time_s: Positive
    long_mm: Positive = Field(description="diameter along the needle")
    short_mm: Positive = Field(description="diameter across the needle")
    offset_mm: float = Field(allow_inf_nan=False, description="zone centre behind the tip, positive towards the hub")

    @model_validator(mode="after")
    def _tip_is_near(self) -> Self:
        if abs(self.offset_mm) > self.long_mm:
            raise ValueError(
                f"offset_mm is {self.offset_mm:g}, at most the zone's length ({self.long_mm:g}): the antenna lies in it"
            )
        return self


class HeldOut(BaseModel):
    """Root mean square error of the model on powers it was not fitted to, mm (full diameters)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    long_mm: Positive
    short_mm: Positive


class _Fitted(BaseModel):
    """What every device's heat model holds, fitted to measured zones: what a computed zone needs beyond the tissue."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tissue: str = Field(description="tissue it was fitted in, a file of configs/tissues")
    fitted_to: str = Field(min_length=1, description="the measured zones")
    perfusion_scale: Positive = Field(1.0, description="perfusion of the fit over that of the tissue's file")
    efficiency_sd: Positive = Field(0.1, description="1 sigma of the logarithm of the power (or cold) that arrives")
    held_out: HeldOut


class Heating(_Fitted):
    """How a microwave antenna heats.

    The efficiency lumps losses in the cable, shrinkage and the model's own error: no property of the device alone.
    """

    modality: Literal["microwave"] = Field("microwave", description="the device's own: left out in files")
    efficiency: Positive = Field(description="share of the set power that heats tissue, at 60 W")
    efficiency_power: float = Field(0.0, ge=-2.0, le=2.0, description="it grows with power / 60 W to this power")
    active_length_mm: Positive = Field(description="at 60 W")
    length_power: float = Field(0.0, ge=-2.0, le=2.0, description="active length grows with power / 60 W to this power")
    absorption_per_m: Positive = Field(description="attenuation of the field")

    def length_mm(self, power_w: float) -> float:
        """Active length at a power."""
        return float(self.active_length_mm * (power_w / 60.0) ** self.length_power)

    def deposited_w(self, power_w: float) -> float:
        """What of a power heats tissue."""
        return float(power_w * self.efficiency * (power_w / 60.0) ** self.efficiency_power)


class Electrode(_Fitted):
    """How a radiofrequency electrode heats: by the current around its bare tip.

    A generator set to watts gives its mean power; one set to a temperature gives power until the hottest tissue has it.
    """

    modality: Literal["radiofrequency"] = Field("radiofrequency", description="the device's own: left out in files")
    power_w: Positive = Field(description="that reaches tissue: mean power, or the most where temperature is set")
    active_length_mm: Positive = Field(description="bare tip")
    radius_mm: Positive
    shaft_c: float | None = Field(None, ge=0.0, le=45.0, description="temperature of an internally cooled tip")

    @model_validator(mode="after")
    def _is_long(self) -> Self:
        if self.active_length_mm <= 2.0 * self.radius_mm:
            raise ValueError(f"active_length_mm {self.active_length_mm:g} is not longer than the electrode is wide")
        return self


class Cryoprobe(_Fitted):
    """How a cryoprobe freezes: its cold part stays at one temperature."""

    modality: Literal["cryo"] = Field("cryo", description="the device's own: left out in files")
    probe_c: float = Field(ge=-200.0, lt=-40.0, description="surface of the probe")
    active_length_mm: Positive = Field(description="cold part")
    radius_mm: Positive
    lethal_c: float = Field(-20.0, ge=-60.0, lt=-10.0, description="coldest temperature at the zone's edge")


class Applicator(BaseModel):
    """One device and its chart, as in ``configs/applicators/*.toml``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, description="as shown to the person")
    manufacturer: str
    device: str
    modality: str = Field("microwave", description="microwave, radiofrequency, cryo, …")
    control: Literal["W", "mA", "C", "cm"] = Field(
        "W", description="unit of ``power_w``: power, current, temperature, or a cryotherapy's target size"
    )
    offset_basis: Literal["measured", "assumed"] = Field(
        "measured",
        description="'assumed' where no source says where the zone lies: no row has an offset, each ends at the tip",
    )
    frequency_mhz: Positive | None = None
    basis: str = Field(min_length=1, description="what the numbers were measured in, as far as the source says")
    citation: str = Field(min_length=1, description="where the numbers come from")
    note: str = ""
    chart: tuple[ChartRow, ...] = Field(min_length=1)
    heating: Annotated[Heating | Electrode | Cryoprobe, Field(discriminator="modality")] | None = Field(
        None, description="for computed zones; without it there is the chart alone"
    )

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, data: Any) -> Any:
        """The heat model is that of the device's modality; a zone whose place is assumed ends at the tip."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        if isinstance(data.get("heating"), dict):
            own = data.get("modality", "microwave")
            if data["heating"].get("modality", own) != own:
                raise ValueError(f"heating.modality differs from the device's {own!r}: leave it out")
            data["heating"] = {**data["heating"], "modality": own}
        if data.get("offset_basis") == "assumed" and isinstance(data.get("chart"), list | tuple):
            rows = [r for r in data["chart"] if isinstance(r, dict)]
            if any("offset_mm" in r for r in rows):
                raise ValueError(
                    "offset_basis is 'assumed', but the chart has offset_mm: leave out the one or the other"
                )
            if all(isinstance(r.get("long_mm"), int | float) for r in rows):
                data["chart"] = [{**r, "offset_mm": 0.5 * r["long_mm"]} for r in rows]
        return data

    @model_validator(mode="after")
    def _no_row_twice(self) -> Self:
        seen: set[tuple[float, float]] = set()
        for row in self.chart:
            key = (row.power_w, row.time_s)
            if key in seen:
                raise ValueError(f"chart holds {self.setting(row.power_w)}, {row.time_s:g} s twice")
            seen.add(key)
        return self

    def setting(self, power_w: float) -> str:
        """What is set on the device, with its unit: ``"60 W"``, ``"103 C"``."""
        return f"{power_w:g} {self.control}"

    @property
    def stated_basis(self) -> str:
        """``basis``, and whether the zone's place along the needle is assumed."""
        return self.basis if self.offset_basis == "measured" else f"{self.basis}; place along the needle assumed"

    @property
    def doubt(self) -> str | None:
        """What to tell the person about where the zone lies; None where a source says it."""
        if self.offset_basis == "measured":
            return None
        return (
            f"{self.name}: no source says where along the needle the zone lies; it is assumed to end at the tip, so "
            "margins along the needle are not known"
        )

    @property
    def powers_w(self) -> tuple[float, ...]:
        """Tabulated powers, ascending."""
        return tuple(sorted({row.power_w for row in self.chart}))

    @property
    def power_range_w(self) -> tuple[float, float]:
        """Smallest and largest tabulated power."""
        return self.powers_w[0], self.powers_w[-1]

    def time_range_s(self, power_w: float) -> tuple[float, float]:
        """Shortest and longest time that can be asked for at ``power_w`` (`ChartRangeError` outside the powers)."""
        rows = [self._rows(p) for p, _ in self._bracket(power_w)]
        return max(r[0].time_s for r in rows), min(r[-1].time_s for r in rows)

    def _rows(self, power_w: float) -> list[ChartRow]:
        return sorted((r for r in self.chart if r.power_w == power_w), key=lambda r: r.time_s)

    def _bracket(self, power_w: float) -> list[tuple[float, float]]:
        """One or two tabulated powers around ``power_w``, with their shares."""
        powers = self.powers_w
        if not math.isfinite(power_w) or not powers[0] * (1 - _SAME) <= power_w <= powers[-1] * (1 + _SAME):
            if len(powers) == 1:
                allowed = f"the chart holds {self.setting(powers[0])} only"
            else:
                allowed = f"the chart covers {powers[0]:g} to {self.setting(powers[-1])}"
            what = f"{_SETTINGS[self.control]} {self.setting(power_w)}"
            raise ChartRangeError(f"{self.name}: {what}, {allowed}; sizes are not extrapolated")
        for p in powers:
            if abs(power_w - p) <= _SAME * p:
                return [(p, 1.0)]
        high = next(p for p in powers if p > power_w)
        low = max(p for p in powers if p < power_w)
        share = (power_w - low) / (high - low)
        return [(low, 1.0 - share), (high, share)]

    def size(self, power_w: float, time_s: float) -> ZoneSize:
        """Zone size at a power and time, bilinear in power and log time between tabulated rows.

        In a chart whose powers cover different times, both powers next to ``power_w`` must cover ``time_s``.

        Raises
        ------
        ChartRangeError
            Outside the chart, with the value and the range.
        """
        total = np.zeros(3)
        for power, share in self._bracket(power_w):
            total += share * self._at(power, time_s, power_w)
        return ZoneSize(*(float(v) for v in total))

    def _at(self, power: float, time_s: float, asked_w: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        rows = self._rows(power)
        times = [r.time_s for r in rows]
        if not math.isfinite(time_s) or not times[0] * (1 - _SAME) <= time_s <= times[-1] * (1 + _SAME):
            first, last = self.time_range_s(asked_w)
            if first == last:
                allowed = f"the chart holds {first:g} s only"
            elif first < last:
                allowed = f"the chart covers {first:g} to {last:g} s"
            else:
                allowed = "the chart's neighbouring powers have no time in common; choose a tabulated power"
            raise ChartRangeError(
                f"{self.name}: time {time_s:g} s at {self.setting(asked_w)}, {allowed}; sizes are not extrapolated"
            )
        sizes = np.array([[r.long_mm, r.short_mm, r.offset_mm] for r in rows])
        x, xs = math.log(time_s), np.log(times)
        return np.array([np.interp(x, xs, sizes[:, c]) for c in range(3)])


def list_applicators() -> tuple[str, ...]:
    """Names of the applicators that ship with the program."""
    return tuple(sorted(p.stem for p in shipped_config("applicators").glob("*.toml")))


def load_applicator(name_or_path: str | Path) -> Applicator:
    """Load a shipped applicator by name (``"emprint"``), or a site's own file by path (``"my/device.toml"``).

    Raises
    ------
    ConfigError
        Unknown name (the known ones are listed), unreadable or invalid file (all mistakes listed).
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml") or "/" in text or "\\" in text:
        return load_toml(Path(name_or_path), Applicator)
    known = list_applicators()
    if text not in known:
        raise ConfigError(
            f"applicator {text!r}", [f"unknown; known: {', '.join(known)}; or give the path of a .toml file"]
        )
    return load_toml(shipped_config("applicators", f"{text}.toml"), Applicator)


def place_zone(applicator: Applicator, power_w: float, time_s: float, ras_from_tip: Rigid) -> EllipsoidZone:
    """The chart's zone on the needle: centre = tip − offset · axis, +Z of the tip frame being the advance.

    Parameters
    ----------
    applicator : Applicator
    power_w, time_s : float
    ras_from_tip : Rigid
        Needle tip in RAS mm.

    Raises
    ------
    ChartRangeError
    """
    return zone_of_size(applicator, power_w, time_s, applicator.size(power_w, time_s), ras_from_tip)


def zone_of_size(
    applicator: Applicator, power_w: float, time_s: float, size: ZoneSize, ras_from_tip: Rigid
) -> EllipsoidZone:
    """As `place_zone`, for a size that was looked up before (every pose, one chart look-up)."""
    axis = np.array(ras_from_tip.rotation[:, 2])
    centre = ras_from_tip.translation - size.offset_mm * axis
    axis.setflags(write=False)
    centre.setflags(write=False)
    return EllipsoidZone(
        centre_ras=centre,
        axis_ras=axis,
        semi_long_mm=0.5 * size.long_mm,
        semi_short_mm=0.5 * size.short_mm,
        tier=0,
        applicator=applicator.name,
        power_w=power_w,
        time_s=time_s,
        basis=applicator.stated_basis,
        citation=applicator.citation,
    )
