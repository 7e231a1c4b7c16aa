"""The gate: every input's level, code and sentence; the order of reasons."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nav.guidance.gate import GateInputs, GateLimits, evaluate_gate
from nav.guidance.health import StreamHealth
from nav.guidance.numbers import GateState

NEEDLE, REFERENCE, IMAGE = "NeedleToTracker", "ReferenceToTracker", "ultrasound"


def stream(name: str, state: str = "live", age_ms: float = 12.0, kind: str = "pose", detail: str = "") -> StreamHealth:
    return StreamHealth(name, kind, state, 60.0, 60.0, age_ms, 100, 0, 0, 100.0, 250.0, detail)


def streams(**states: str) -> tuple[StreamHealth, ...]:
    return (
        stream(NEEDLE, states.get("needle", "live")),
        stream(REFERENCE, states.get("reference", "live")),
        stream(IMAGE, states.get("image", "live"), kind="image"),
    )


GOOD = GateInputs(
    streams=streams(),
    required=frozenset({NEEDLE, REFERENCE}),
    registration_method="landmarks",
    tre_at_target_mm=0.8,
    fre_mm=0.9,
    tip_calibration="calibrated",
    tip_rms_mm=0.9,
    latency_ms=40.0,
    respiration="declared_hold",
    breath_hold=True,
    guidance_started=True,
    target_set=True,
    tumour_loaded=True,
)


def test_all_well_is_ok_without_reasons() -> None:
    verdict = evaluate_gate(GOOD)
    assert verdict.state is GateState.OK
    assert verdict.reasons == ()


def test_nothing_known_is_blank() -> None:
    verdict = evaluate_gate(GateInputs())
    assert verdict.state is GateState.BLANK
    assert {r.code for r in verdict.reasons} >= {"registration_missing", "tip_uncalibrated", "not_started", "no_target"}


@pytest.mark.parametrize(
    ("change", "state", "code", "words"),
    [
        ({"streams": streams(needle="stale")}, "DEGRADED", f"stream_stale:{NEEDLE}", "ms old"),
        ({"streams": streams(needle="lost")}, "BLANK", f"tool_lost:{NEEDLE}", "line of sight"),
        ({"streams": streams(reference="lost")}, "BLANK", f"tool_lost:{REFERENCE}", "line of sight"),
        ({"streams": streams(needle="link_lost")}, "BLANK", f"link_lost:{NEEDLE}", "Check cable"),
        ({"streams": streams(needle="waiting")}, "BLANK", f"stream_waiting:{NEEDLE}", "nothing received"),
        ({"streams": streams(needle="??")}, "BLANK", f"stream_unknown:{NEEDLE}", "unknown"),
        ({"streams": streams(image="lost")}, "DEGRADED", f"tool_lost:{IMAGE}", "no image"),
        ({"streams": streams(image="link_lost")}, "DEGRADED", f"link_lost:{IMAGE}", "connection lost"),
        ({"streams": streams()[1:]}, "BLANK", f"stream_missing:{NEEDLE}", "no such stream"),
        ({"needle_refusal": "tool_lost", "needle_tool": NEEDLE}, "BLANK", f"tool_lost:{NEEDLE}", "Clear the line"),
        ({"needle_refusal": "gap"}, "BLANK", "gap:needle", "Clear the line"),
        ({"needle_refusal": "too_old"}, "BLANK", "too_old:needle", "too old"),
        ({"needle_refusal": "not_yet"}, "BLANK", "not_yet:needle", "Wait"),
        ({"needle_refusal": "no_pose_yet"}, "BLANK", "no_pose_yet:needle", "Bring the tool"),
        ({"needle_refusal": "something"}, "BLANK", "something:needle", "no pose"),
        ({"registration_method": ""}, "BLANK", "registration_missing", "Collect the landmarks"),
        ({"registration_method": "assumed"}, "DEGRADED", "registration_assumed", "assumed, not measured"),
        ({"tre_at_target_mm": 3.4}, "DEGRADED", "registration_tre", "3.4 mm, limit 3.0 mm"),
        ({"tre_at_target_mm": None}, "DEGRADED", "registration_unknown", "unknown"),
        ({"tre_at_target_mm": float("nan")}, "DEGRADED", "registration_unknown", "unknown"),
        ({"fre_mm": 4.2}, "DEGRADED", "registration_fre", "4.2 mm, limit 3.0 mm"),
        ({"fre_mm": float("nan")}, "DEGRADED", "registration_fre", "fit poorly"),
        ({"order_warning": "Landmarks look swapped"}, "BLANK", "landmark_order", "swapped"),
        ({"registration_age_min": 75.0}, "DEGRADED", "registration_old", "75 min old, limit 60 min"),
        ({"tip_calibration": ""}, "BLANK", "tip_uncalibrated", "Calibrate"),
        ({"tip_calibration": "nominal"}, "DEGRADED", "tip_nominal", "divot"),
        ({"tip_calibration": "assumed"}, "DEGRADED", "tip_assumed", "divot"),
        ({"tip_rms_mm": None}, "DEGRADED", "tip_unknown", "unknown"),
        ({"tip_rms_mm": 3.6}, "DEGRADED", "tip_uncertain", "3.6 mm"),
        ({"latency_ms": 140.0}, "DEGRADED", "latency", "140 ms late, limit 100 ms"),
        ({"breath_hold": False}, "DEGRADED", "breathing", "breath-hold"),
        ({"breath_hold": None}, "DEGRADED", "breathing", "breath-hold"),
        ({"guidance_started": False}, "BLANK", "not_started", "start"),
        ({"target_set": False}, "BLANK", "no_target", "Choose the target"),
        ({"tumour_loaded": False}, "DEGRADED", "no_tumour", "no margin"),
        ({"zone_problem": "power 120 W"}, "DEGRADED", "no_zone", "power 120 W"),
        ({"dead_threads": ("compute",)}, "BLANK", "thread_died:compute", "Do not navigate"),
        ({"faults": ("recorder full",)}, "DEGRADED", "fault:recorder full", "recorder full"),
    ],
)
def test_each_input_alone(change: dict[str, Any], state: str, code: str, words: str) -> None:
    verdict = evaluate_gate(replace(GOOD, **change))
    assert verdict.state is GateState[state]
    assert [r.code for r in verdict.reasons] == [code]
    assert verdict.reasons[0].level is GateState[state]
    assert words in verdict.reasons[0].text


def test_room_without_respiration_needs_no_breath_hold() -> None:
    assert evaluate_gate(replace(GOOD, respiration="none", breath_hold=None)).state is GateState.OK


def test_unknown_latency_is_no_reason() -> None:
    assert evaluate_gate(replace(GOOD, latency_ms=None)).state is GateState.OK


def test_limits_are_those_given() -> None:
    strict = replace(GOOD, limits=GateLimits(max_tre_mm=0.5, max_fre_mm=0.5, latency_ms=20.0))
    codes = {r.code for r in evaluate_gate(strict).reasons}
    assert codes == {"registration_tre", "registration_fre", "latency", "tip_uncertain"}


def test_assumed_registration_is_degraded_and_not_blank_and_says_it_once() -> None:
    verdict = evaluate_gate(
        replace(GOOD, registration_method="assumed", tre_at_target_mm=None, fre_mm=None, tip_rms_mm=None)
    )
    assert verdict.state is GateState.DEGRADED
    assert [r.code for r in verdict.reasons] == ["registration_assumed"]


def test_worst_reason_comes_first_and_all_are_named() -> None:
    verdict = evaluate_gate(
        replace(GOOD, latency_ms=200.0, breath_hold=False, streams=streams(needle="lost"), dead_threads=("recorder",))
    )
    levels = [r.level.value for r in verdict.reasons]
    assert levels == sorted(levels, reverse=True)
    assert verdict.reasons[0].code == "thread_died:recorder"
    assert {r.code for r in verdict.reasons} == {
        "thread_died:recorder",
        f"tool_lost:{NEEDLE}",
        "breathing",
        "latency",
    }


def test_the_same_trouble_seen_twice_is_told_once() -> None:
    """The stream's lamp and the refused lookup name the same lost tool."""
    verdict = evaluate_gate(
        replace(GOOD, streams=streams(needle="lost"), needle_refusal="tool_lost", needle_tool=NEEDLE)
    )
    assert [r.code for r in verdict.reasons] == [f"tool_lost:{NEEDLE}"]


def test_detail_of_a_stream_is_shown() -> None:
    lost = (stream(NEEDLE, "link_lost", detail="connection refused"), *streams()[1:])
    assert "connection refused" in evaluate_gate(replace(GOOD, streams=lost)).reasons[0].text


def test_it_is_said_how_a_lost_connection_comes_back() -> None:
    lost = stream(NEEDLE, "link_lost")
    texts = []
    for one in (lost, replace(lost, reconnects=False)):
        texts.append(evaluate_gate(replace(GOOD, streams=(one, *streams()[1:]))).reasons[0].text)
    assert "it reconnects by itself" in texts[0]
    assert "press K to connect again" in texts[1]
