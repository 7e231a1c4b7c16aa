"""What published cohorts saw at a margin: shares and ratios of local tumour progression, never a patient's own risk.

Every statement names the cohort, its size and a 95 % interval: of counts by Clopper and Pearson; of a published ratio
per millimetre from its published interval, or from its P value (Altman & Bland 2011, BMJ 343:d2090). Nothing is said
outside a cohort's range of margins, nor beyond 10 mm. Curves of different cohorts differ by 4 to 45 times: they are
shown together or not at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.special import betaincinv, expit, logit, ndtri

from nav.config.load import load_toml, shipped_config

__all__ = [
    "MOST_MARGIN_MM",
    "Cohort",
    "CohortStatement",
    "clopper_pearson",
    "list_cohorts",
    "load_cohort",
    "statements_at",
]

#: No cohort is asked beyond this margin, mm.
MOST_MARGIN_MM = 10.0
_Z = float(ndtri(0.975))

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
Ratio = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Stratum(BaseModel):
    """Tumours with a margin of ``from_mm`` to below ``below_mm`` (or more), and how many of them progressed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    from_mm: float
    below_mm: float | None = None
    events: Count
    n: Annotated[int, Field(gt=0)]

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.events > self.n or (self.below_mm is not None and self.below_mm <= self.from_mm):
            raise ValueError(f"{self.events} of {self.n} with {self.words} is not possible")
        return self

    @property
    def words(self) -> str:
        """The class in words."""
        return f"{self.from_mm:g} mm and more" if self.below_mm is None else f"{self.from_mm:g} to {self.below_mm:g} mm"


class PerMillimetre(BaseModel):
    """A ratio per ``per_mm`` of margin, with its 95 % interval or its P value."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["odds ratio", "hazard ratio"]
    value: Ratio
    per_mm: Ratio = 1.0
    ci95: tuple[Ratio, Ratio] | None = None
    p_value: Share | None = None

    @model_validator(mode="after")
    def _has_an_interval(self) -> Self:
        if (self.ci95 is None) is (self.p_value is None):
            raise ValueError("give ci95 or p_value, one of them: a ratio without an interval is not shown")
        return self

    @property
    def log_slope(self) -> float:
        """Log ratio per mm."""
        return math.log(self.value) / self.per_mm

    @property
    def log_se(self) -> float:
        """Standard error of `log_slope`, per mm."""
        if self.ci95 is not None:
            return math.log(self.ci95[1] / self.ci95[0]) / (2.0 * _Z) / self.per_mm
        assert self.p_value is not None
        return abs(self.log_slope / float(ndtri(0.5 * self.p_value)))


class Curve(BaseModel):
    """logit p = ``intercept`` + ``slope_per_mm`` × margin, fitted to what the cohort published (see ``note``)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    intercept: float
    slope_per_mm: float
    outcome: str
    note: str


