"""The gate: may the numbers be shown? OK → DEGRADED → BLANK, each reason with its code and what to do.

Every check adds reasons and none takes one away, and the worst reason decides: more trouble never loosens the gate
(the idea of AndroidAPS' constraints). The checks are independent of each other and of any earlier verdict.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from nav.guidance.health import StreamHealth
from nav.guidance.numbers import GateReason, GateState, GateVerdict

__all__ = ["GateInputs", "GateLimits", "evaluate_gate"]

_BLANK = GateState.BLANK
_DEGRADED = GateState.DEGRADED


@dataclass(frozen=True, slots=True)
class GateLimits:
    """Limits above which numbers are degraded. Defaults as in `nav.config.room`."""

    max_tre_mm: float = 3.0
    max_fre_mm: float = 3.0
    registration_age_min: float = 60.0
    latency_ms: float = 100.0


@dataclass(frozen=True, slots=True)
class GateInputs:
    """Everything the gate looks at, at one moment.

    Attributes
    ----------
    streams : tuple of StreamHealth
        Streams that matter; the others are not handed over.
    required : frozenset of str
        Names among them without which there is no needle (needle, reference): their loss blanks. The others only
        degrade.
    needle_refusal : str
        Empty when there is a pose, else the code of the refusal (``tool_lost``, ``gap``, ``too_old``, ``not_yet``,
        ``no_pose_yet``): any refusal blanks.
    needle_tool : str
        The transform or tool that the refusal is about.
    registration_method : str
        Empty: none. ``landmarks``, ``file`` or ``assumed``.
    tre_at_target_mm, fre_mm : float or None
        None when unknown.
    order_warning : str
        Text of the landmark order check; empty when there is nothing to warn of.
    registration_age_min : float
    tip_calibration : str
        ``calibrated``, ``nominal``, ``assumed``, or empty: none.
    tip_rms_mm : float or None
        Whole uncertainty of the tip; None when it cannot be stated.
    latency_ms : float or None
        Sensor to now, for the poses in use; None when the sender stamps nothing and it cannot be known.
    respiration : str
        ``none`` (not monitored) or ``declared_hold``.
    breath_hold : bool or None
        As declared by the operator.
    guidance_started, target_set, tumour_loaded : bool
    zone_problem : str
        Why there is no zone (power outside the chart); empty when there is one.
    dead_threads : tuple of str
        Threads that have died: each blanks.
    faults : tuple of str
        Other faults (a full recorder): each degrades.
    """

    streams: tuple[StreamHealth, ...] = ()
    required: frozenset[str] = frozenset()
    needle_refusal: str = ""
    needle_tool: str = "needle"
    registration_method: str = ""
    tre_at_target_mm: float | None = None
    fre_mm: float | None = None
    order_warning: str = ""
    registration_age_min: float = 0.0
    tip_calibration: str = ""
    tip_rms_mm: float | None = None
    latency_ms: float | None = None
    respiration: Literal["none", "declared_hold"] = "none"
    breath_hold: bool | None = None
    guidance_started: bool = False
    target_set: bool = False
    tumour_loaded: bool = False
    zone_problem: str = ""
    dead_threads: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    limits: GateLimits = GateLimits()


def evaluate_gate(inputs: GateInputs) -> GateVerdict:
    """The verdict: the worst reason's state, and every reason, worst first (in order of the checks within a state)."""
    reasons: list[GateReason] = []
    reasons += _threads(inputs)
    reasons += _streams(inputs)
    reasons += _needle(inputs)
    reasons += _registration(inputs)
    reasons += _calibration(inputs)
    reasons += _setup(inputs)
    reasons += _quality(inputs)
    reasons.sort(key=lambda r: -r.level.value)
    # The same trouble seen by two checks (a stream's lamp and a refused look-up) is told once, at its worst level.
    once = {r.code: r for r in reversed(reasons)}
    told = tuple(r for r in reasons if once[r.code] is r)
    return GateVerdict(told[0].level if told else GateState.OK, told)


def _threads(g: GateInputs) -> list[GateReason]:
    out = [
        GateReason(f"thread_died:{name}", _BLANK, f"Internal fault: {name} has stopped. Do not navigate; restart")
        for name in g.dead_threads
    ]
    return out + [GateReason(f"fault:{text}", _DEGRADED, f"Fault: {text}") for text in g.faults]


_STREAM_TEXT = {
    "waiting": ("stream_waiting", "{name}: nothing received yet. Check that its source runs and sends {name}"),
    "stale": ("stream_stale", "{name}: data {age:.0f} ms old. Hold still; check the connection if it stays"),
    "lost": ("tool_lost", "{name} lost for {age:.0f} ms. Clear the line of sight"),
    "link_lost": ("link_lost", "{name}: connection lost. Check cable and server; {back}"),
}
_IMAGE_LOST = "{name}: no image for {age:.0f} ms. Check the image source"


def _streams(g: GateInputs) -> list[GateReason]:
    out = []
    for stream in g.streams:
        out += [GateReason(f"{f.code}:{stream.name}", _DEGRADED, f"{stream.name}: {f.text}") for f in stream.findings]
        if stream.state == "live":
            continue
        # A state this gate does not know is taken as the worst.
        code, text = _STREAM_TEXT.get(stream.state, ("stream_unknown", "{name}: state unknown. Restart its source"))
        if stream.state == "lost" and "image" in stream.kind:
            text = _IMAGE_LOST
        age = stream.age_ms if math.isfinite(stream.age_ms) else 0.0
        level = _DEGRADED if stream.state == "stale" or stream.name not in g.required else _BLANK
        message = text.format(name=stream.name, age=age, back=stream.reconnect_text)
        if stream.detail:
            message += f" ({stream.detail})"
        out.append(GateReason(f"{code}:{stream.name}", level, message))
    present = {s.name for s in g.streams}
    for name in sorted(g.required - present):
        out.append(GateReason(f"stream_missing:{name}", _BLANK, f"{name}: no such stream. Correct the room's streams"))
    return out


