"""From the newest snapshot and a clock reading to everything the screen shows: one pure function, no Qt.

Nothing is sticky. Each call derives every lamp, number, border and message from its arguments alone, so that a
recovered stream leaves nothing red behind and a dead compute thread cannot leave a number standing.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from nav.ablation.margin import WANTED_MM
from nav.ablation.zone import NeedleZone, Zone
from nav.guidance.numbers import GateState
from nav.hud.alarms import find_alarms, worst_by_code
from nav.hud.freshness import (
    NeedleFreshness,
    image_streams,
    is_guiding,
    needle_freshness,
    needle_streams,
    stream_age_ms,
    tool_streams,
    ultrasound_stream,
    ultrasound_visible,
)
from nav.hud.hud_state import Alarm, BullseyeState, Freshness, HudState, Lamp, Message, PaneStatus, Readout
from nav.hud.numbers_text import BLANK, Shown, format_value
from nav.hud.palette import GLYPH, Level
from nav.hud.streams_text import stream_lines
from nav.runtime.snapshot import AblationTimer, NavigationSnapshot

__all__ = ["ALIGNED_MM", "FLASH_HZ", "present", "zone_label"]

#: Inside this distance of the planned line, tip and hub count as aligned (the tinted disc of the bull's-eye).
ALIGNED_MM = 2.0

#: Flashing of unacknowledged alarms (practice of IEC 60601-1-8: high 1.4 to 2.8 Hz, medium 0.4 to 0.8 Hz).
FLASH_HZ: dict[Level, float] = {Level.HIGH: 2.0, Level.MEDIUM: 0.6}

#: What a zone rests on. A chart is the manufacturer's: no word of a prediction stands beside it.
_TIER_LABEL = {
    0: "CHART (manufacturer reference)",
    1: "TIER 1",
    2: "TIER 2 in 3-D, with vessels",
}


def present(
    snapshot: NavigationSnapshot | None,
    now_ns: int,
    *,
    acknowledged: frozenset[str] = frozenset(),
    shown: Mapping[str, float] = MappingProxyType({}),
    latency_ms: float | None = None,
    latency_warn_ms: float = 100.0,
    local_alarms: tuple[Alarm, ...] = (),
    zone_work: str = "",
) -> HudState:
    """Everything the screen shows at ``now_ns``.

    Parameters
    ----------
    snapshot : NavigationSnapshot or None
        The newest one; None before the first.
    now_ns : int
        Local monotonic clock, the one the snapshot's times are in.
    acknowledged : frozenset of str
        `HudState.acknowledged` of the call before, plus what was acknowledged since.
    shown : mapping
        `HudState.shown` of the call before (hysteresis of the numbers).
    latency_ms : float or None
        Measured age of the poses at the end of paint, p95 of the last second.
    latency_warn_ms : float
        Above this the latency lamp and an alarm say so.
    local_alarms : tuple of Alarm
        Conditions that only the window knows (a picture that could not be drawn).
    zone_work : str
        What zone is being computed beside the live path, and how far it is.
    """
    fresh = needle_freshness(snapshot, now_ns)
    if latency_ms is not None and fresh.state is not Freshness.NORMAL:
        latency_ms = None  # Measured on poses that are not shown any more.
    alarms = find_alarms(snapshot, now_ns, fresh, latency_ms, latency_warn_ms) + local_alarms
    alarms = worst_by_code(alarms)
    standing = acknowledged & {a.code for a in alarms}
    numbers = Shown(dict(shown))
    alive = snapshot if snapshot is not None and fresh.cause != "compute" else None
    trusted = alive if fresh.needle_shown and alive is not None and alive.gate.state is not GateState.BLANK else None
    guiding = snapshot is not None and is_guiding(snapshot)
    message = _message(alarms, standing, alive, snapshot is None)
    return HudState(
        now_ns=now_ns,
        lamps=_lamps(alive, snapshot, now_ns, fresh, alarms, standing, latency_ms, latency_warn_ms),
        readouts=_readouts(trusted, alive, numbers, zone_work),
        panes=_pane_status(alive, now_ns, fresh),
        bullseye=_bullseye(trusted, numbers),
        message=message,
        alarms=alarms,
        acknowledged=standing,
        shown=MappingProxyType(numbers.now),
        flash_on=_flash_on(now_ns, message.level),
        guiding=guiding,
        ablating=alive is not None and alive.ablation is not None and alive.ablation.running,
        recording=alive is not None and alive.recording,
        sequence=-1 if snapshot is None else snapshot.sequence,
    )


def _flash_on(now_ns: int, level: Level) -> bool:
    hz = FLASH_HZ.get(level)
    return True if hz is None else (now_ns / 1e9 * hz) % 1.0 < 0.5


# -- message line ------------------------------------------------------------------------------------------------


def _message(
    alarms: tuple[Alarm, ...], standing: frozenset[str], snapshot: NavigationSnapshot | None, starting: bool
) -> Message:
    loud = [a for a in alarms if a.level in (Level.HIGH, Level.MEDIUM)]
    if loud:
        # Alarms come sorted, worst first; among equals one that nobody has acknowledged goes first.
        top = loud[0].level
        same = [a for a in loud if a.level is top]
        first = next((a for a in same if a.code not in standing), same[0])
        return Message(first.level, first.text, first.code, first.code not in standing, len(loud))
    if starting:
        return Message(Level.INFO, "Starting: waiting for the first result of the compute thread.", "starting")
    note = next((a for a in alarms if a.level is Level.INFO), None)
    if snapshot is not None and snapshot.setup.message:
        return Message(Level.INFO, snapshot.setup.message, "setup_message")
    if snapshot is not None and snapshot.setup.next_action and not is_guiding(snapshot):
        return Message(Level.INFO, snapshot.setup.next_action, "next_step")
    if note is not None:
        return Message(Level.INFO, note.text, note.code)
    if snapshot is not None and snapshot.setup.next_action:
        return Message(Level.OK, snapshot.setup.next_action, "next_step")
    return Message(Level.OK, "Guidance is running.", "running")


# -- panes and bull's-eye ----------------------------------------------------------------------------------------


def _pane_status(alive: NavigationSnapshot | None, now_ns: int, fresh: NeedleFreshness) -> PaneStatus:
    us = ultrasound_visible(alive, now_ns)
    age = "" if fresh.age_ms is None else f" {min(fresh.age_ms, 9999.0):.0f} ms"
    if fresh.state is Freshness.NORMAL:
        banner, level = "", Level.OK
    elif fresh.state is Freshness.STALE:
        banner, level = f"! STALE{age}", Level.MEDIUM
    elif fresh.state is Freshness.LOST:
        what = {"compute": "NAVIGATION STOPPED", "link": "TRACKER LINK LOST", "waiting": "NO NEEDLE"}
        banner, level = f"{GLYPH[Level.HIGH]} {what.get(fresh.cause, 'NEEDLE LOST')}", Level.HIGH
    else:
        what = {
            "start": "STARTING",
            "link": "NO TRACKER LINK",
            "tool": "NEEDLE NOT IN VIEW",
            "age": "NEEDLE NOT IN VIEW",
            "waiting": "NO NEEDLE YET",
        }
        banner, level = what.get(fresh.cause, "NO NEEDLE: NOT REGISTERED"), Level.INFO
        if fresh.cause == "gate" and alive is not None and alive.registration is not None:
            banner = "NEEDLE WITHHELD"
    return PaneStatus(fresh.state, banner, level, fresh.needle_shown, us, fresh.lost_ms)


def _bullseye(trusted: NavigationSnapshot | None, numbers: Shown) -> BullseyeState:
    if trusted is None or trusted.guidance is None:
        return BullseyeState(False)
    g = trusted.guidance
    tip = (float(g.tip_offset_mm[0]), float(g.tip_offset_mm[1]))
    hub = (float(g.hub_offset_mm[0]), float(g.hub_offset_mm[1]))
    aligned = max(tip[0] ** 2 + tip[1] ** 2, hub[0] ** 2 + hub[1] ** 2) <= ALIGNED_MM**2
    depth = numbers.now.get("depth", round(g.depth_mm, 1))
    if depth > 0.0:
        words = f"{format_value(depth)} mm to go"
    elif depth < 0.0:
        words = f"{format_value(-depth)} mm past"
    else:
        words = "at target depth"
    return BullseyeState(True, tip, hub, float(g.depth_mm), aligned, words)


# -- readouts ----------------------------------------------------------------------------------------------------


def _readouts(
    trusted: NavigationSnapshot | None, alive: NavigationSnapshot | None, numbers: Shown, zone_work: str
) -> tuple[Readout, ...]:
    g = trusted.guidance if trusted is not None else None
    u = trusted.uncertainty if trusted is not None else None

    def plain(
        key: str, title: str, value: float | None, unit: str, detail: str = "", *, signed: bool = False
    ) -> Readout:
        text = format_value(numbers.settle(key, value), signed=signed)
        return Readout(key, title, text, unit, Level.OFF if text == BLANK else Level.OK, detail)

    tip = plain("tip_to_target", "TIP \u2192 TARGET", g.tip_to_target_mm if g else None, "mm")
    surface = ""
    if g is not None and g.tip_to_surface_mm is not None:
        inside = g.tip_to_surface_mm < 0.0
        settled = numbers.settle("surface", abs(g.tip_to_surface_mm))
        surface = f"tip {format_value(settled)} mm {'inside' if inside else 'outside'} tumour"
    depth = plain("depth", "DEPTH TO GO", g.depth_mm if g else None, "mm", signed=True)
    if g is not None and numbers.now.get("depth", 0.0) < 0.0:
        depth = Readout(depth.key, depth.title, depth.value, depth.unit, Level.MEDIUM, "past the target", "!")
    # The angle makes room for the timer: once the power is on, the needle stays where it is.
    timer = alive.ablation if alive is not None else None
    angle = plain("angle", "ANGLE TO PLAN", g.angle_deg if g else None, "\u00b0")
    if timer is not None:
        angle = _timer(timer, alive.made_margin_mm if alive is not None else None)
    return (
        Readout(tip.key, tip.title, tip.value, tip.unit, tip.level, surface, big=True),
        _margin(trusted, numbers, zone_work),
        plain("lateral", "LATERAL", g.lateral_mm if g else None, "mm"),
        depth,
        angle,
        _uncertainty(u.rms_mm if u else None, u.radius95_mm if u else None, bool(u and u.calibrated), numbers),
        _coverage(trusted, numbers),
    )


def _timer(timer: AblationTimer, made_margin_mm: float | None) -> Readout:
    """The ablation as it was declared. It goes on without a needle: so does the power."""
    title, value = "ABLATION", _minutes(timer.elapsed_s)
    planned = f"of {_minutes(timer.time_s)} planned"
    if not timer.running:
        made = "" if made_margin_mm is None else f" \u00b7 made: margin {format_value(made_margin_mm, signed=True)} mm"
        return Readout("ablation", title, value, "min", Level.OFF, f"ended, {planned}{made}")
    if timer.elapsed_s > timer.time_s:
        return Readout("ablation", title, value, "min", Level.MEDIUM, f"time is over, {planned}", "!")
    return Readout("ablation", title, value, "min", Level.OK, f"running, {planned}")


def _minutes(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 60}:{whole % 60:02d}"


def zone_label(zone: Zone) -> str:
    """What a zone rests on."""
    label = _TIER_LABEL[zone.tier]
    if isinstance(zone, NeedleZone):
        return f"{label}, {'no vessels' if zone.cut is None else 'vessels by rule'}"
    return label


def _margin(trusted: NavigationSnapshot | None, numbers: Shown, zone_work: str) -> Readout:
    margin = trusted.margin if trusted is not None else None
    zone = trusted.zone if trusted is not None else None
    title = "MIN MARGIN" if zone is None else "PREDICTED MIN MARGIN" if zone.tier > 0 else "MIN MARGIN TO THE CHART"
    if zone_work:
        title = f"{title} \u00b7 {zone_work}"
    if margin is None or zone is None:
        return Readout("margin", title, BLANK, "mm", Level.OFF, big=True)
    value = numbers.settle("margin", margin.min_margin_mm)
    sigma = numbers.settle("margin_sigma", margin.sigma_mm)
    text = format_value(value, signed=True)
    # With an assumed registration its error is unknown: what is known is a lower bound, and no margin is called good.
    known = trusted is not None and trusted.uncertainty is not None and trusted.uncertainty.calibrated
    # Nor where no source says where along the needle the zone lies.
    assumed = trusted is not None and trusted.setting is not None and trusted.setting.place_assumed
    known = known and not assumed
    bound = "" if known else "at least "
    spread = f"\u00b1 {bound}{format_value(2.0 * sigma if sigma is not None else None)} (2\u03c3)"
    basis = zone_label(zone)
    if assumed:
        basis = f"{basis}, place on needle ASSUMED"
    chance = margin.chance
    # A chart states no error of its own, so its chance would be that of a chart that is right: not on the screen.
    if chance is not None and not chance.of_chart and known:
        percent = format_value(numbers.settle("margin_chance", 100.0 * chance.p_ge5), decimals=0)
        basis = f"{basis} \u00b7 P(\u2265 {WANTED_MM:.0f} mm) {percent} %"
    if text == BLANK:
        return Readout("margin", title, BLANK, "mm", Level.OFF, "", big=True)
    # Level and word follow the computed margin, not the settled one: hysteresis must not turn outside into inside.
    if margin.min_margin_mm < 0.0:
        level, glyph, word = Level.HIGH, GLYPH[Level.HIGH], "tumour outside zone"
    elif margin.min_margin_mm < WANTED_MM:
        level, glyph, word = Level.MEDIUM, "\u25b2", f"below {WANTED_MM:.0f} mm"
    elif not known or not margin.min_margin_mm - 2.0 * margin.sigma_mm >= 0.0:
        level, glyph, word = Level.MEDIUM, "\u25b2", "not certain"
    else:
        level, glyph, word = Level.OK, GLYPH[Level.OK], f"{WANTED_MM:.0f} mm or more"
    return Readout("margin", title, text, "mm", level, f"{spread} \u00b7 {word}\n{basis}", glyph, big=True)


def _uncertainty(rms_mm: float | None, radius95_mm: float | None, calibrated: bool, numbers: Shown) -> Readout:
    title = "UNCERTAINTY 1\u03c3"
    value = numbers.settle("uncertainty", rms_mm)
    if value is None or radius95_mm is None:
        return Readout("uncertainty", title, BLANK, "mm", Level.OFF)
    radius = format_value(numbers.settle("radius95", radius95_mm))
    if not calibrated:
        return Readout(
            "uncertainty",
            title,
            f"\u2265 {format_value(value)}",
            "mm",
            Level.MEDIUM,
            "rests on assumptions: real error unknown",
            "!",
        )
    return Readout("uncertainty", title, format_value(value), "mm", Level.OK, f"95 % within {radius} mm")


def _coverage(trusted: NavigationSnapshot | None, numbers: Shown) -> Readout:
    margin = trusted.margin if trusted is not None else None
    value = numbers.settle("coverage", None if margin is None else 100.0 * margin.coverage)
    text = format_value(value)
    if text == BLANK:
        return Readout("coverage", "COVERAGE", BLANK, "%", Level.OFF)
    return Readout("coverage", "COVERAGE", text, "%", Level.OK, "of tumour + 5 mm")


# -- lamps -------------------------------------------------------------------------------------------------------


def _lamps(
    alive: NavigationSnapshot | None,
    newest: NavigationSnapshot | None,
    now_ns: int,
    fresh: NeedleFreshness,
    alarms: tuple[Alarm, ...],
    standing: frozenset[str],
    latency_ms: float | None,
    latency_warn_ms: float,
) -> tuple[Lamp, ...]:
    stopped = newest is not None and alive is None
    unacknowledged = {a.code for a in alarms if a.level in (Level.HIGH, Level.MEDIUM)} - standing

    def lamp(key: str, title: str, level: Level, text: str, codes: tuple[str, ...] = (), detail: str = "") -> Lamp:
        flashing = level in (Level.HIGH, Level.MEDIUM) and any(_about(c, codes) for c in unacknowledged)
        return Lamp(key, title, level, text, GLYPH[level], flashing, detail)

    if alive is None:
        text = "stopped" if stopped else "\u2013"
        level = Level.HIGH if stopped else Level.OFF
        titles = (
            ("tracker", "TRACKER"),
            ("registration", "REGISTRATION"),
            ("ultrasound", "ULTRASOUND"),
            ("respiration", "RESPIRATION"),
            ("latency", "LATENCY"),
            ("record", "RECORD"),
        )
        return tuple(lamp(key, title, level, text, ("navigation_stopped",)) for key, title in titles)
    chain = tuple(f":{s.name}" for s in needle_streams(alive))
    stream = ultrasound_stream(alive)
    image = () if stream is None else (f":{stream.name}",)
    return (
        lamp(
            "tracker", "TRACKER", *_tracker(alive, now_ns, fresh), (*chain, "pose_"), stream_lines(tool_streams(alive))
        ),
        lamp("registration", "REGISTRATION", *_registration(alive, now_ns, alarms), ("registration", "landmark_order")),
        lamp("ultrasound", "ULTRASOUND", *_ultrasound(alive, now_ns), image, stream_lines(image_streams(alive))),
        lamp("respiration", "RESPIRATION", *_respiration(alive, alarms), ("breathing",)),
        lamp("latency", "LATENCY", *_latency(latency_ms, latency_warn_ms), ("latency",)),
        lamp("record", "RECORD", *_record(alive), ("fault:record",)),
    )


def _about(code: str, patterns: tuple[str, ...]) -> bool:
    """Does an alarm concern a lamp: by the stream at its end (``:NeedleToTracker``) or by its beginning."""
    return any(code.endswith(p) if p.startswith(":") else code.startswith(p) for p in patterns)


def _tracker(snapshot: NavigationSnapshot, now_ns: int, fresh: NeedleFreshness) -> tuple[Level, str]:
    streams = needle_streams(snapshot)
    if not streams:
        return Level.OFF, "no stream"
    # The stream in the worst state speaks for the chain; among equals the older one.
    order = {"link_lost": 4, "lost": 3, "stale": 2, "waiting": 1, "live": 0}
    worst = max(streams, key=lambda s: (order.get(s.state, 0), s.age_ms))
    age_ms = stream_age_ms(worst, snapshot, now_ns)
    if worst.state == "link_lost":
        return Level.HIGH, "link lost"
    if worst.state == "waiting":
        return Level.OFF, "waiting"
    if worst.state == "lost" or age_ms > fresh.lost_ms:
        return (Level.HIGH if is_guiding(snapshot) else Level.INFO), f"lost {_span(age_ms)}"
    text = f"{worst.rate_hz:.0f} Hz \u00b7 {min(age_ms, 999.0):.0f} ms"
    doubtful = worst.state == "stale" or age_ms > fresh.stale_ms or any(s.findings for s in streams)
    return (Level.MEDIUM if doubtful else Level.OK), text


def _span(age_ms: float) -> str:
    seconds = age_ms / 1000.0
    if not seconds < 1e6:
        return "\u2013"
    return f"{seconds:.1f} s" if seconds < 60.0 else f"{seconds / 60.0:.0f} min"


def _registration(snapshot: NavigationSnapshot, now_ns: int, alarms: tuple[Alarm, ...]) -> tuple[Level, str]:
    reg = snapshot.registration
    if reg is None:
        return Level.OFF, "none"
    minutes = max(0.0, (now_ns - reg.made_ns) / 60e9)
    if reg.method == "assumed":
        return Level.MEDIUM, "ASSUMED"
    if reg.tre_at_target_mm is not None:
        error = f"TRE {format_value(reg.tre_at_target_mm)} mm"
    elif reg.fre_mm is not None:
        error = f"FRE {format_value(reg.fre_mm)} mm"
    else:
        error = "from file"
    levels = [a.level for a in alarms if a.code.startswith(("registration", "landmark_order"))]
    level = Level.OK
    if reg.warning or Level.MEDIUM in levels:
        level = Level.MEDIUM
    if Level.HIGH in levels:
        level = Level.HIGH
    return level, f"{error} \u00b7 {minutes:.0f} min"


def _ultrasound(snapshot: NavigationSnapshot, now_ns: int) -> tuple[Level, str]:
    stream = ultrasound_stream(snapshot)
    if stream is None:
        return Level.OFF, "none"
    age_ms = stream_age_ms(stream, snapshot, now_ns)
    if stream.state == "link_lost":
        return Level.MEDIUM, "link lost"
    if stream.state == "waiting":
        return Level.OFF, "waiting"
    if stream.state == "lost" or age_ms > stream.lost_ms:
        return Level.MEDIUM, f"lost {_span(age_ms)}"
    text = f"{stream.rate_hz:.0f} fps \u00b7 {min(age_ms, 999.0):.0f} ms"
    doubtful = stream.state == "stale" or age_ms > stream.stale_ms or bool(stream.findings)
    return (Level.MEDIUM if doubtful else Level.OK), text


def _respiration(snapshot: NavigationSnapshot, alarms: tuple[Alarm, ...]) -> tuple[Level, str]:
    if snapshot.breath_hold is None:
        return Level.OFF, "not monitored"
    if snapshot.breath_hold:
        return Level.OK, "breath held"
    gated = any(a.code == "breathing" and a.level is not Level.INFO for a in alarms)
    return (Level.MEDIUM if gated else Level.INFO), "free breathing"


def _latency(latency_ms: float | None, warn_ms: float) -> tuple[Level, str]:
    if latency_ms is None:
        return Level.OFF, BLANK
    return (Level.MEDIUM if latency_ms > warn_ms else Level.OK), f"{min(latency_ms, 999.0):.0f} ms to paint"


def _record(snapshot: NavigationSnapshot) -> tuple[Level, str]:
    if any("record" in fault.lower() for fault in snapshot.faults):
        return Level.HIGH, "fault"
    return (Level.OK, "recording") if snapshot.recording else (Level.OFF, "off")