class Threshold(BaseModel):
    """Ratio between tumours at or below a margin and those above it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at_mm: float
    kind: str
    value: Ratio
    ci95: tuple[Ratio, Ratio]
    group: str


class Cohort(BaseModel):
    """One published cohort, as in ``configs/cohorts/*.toml``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    citation: str = Field(min_length=1)
    population: str = Field(min_length=1)
    margin_method: str = Field(min_length=1)
    n: Annotated[int, Field(gt=0)]
    events: Count | None = Field(None, description="progressed; absent where the source does not say")
    margin_range_mm: tuple[float, float]
    range_note: str = ""
    strata: tuple[Stratum, ...] = ()
    ratio: tuple[PerMillimetre, ...] = ()
    curve: Curve | None = None
    threshold: tuple[Threshold, ...] = ()
    remark: str = ""

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if not (self.strata or self.ratio or self.threshold):
            raise ValueError("holds no strata, ratio or threshold")
        if self.curve is not None and (len(self.ratio) != 1 or not self.events or self.events >= self.n):
            raise ValueError("a curve needs events and the one ratio whose interval its slope gets")
        if not 0.0 <= self.margin_range_mm[0] < self.margin_range_mm[1] <= MOST_MARGIN_MM:
            raise ValueError(f"margin_range_mm must lie between 0 and {MOST_MARGIN_MM:g} mm")
        return self

    def curve_at(self, margin_mm: float) -> tuple[float, float, float]:
        """Share and 95 % interval on the curve.

        To first order, with the slope's relative error of the published ratio and the intercept known at the margin at
        which the curve gives the cohort's own share, to the logit of its counts (1/events + 1/others).
        """
        assert self.curve is not None
        assert self.events
        centre = (float(logit(self.events / self.n)) - self.curve.intercept) / self.curve.slope_per_mm
        relative = self.ratio[0].log_se / abs(self.ratio[0].log_slope)
        slope_se = relative * abs(self.curve.slope_per_mm)
        variance = 1.0 / self.events + 1.0 / (self.n - self.events) + (slope_se * (margin_mm - centre)) ** 2
        eta = self.curve.intercept + self.curve.slope_per_mm * margin_mm
        half = _Z * math.sqrt(variance)
        return float(expit(eta)), float(expit(eta - half)), float(expit(eta + half))


@dataclass(frozen=True, slots=True)
class CohortStatement:
    """One cohort at one margin: what it saw, or why it says nothing (``refused``)."""

    cohort: str
    citation: str
    population: str
    margin_method: str
    n: int
    events: int | None
    margin_mm: float
    quantity: str
    value: float | None
    ci95: tuple[float, float] | None
    refused: str
    remark: str

    @property
    def text(self) -> str:
        """One line for the person."""
        head = f"{self.cohort} (n = {self.n}" + (")" if self.events is None else f", {self.events} progressed)")
        if self.value is None or self.ci95 is None:
            return f"{head}: nothing said: {self.refused}"
        return f"{head}: {self.quantity} {self.value:.3g}, 95 % CI {self.ci95[0]:.3g} to {self.ci95[1]:.3g}"


def clopper_pearson(events: int, n: int) -> tuple[float, float]:
    """Exact 95 % interval of a share (Clopper & Pearson 1934, Biometrika 26:404)."""
    low = float(betaincinv(events, n - events + 1, 0.025)) if events else 0.0
    high = float(betaincinv(events + 1, n - events, 0.975)) if events < n else 1.0
    return low, high


def list_cohorts() -> tuple[str, ...]:
    """Names of the cohorts that ship with the program."""
    return tuple(sorted(p.stem for p in shipped_config("cohorts").glob("*.toml")))


def load_cohort(name_or_path: str | Path) -> Cohort:
    """A shipped cohort by name, or a site's own file by path.

    Raises
    ------
    nav.config.load.ConfigError
        Unreadable or invalid; all mistakes listed.
    """
    if isinstance(name_or_path, Path):
        return load_toml(name_or_path, Cohort)
    return load_toml(shipped_config("cohorts", f"{name_or_path}.toml"), Cohort)


def statements_at(margin_mm: float, cohorts: tuple[Cohort, ...] | None = None) -> tuple[CohortStatement, ...]:
    """What every cohort (the shipped ones unless given) says at a minimum margin, refusals with their reason included.

    If one cohort's curve does not apply, no curve is shown: side by side they show how little a margin alone tells.
    """
    asked = tuple(load_cohort(name) for name in list_cohorts()) if cohorts is None else cohorts
    curves = [c for c in asked if c.curve is not None]
    silent = [c.name for c in curves if _refusal(c, margin_mm)]
    out: list[CohortStatement] = []
    for cohort in asked:
        why = _refusal(cohort, margin_mm)
        if why:
            out.append(_statement(cohort, margin_mm, "", None, None, why))
            continue
        out += _of_strata(cohort, margin_mm)
        if cohort.curve is not None:
            if silent:
                why = f"the curve of {', '.join(silent)} does not reach this margin; curves are shown together or not"
                out.append(_statement(cohort, margin_mm, "", None, None, why))
            else:
                p, low, high = cohort.curve_at(margin_mm)
                out.append(_statement(cohort, margin_mm, cohort.curve.outcome, p, (low, high), ""))
        else:
            out += _of_ratios(cohort, margin_mm)
        for threshold in cohort.threshold:
            side = "at or below" if margin_mm <= threshold.at_mm else "above"
            quantity = (
                f"{threshold.group}: {threshold.kind} of margins ≤ {threshold.at_mm:g} mm to wider ones "
                f"(this one is {side})"
            )
            out.append(_statement(cohort, margin_mm, quantity, threshold.value, threshold.ci95, ""))
    return tuple(out)


def _refusal(cohort: Cohort, margin_mm: float) -> str:
    low, high = cohort.margin_range_mm
    if not math.isfinite(margin_mm):
        return "there is no margin"
    if margin_mm > MOST_MARGIN_MM:
        return f"a margin of {margin_mm:.1f} mm is beyond {MOST_MARGIN_MM:g} mm, where nothing is extrapolated"
    if not low <= margin_mm <= high:
        return f"a margin of {margin_mm:.1f} mm lies outside the cohort's {low:g} to {high:g} mm"
    return ""


def _statement(
    cohort: Cohort,
    margin_mm: float,
    quantity: str,
    value: float | None,
    ci95: tuple[float, float] | None,
    refused: str,
) -> CohortStatement:
    return CohortStatement(
        cohort.name, cohort.citation, cohort.population, cohort.margin_method, cohort.n, cohort.events, margin_mm,
        quantity, value, ci95, refused, cohort.remark,
    )  # fmt: skip


def _of_strata(cohort: Cohort, margin_mm: float) -> list[CohortStatement]:
    out = []
    for s in cohort.strata:
        if not s.from_mm <= margin_mm < (math.inf if s.below_mm is None else s.below_mm):
            continue
        quantity = f"share that progressed of {s.n} with {s.words} ({s.events})"
        out.append(_statement(cohort, margin_mm, quantity, s.events / s.n, clopper_pearson(s.events, s.n), ""))
    return out


def _of_ratios(cohort: Cohort, margin_mm: float) -> list[CohortStatement]:
    """Relative to a margin of 5 mm, which the cohort must reach."""
    out = []
    for r in cohort.ratio:
        difference = margin_mm - 5.0
        at = r.log_slope * difference
        half = _Z * r.log_se * abs(difference)
        quantity = f"{r.kind} against a margin of 5 mm"
        out.append(
            _statement(cohort, margin_mm, quantity, math.exp(at), (math.exp(at - half), math.exp(at + half)), "")
        )
    return out