_REFUSAL_TEXT = {
    "no_pose_yet": "{tool}: no pose yet. Bring the tool into the tracker's view",
    "too_old": "{tool}: newest pose is too old. Clear the line of sight; check the connection",
    "not_yet": "{tool}: no common pose yet. Wait; check the connection if it stays",
    "gap": "{tool}: poses missing. Clear the line of sight",
    "tool_lost": "{tool} lost. Clear the line of sight",
}


def _needle(g: GateInputs) -> list[GateReason]:
    if not g.needle_refusal:
        return []
    text = _REFUSAL_TEXT.get(g.needle_refusal, "{tool}: no pose. Check the tracker")
    return [GateReason(f"{g.needle_refusal}:{g.needle_tool}", _BLANK, text.format(tool=g.needle_tool))]


def _registration(g: GateInputs) -> list[GateReason]:
    limits = g.limits
    if not g.registration_method:
        return [GateReason("registration_missing", _BLANK, "Not registered to the CT. Collect the landmarks and apply")]
    out = []
    if g.order_warning:
        out.append(GateReason("landmark_order", _BLANK, g.order_warning))
    if g.registration_method == "assumed":
        out.append(
            GateReason("registration_assumed", _DEGRADED, "Registration is assumed, not measured. Register landmarks")
        )
    elif g.tre_at_target_mm is None or math.isnan(g.tre_at_target_mm):
        out.append(
            GateReason(
                "registration_unknown", _DEGRADED, "Accuracy of the registration is unknown. Check it on a known point"
            )
        )
    if g.tre_at_target_mm is not None and g.tre_at_target_mm > limits.max_tre_mm:
        out.append(
            GateReason(
                "registration_tre",
                _DEGRADED,
                f"Registration is poor: TRE at the target {g.tre_at_target_mm:.1f} mm, "
                f"limit {limits.max_tre_mm:.1f} mm. Add landmarks around the target",
            )
        )
    if g.fre_mm is not None and not g.fre_mm <= limits.max_fre_mm:
        out.append(
            GateReason(
                "registration_fre",
                _DEGRADED,
                f"Landmarks fit poorly: FRE {g.fre_mm:.1f} mm, limit {limits.max_fre_mm:.1f} mm. "
                "Collect the worst again",
            )
        )
    if not g.registration_age_min <= limits.registration_age_min:
        out.append(
            GateReason(
                "registration_old",
                _DEGRADED,
                f"Registration is {g.registration_age_min:.0f} min old, limit {limits.registration_age_min:.0f} min. "
                "Check a landmark or register again",
            )
        )
    return out


def _calibration(g: GateInputs) -> list[GateReason]:
    if g.tip_calibration == "calibrated":
        return []
    if g.tip_calibration in ("nominal", "assumed"):
        text = f"Needle tip calibration is {g.tip_calibration}. Check the tip on a divot"
        return [GateReason(f"tip_{g.tip_calibration}", _DEGRADED, text)]
    return [
        GateReason("tip_uncalibrated", _BLANK, "Needle tip is not calibrated. Calibrate it or choose its calibration")
    ]


def _setup(g: GateInputs) -> list[GateReason]:
    out = []
    if not g.guidance_started:
        out.append(GateReason("not_started", _BLANK, "Guidance has not been started. Finish the set-up and start"))
    if not g.target_set:
        out.append(GateReason("no_target", _BLANK, "No target is set. Choose the target"))
    if not g.tumour_loaded:
        out.append(GateReason("no_tumour", _DEGRADED, "No tumour is loaded: no margin. Load or pick the tumour"))
    if g.zone_problem:
        out.append(GateReason("no_zone", _DEGRADED, f"No ablation zone: {g.zone_problem}. Change power or time"))
    return out


def _quality(g: GateInputs) -> list[GateReason]:
    limits = g.limits
    out = []
    if g.respiration == "declared_hold" and g.breath_hold is not True:
        out.append(GateReason("breathing", _DEGRADED, "The patient breathes. Ask for a breath-hold, then declare it"))
    if g.latency_ms is not None and not g.latency_ms <= limits.latency_ms:
        out.append(
            GateReason(
                "latency",
                _DEGRADED,
                f"Poses are {g.latency_ms:.0f} ms late, limit {limits.latency_ms:.0f} ms. "
                "Advance slowly; check the load",
            )
        )
    if g.tip_rms_mm is None or math.isnan(g.tip_rms_mm):
        # Without a registration or with an assumed one this is said there already.
        if g.registration_method not in ("", "assumed"):
            out.append(
                GateReason("tip_unknown", _DEGRADED, "Uncertainty of the tip is unknown. Verify against an image")
            )
    elif g.tip_rms_mm > limits.max_tre_mm:
        out.append(
            GateReason(
                "tip_uncertain",
                _DEGRADED,
                f"Tip uncertainty {g.tip_rms_mm:.1f} mm, limit {limits.max_tre_mm:.1f} mm. Verify against an image",
            )
        )
    return out
