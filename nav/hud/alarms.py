"""Which alarms stand at a clock reading: from the gate's reasons, the streams, the faults and the measured latency.

Pure, derived anew at each call. Every text names the condition, then what to do.
"""

from __future__ import annotations

from nav.guidance.health import StreamHealth
from nav.guidance.numbers import GateState
from nav.hud.freshness import COMPUTE_LIMIT_MS, NeedleFreshness, is_guiding, needle_streams, ultrasound_stream
from nav.hud.hud_state import Alarm, Freshness
from nav.hud.palette import Level
from nav.runtime.snapshot import NavigationSnapshot

__all__ = ["find_alarms", "worst_by_code"]

_URGENCY = {Level.HIGH: 3, Level.MEDIUM: 2, Level.INFO: 1, Level.OK: 0, Level.OFF: 0}


def worst_by_code(alarms: tuple[Alarm, ...]) -> tuple[Alarm, ...]:
    """One alarm per code (its worst), most urgent first; equals keep their order."""
    best: dict[str, Alarm] = {}
    for alarm in alarms:
        old = best.get(alarm.code)
        if old is None or _URGENCY[alarm.level] > _URGENCY[old.level]:
            best[alarm.code] = alarm
    return tuple(sorted(best.values(), key=lambda a: -_URGENCY[a.level]))


def find_alarms(
    snapshot: NavigationSnapshot | None,
    now_ns: int,
    fresh: NeedleFreshness,
    latency_ms: float | None = None,
    latency_warn_ms: float = 100.0,
) -> tuple[Alarm, ...]:
    """The alarms of one moment, unsorted. Before guidance what blanks the numbers is a step to do, not an alarm."""
    if snapshot is None:
        return ()
    if fresh.cause == "compute":
        silent_s = max(COMPUTE_LIMIT_MS / 1000.0, (now_ns - snapshot.now_ns) / 1e9)
        text = f"Navigation stopped: no result for {silent_s:.1f} s. Hold the needle still; restart if it stays."
        return (Alarm("navigation_stopped", Level.HIGH, text),)
    guiding = is_guiding(snapshot)
    found = [*_streams(snapshot, guiding), *_gate(snapshot, guiding)]
    found += [Alarm(f"fault:{text}", Level.HIGH, text) for text in snapshot.faults]
    if fresh.state is Freshness.LOST and not any(a.level is Level.HIGH for a in found):
        age = "" if fresh.age_ms is None else f" is {fresh.age_ms:.0f} ms old (limit {fresh.lost_ms:.0f} ms)"
        text = f"Needle pose{age or ' is missing'}: numbers withheld. Hold still; clear the tracker's line of sight."
        found.append(Alarm("pose_lost", Level.HIGH, text))
    if fresh.state is Freshness.STALE and not any(a.level in (Level.HIGH, Level.MEDIUM) for a in found):
        age = "stale" if fresh.age_ms is None else f"{fresh.age_ms:.0f} ms old (limit {fresh.stale_ms:.0f} ms)"
        found.append(Alarm("pose_stale", Level.MEDIUM, f"Needle pose is {age}. Hold still until it is fresh again."))
    assumed = snapshot.registration is not None and snapshot.registration.method == "assumed"
    if assumed and not any(a.code.startswith("registration") for a in found):
        text = "Registration is assumed, not measured. Check it on the patient before trusting any number."
        found.append(Alarm("registration_assumed", Level.MEDIUM, text))
    if latency_ms is not None and latency_ms > latency_warn_ms:
        text = f"Picture is {latency_ms:.0f} ms behind the sensor (limit {latency_warn_ms:.0f} ms). Move slowly."
        found.append(Alarm("latency", Level.MEDIUM, text))
    return tuple(found)


def _gate(snapshot: NavigationSnapshot, guiding: bool) -> list[Alarm]:
    levels = (
        {GateState.BLANK: Level.HIGH, GateState.DEGRADED: Level.MEDIUM}
        if guiding
        else {GateState.BLANK: Level.INFO, GateState.DEGRADED: Level.INFO}
    )
    return [Alarm(r.code, levels[r.level], r.text) for r in snapshot.gate.reasons if r.level in levels]


def _streams(snapshot: NavigationSnapshot, guiding: bool) -> list[Alarm]:
    covered = " ".join(r.code for r in snapshot.gate.reasons)
    found: list[Alarm] = []
    needed = needle_streams(snapshot)
    links = [s for s in snapshot.streams if s.state == "link_lost"]
    for stream in needed:
        if stream.state == "link_lost":
            # Before guidance the gate's reasons are steps, but a dead link is worth an alarm at any time.
            if guiding and stream.name in covered:
                continue
            level = Level.HIGH if guiding else Level.MEDIUM
            why, back = _why(stream), stream.reconnect_text
            text = f"Tracker link lost ({why}). Check the tracker's server and cable; {back}."
            found.append(Alarm(f"link_lost:{stream.name}", level, text))
        elif stream.state == "lost" and stream.name not in covered and guiding:
            text = f"{stream.name} lost ({_why(stream)}). Hold still; clear the tracker's line of sight."
            found.append(Alarm(f"tool_lost:{stream.name}", Level.HIGH, text))
    ultrasound = ultrasound_stream(snapshot)
    if ultrasound is not None and ultrasound.name not in covered:
        if ultrasound in links:
            why, back = _why(ultrasound), ultrasound.reconnect_text
            text = f"Ultrasound link lost ({why}). Check the scanner's server; {back}."
            found.append(Alarm(f"ultrasound:{ultrasound.name}", Level.MEDIUM, text))
        elif ultrasound.state == "lost":
            text = f"Ultrasound lost ({_why(ultrasound)}). Unfreeze the scanner or check its connection."
            found.append(Alarm(f"ultrasound:{ultrasound.name}", Level.MEDIUM, text))
    return found


def _why(stream: StreamHealth) -> str:
    return stream.detail or "no detail"
