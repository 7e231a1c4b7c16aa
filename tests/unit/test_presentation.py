"""The presentation state under a manual clock: freshness, alarms, recovery, signs, hysteresis."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import MappingProxyType

import numpy as np
import pytest

from nav.ablation.zone import EllipsoidZone, MarginChance
from nav.guidance.health import StreamClock, StreamFinding
from nav.guidance.numbers import GateReason, GateState, GateVerdict
from nav.hud.alarms import worst_by_code
from nav.hud.bullseye import clamp_to_rim
from nav.hud.hud_state import Alarm, Freshness, HudState, Lamp, Readout
from nav.hud.numbers_text import MINUS, Shown, format_value
from nav.hud.palette import Level
from nav.hud.presentation import present
from nav.hud.streams_text import stream_line
from nav.runtime.snapshot import AblationTimer, PlacedZone
from tests.hud.fakes import (
    ALL_STEPS,
    MS,
    T0,
    blanked,
    lost_snapshot,
    numbers,
    setup_snapshot,
    snapshot,
    stream,
)


def lamp(state: HudState, key: str) -> Lamp:
    return next(x for x in state.lamps if x.key == key)


def readout(state: HudState, key: str) -> Readout:
    return next(x for x in state.readouts if x.key == key)


def values(state: HudState) -> list[str]:
    return [r.value for r in state.readouts]


# -- freshness -----------------------------------------------------------------------------------------------------


def test_fresh_guidance_shows_every_number_and_no_alarm() -> None:
    state = present(snapshot(), T0)
    assert state.panes.freshness is Freshness.NORMAL
    assert state.panes.banner == ""
    assert state.panes.needle_shown
    assert "---" not in values(state)
    assert state.alarms == ()
    assert state.message.level is Level.OK
    assert state.message.text == "Advance the needle along the plan"
    assert lamp(state, "tracker").text == "60 Hz \u00b7 12 ms"


@pytest.mark.parametrize(
    ("age_ms", "expected"),
    [
        (31, Freshness.NORMAL),
        (100, Freshness.NORMAL),
        (101, Freshness.STALE),
        (250, Freshness.STALE),
        (251, Freshness.LOST),
        (10_000, Freshness.LOST),
    ],
)
def test_needle_ages_by_the_clock_although_nothing_arrives(age_ms: int, expected: Freshness) -> None:
    shown = snapshot(T0)
    shown = replace(shown, needle=replace(shown.needle, acquired_ns=T0, arrival_ns=T0), now_ns=T0)
    state = present(shown, T0 + age_ms * MS)
    assert state.panes.freshness is expected
    assert state.panes.needle_shown is (expected is not Freshness.LOST)
    assert ("---" in values(state)) is (expected is Freshness.LOST)
    assert state.bullseye.shown is (expected is not Freshness.LOST)


def test_the_older_of_arrival_and_acquisition_decides() -> None:
    shown = snapshot(T0)
    late = replace(shown, needle=replace(shown.needle, acquired_ns=T0 - 300 * MS, arrival_ns=T0 - 5 * MS))
    assert present(late, T0).panes.freshness is Freshness.LOST
    held = replace(shown, needle=replace(shown.needle, acquired_ns=T0 - 5 * MS, arrival_ns=T0 - 300 * MS))
    assert present(held, T0).panes.freshness is Freshness.LOST


def test_limits_come_from_the_stream() -> None:
    slow = (stream(stale_ms=600.0, lost_ms=1000.0), stream("ReferenceToTracker", stale_ms=600.0, lost_ms=1000.0))
    shown = replace(snapshot(T0), streams=slow)
    shown = replace(shown, needle=replace(shown.needle, acquired_ns=T0 - 500 * MS, arrival_ns=T0 - 500 * MS))
    assert present(shown, T0).panes.freshness is Freshness.NORMAL
    shown = replace(shown, streams=(stream(stale_ms=600.0, lost_ms=1000.0), stream("ReferenceToTracker")))
    assert present(shown, T0).panes.freshness is Freshness.LOST


def test_tool_lost_takes_everything_away_at_once() -> None:
    state = present(lost_snapshot(T0), T0)
    assert state.panes.freshness is Freshness.LOST
    assert set(values(state)) == {"---"}
    assert not state.panes.needle_shown
    assert not state.bullseye.shown
    assert state.message.level is Level.HIGH
    assert "lost" in state.message.text
    assert state.message.flashing
    assert lamp(state, "tracker").level is Level.HIGH
    assert lamp(state, "tracker").flashing


def test_a_lost_stream_blanks_even_when_the_snapshot_still_carries_a_pose() -> None:
    shown = replace(snapshot(T0), streams=(stream(state="lost", detail="MISSING"), stream("ReferenceToTracker")))
    state = present(shown, T0)
    assert set(values(state)) == {"---"}
    assert not state.panes.needle_shown
    assert state.message.level is Level.HIGH


def test_lost_reference_counts_as_lost_needle() -> None:
    shown = replace(snapshot(T0), streams=(stream(), stream("ReferenceToTracker", state="lost")))
    assert present(shown, T0).panes.freshness is Freshness.LOST


def test_lost_stylus_does_not_blank_the_needle() -> None:
    shown = replace(snapshot(T0), streams=(stream(), stream("StylusToTracker", state="lost", age_ms=9000.0)))
    state = present(shown, T0)
    assert state.panes.freshness is Freshness.NORMAL
    assert "---" not in values(state)


def test_link_lost_is_named() -> None:
    state = present(lost_snapshot(T0, state="link_lost", detail="connection closed"), T0)
    assert state.panes.banner.endswith("TRACKER LINK LOST")
    assert "connection lost" in state.message.text
    assert lamp(state, "tracker").text == "link lost"


def test_a_dead_compute_thread_blanks_everything() -> None:
    state = present(snapshot(T0), T0 + 251 * MS)
    assert set(values(state)) == {"---"}
    assert state.panes.freshness is Freshness.LOST
    assert state.panes.banner.endswith("NAVIGATION STOPPED")
    assert not state.panes.ultrasound_shown
    assert state.message.code == "navigation_stopped"
    assert {x.text for x in state.lamps} == {"stopped"}
    assert not state.recording


def test_at_the_limit_the_snapshot_still_counts() -> None:
    shown = snapshot(T0)
    shown = replace(shown, needle=replace(shown.needle, acquired_ns=T0 + 200 * MS, arrival_ns=T0 + 200 * MS))
    assert present(shown, T0 + 250 * MS).panes.freshness is Freshness.NORMAL


def test_before_the_first_snapshot_nothing_is_shown_and_nothing_alarms() -> None:
    state = present(None, T0)
    assert set(values(state)) == {"---"}
    assert state.panes.freshness is Freshness.WAITING
    assert state.alarms == ()
    assert state.message.level is Level.INFO


def test_a_gap_without_pose_is_stale_but_shows_no_needle() -> None:
    shown = blanked(
        snapshot(T0),
        GateReason("gap:NeedleTip", GateState.BLANK, "NeedleTip: poses missing. Clear the line of sight"),
        streams=(stream(state="stale", age_ms=120.0), stream("ReferenceToTracker")),
    )
    state = present(shown, T0)
    assert state.panes.freshness is Freshness.STALE
    assert not state.panes.needle_shown
    assert set(values(state)) == {"---"}


# -- set-up --------------------------------------------------------------------------------------------------------


def test_before_registration_it_is_a_step_and_no_alarm() -> None:
    state = present(setup_snapshot(T0), T0)
    assert state.panes.freshness is Freshness.WAITING
    assert state.panes.banner == "NO NEEDLE: NOT REGISTERED"
    assert set(values(state)) == {"---"}
    assert state.message.level is Level.INFO
    assert state.message.text.startswith("Touch landmark left rib 10")
    assert not state.message.flashing
    assert not any(x.flashing for x in state.lamps)


def test_needle_on_the_table_during_set_up_is_no_alarm_but_a_dead_link_is() -> None:
    shown = replace(setup_snapshot(T0), streams=(stream(state="lost", age_ms=9000.0),))
    state = present(shown, T0)
    assert state.panes.freshness is Freshness.WAITING
    assert state.message.level is Level.INFO
    shown = replace(shown, streams=(stream(state="link_lost", detail="connection closed"),))
    state = present(shown, T0)
    assert state.message.level is Level.MEDIUM
    assert "connection closed" in state.message.text


def test_what_the_set_up_says_comes_before_the_next_step() -> None:
    shown = setup_snapshot(T0)
    shown = replace(shown, setup=replace(shown.setup, message="StylusTip in Reference: newest pose is 900 ms old"))
    assert present(shown, T0).message.text.startswith("StylusTip")


# -- alarms and recovery -------------------------------------------------------------------------------------------


def test_recovery_leaves_nothing_behind() -> None:
    """The classic fault of such screens: the message stays red after the needle is back."""
    before = present(snapshot(T0), T0)
    lost = present(lost_snapshot(T0 + 300 * MS), T0 + 300 * MS, acknowledged=before.acknowledged, shown=before.shown)
    assert lost.message.level is Level.HIGH
    back_ns = T0 + 400 * MS
    after = present(snapshot(back_ns), back_ns, acknowledged=lost.acknowledged, shown=lost.shown)
    clean = present(snapshot(back_ns), back_ns)
    assert replace(after, shown=clean.shown) == clean
    assert dict(after.shown) == dict(clean.shown)


@pytest.mark.parametrize("pause_ms", [300, 700, 60_000])
def test_recovery_of_the_compute_thread(pause_ms: int) -> None:
    stopped = present(snapshot(T0), T0 + pause_ms * MS)
    assert stopped.message.level is Level.HIGH
    later = T0 + (pause_ms + 20) * MS
    assert present(snapshot(later), later, acknowledged=stopped.acknowledged).message.level is Level.OK


def test_acknowledging_stops_the_flashing_only_and_a_new_alarm_flashes_again() -> None:
    first = present(lost_snapshot(T0), T0)
    codes = frozenset(a.code for a in first.alarms)
    quiet = present(lost_snapshot(T0), T0, acknowledged=codes)
    assert quiet.message.level is Level.HIGH
    assert quiet.message.text == first.message.text
    assert not quiet.message.flashing
    assert not lamp(quiet, "tracker").flashing
    again_ns = T0 + 1000 * MS
    recovered = present(snapshot(again_ns), again_ns, acknowledged=quiet.acknowledged)
    assert recovered.acknowledged == frozenset()
    again = present(lost_snapshot(again_ns), again_ns, acknowledged=recovered.acknowledged)
    assert again.message.flashing


def test_an_unacknowledged_alarm_goes_before_an_acknowledged_one_of_its_level() -> None:
    reasons = (
        GateReason("tool_lost:NeedleToTracker", GateState.BLANK, "first"),
        GateReason("thread_died:recorder", GateState.BLANK, "second"),
    )
    shown = blanked(snapshot(T0), *reasons)
    state = present(shown, T0, acknowledged=frozenset({"tool_lost:NeedleToTracker"}))
    assert state.message.text == "second"
    assert state.message.flashing


def test_high_flashes_twice_a_second_medium_slowly_and_the_rest_not_at_all() -> None:
    def changes(shown_at: object, seconds: int = 10) -> int:
        phases = []
        for n in range(seconds * 100):
            now = T0 + n * 10 * MS
            phases.append(present(shown_at(now), now).flash_on)  # type: ignore[operator]
        return sum(a != b for a, b in pairwise(phases))

    assert changes(lost_snapshot) in range(38, 42)
    assumed = _degraded
    assert changes(assumed) in range(10, 14)
    assert changes(snapshot) == 0


def _degraded(now_ns: int) -> object:
    shown = snapshot(now_ns)
    assert shown.registration is not None
    return replace(
        shown,
        registration=replace(shown.registration, method="assumed", tre_at_target_mm=None, fre_mm=None),
        gate=GateVerdict(
            GateState.DEGRADED,
            (GateReason("registration_assumed", GateState.DEGRADED, "Registration is assumed. Register landmarks"),),
        ),
    )


def test_assumed_registration_is_called_assumed_and_keeps_the_numbers() -> None:
    state = present(_degraded(T0), T0)  # type: ignore[arg-type]
    assert lamp(state, "registration").text == "ASSUMED"
    assert lamp(state, "registration").level is Level.MEDIUM
    assert state.message.level is Level.MEDIUM
    assert "---" not in values(state)


def test_degraded_latency_faults_and_ultrasound_are_alarms() -> None:
    state = present(snapshot(T0), T0, latency_ms=140.0, latency_warn_ms=100.0)
    assert lamp(state, "latency").level is Level.MEDIUM
    assert state.message.code == "latency"
    state = present(replace(snapshot(T0), faults=("recorder: disk full",)), T0)
    assert lamp(state, "record").level is Level.HIGH
    assert state.message.text == "recorder: disk full"
    lost = replace(snapshot(T0), streams=(stream(), stream("ultrasound", "image", state="link_lost")))
    state = present(lost, T0)
    assert lamp(state, "ultrasound").text == "link lost"
    assert not state.panes.ultrasound_shown
    assert state.message.level is Level.MEDIUM
    assert state.panes.freshness is Freshness.NORMAL


def test_ultrasound_has_its_own_age() -> None:
    shown = snapshot(T0)
    assert shown.image is not None
    assert present(shown, T0).panes.ultrasound_shown
    old = replace(shown, image=replace(shown.image, arrival_ns=T0 - 201 * MS))
    state = present(old, T0)
    assert not state.panes.ultrasound_shown
    assert state.panes.needle_shown


def test_worst_of_each_code_most_urgent_first() -> None:
    alarms = (Alarm("a", Level.INFO, "1"), Alarm("b", Level.MEDIUM, "2"), Alarm("a", Level.HIGH, "3"))
    assert [a.text for a in worst_by_code(alarms)] == ["3", "2"]


# -- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (3.24, True, "+3.2"),
        (-5.06, True, f"{MINUS}5.1"),
        (-0.04, True, "0.0"),
        (0.0, True, "0.0"),
        (1.25, False, "1.2"),
        (None, True, "---"),
        (float("nan"), False, "---"),
        (float("inf"), False, "---"),
    ],
)
def test_number_as_text(value: float | None, signed: bool, text: str) -> None:
    assert format_value(value, signed=signed) == text


def test_hysteresis_holds_a_wobbling_digit_and_follows_a_real_change() -> None:
    before: dict[str, float] = {}
    seen = []
    for value in (4.24, 4.26, 4.24, 4.29, 4.31, 4.26, 4.19):
        settling = Shown(before)
        seen.append(settling.settle("x", value))
        before = settling.now
    assert seen == [4.2, 4.2, 4.2, 4.2, 4.3, 4.3, 4.2]


def test_hysteresis_forgets_what_was_blank() -> None:
    first = present(snapshot(T0), T0)
    lost = present(lost_snapshot(T0), T0, shown=first.shown)
    assert dict(lost.shown) == {}
    moved = replace(snapshot(T0), guidance=numbers(tip_to_target_mm=42.36))
    kept = present(moved, T0, shown=first.shown)
    fresh = present(moved, T0, shown=lost.shown)
    assert readout(kept, "tip_to_target").value == "42.3"
    assert readout(fresh, "tip_to_target").value == "42.4"


def test_depth_is_signed_in_number_and_words() -> None:
    state = present(snapshot(T0), T0)
    assert readout(state, "depth").value == "+42.3"
    assert state.bullseye.words == "42.3 mm to go"
    past = present(replace(snapshot(T0), guidance=numbers(depth_mm=-2.0)), T0)
    assert readout(past, "depth").value == f"{MINUS}2.0"
    assert past.bullseye.words == "2.0 mm past"
    assert readout(past, "depth").level is Level.MEDIUM


@pytest.mark.parametrize(
    ("margin_mm", "sigma_mm", "level", "word"),
    [
        (6.1, 1.2, Level.OK, "5 mm or more"),
        (6.1, 3.1, Level.MEDIUM, "not certain"),
        (6.1, float("nan"), Level.MEDIUM, "not certain"),
        (4.9, 0.1, Level.MEDIUM, "below 5 mm"),
        (0.0, 0.1, Level.MEDIUM, "below 5 mm"),
        (-0.04, 0.1, Level.HIGH, "tumour outside zone"),
    ],
)
def test_margin_is_called_good_only_when_its_uncertainty_allows(
    margin_mm: float, sigma_mm: float, level: Level, word: str
) -> None:
    shown = snapshot(T0)
    assert shown.margin is not None
    state = present(replace(shown, margin=replace(shown.margin, min_margin_mm=margin_mm, sigma_mm=sigma_mm)), T0)
    margin = readout(state, "margin")
    assert margin.level is level
    assert word in margin.detail
    assert margin.glyph != ""
    assert "CHART (manufacturer reference)" in margin.detail
    assert "2\u03c3" in margin.detail


CHANCE = MarginChance(0.834, 0.9, 1.1, 2.0, False, "")


@pytest.mark.parametrize(
    ("tier", "title", "basis"),
    [
        (0, "MIN MARGIN TO THE CHART", "CHART (manufacturer reference)"),
        (1, "PREDICTED MIN MARGIN", "TIER 1"),
        (2, "PREDICTED MIN MARGIN", "TIER 2 in 3-D, with vessels"),
    ],
)
def test_the_tier_is_named_and_a_chart_is_never_called_a_prediction(tier: int, title: str, basis: str) -> None:
    shown = snapshot(T0)
    assert shown.margin is not None
    assert isinstance(shown.zone, EllipsoidZone)
    chance = replace(CHANCE, of_chart=tier == 0)
    shown = replace(
        shown, placed=PlacedZone(replace(shown.zone, tier=tier)), margin=replace(shown.margin, chance=chance)
    )
    margin = readout(present(shown, T0), "margin")
    assert margin.title == title
    assert basis in margin.detail
    assert ("P(\u2265 5 mm) 83 %" in margin.detail) is (tier > 0)
    assert "PREDICT" not in margin.title or tier > 0
    unknown = replace(shown, uncertainty=replace(shown.uncertainty, calibrated=False))  # type: ignore[type-var]
    assert "P(" not in readout(present(unknown, T0), "margin").detail
    assert "tier 2 40 %" in readout(present(shown, T0, zone_work="tier 2 40 %"), "margin").title


def test_a_zone_whose_place_is_assumed_is_never_called_good() -> None:
    shown = snapshot(T0)
    assert shown.margin is not None
    assert shown.setting is not None
    good = replace(shown, margin=replace(shown.margin, min_margin_mm=9.0))
    assert readout(present(good, T0), "margin").level is Level.OK
    doubtful = readout(present(replace(good, setting=replace(shown.setting, place_assumed=True)), T0), "margin")
    assert doubtful.level is Level.MEDIUM
    assert "at least" in doubtful.detail
    assert "ASSUMED" in doubtful.detail


def test_the_timer_takes_the_place_of_the_angle_and_outlives_the_needle() -> None:
    shown = replace(snapshot(T0), ablation=AblationTimer(200.4, 600.0, True))
    state = present(shown, T0)
    assert "angle" not in {r.key for r in state.readouts}
    assert (readout(state, "ablation").value, readout(state, "ablation").detail) == (
        "3:20",
        "running, of 10:00 planned",
    )
    assert state.ablating
    lost = present(replace(lost_snapshot(T0), ablation=shown.ablation), T0)
    assert readout(lost, "ablation").value == "3:20"
    assert readout(lost, "margin").value == "---"
    over = readout(present(replace(shown, ablation=AblationTimer(601.0, 600.0, True)), T0), "ablation")
    assert (over.level, over.glyph) == (Level.MEDIUM, "!")
    ended = present(replace(shown, ablation=AblationTimer(330.0, 600.0, False)), T0)
    assert readout(ended, "ablation").detail == "ended, of 10:00 planned"
    made = replace(shown, ablation=AblationTimer(330.0, 600.0, False), made_margin_mm=-1.2)
    assert f"made: margin {MINUS}1.2 mm" in readout(present(made, T0), "ablation").detail
    assert not ended.ablating
    stopped = present(shown, T0 + 2000 * MS)
    assert readout(stopped, "angle").value == "---"


def test_margin_word_follows_the_number_computed_and_not_the_one_settled() -> None:
    shown = snapshot(T0)
    assert shown.margin is not None
    state = present(
        replace(shown, margin=replace(shown.margin, min_margin_mm=-0.05)), T0, shown=MappingProxyType({"margin": 0.0})
    )
    assert readout(state, "margin").level is Level.HIGH


def test_no_tumour_blanks_the_margin_alone() -> None:
    state = present(replace(snapshot(T0), margin=None), T0)
    assert readout(state, "margin").value == "---"
    assert readout(state, "coverage").value == "---"
    assert readout(state, "tip_to_target").value == "42.3"


def test_uncalibrated_uncertainty_says_so() -> None:
    shown = snapshot(T0)
    assert shown.uncertainty is not None
    state = present(replace(shown, uncertainty=replace(shown.uncertainty, calibrated=False)), T0)
    assert readout(state, "uncertainty").value.startswith("\u2265")
    assert "real error unknown" in readout(state, "uncertainty").detail
    margin = readout(state, "margin")
    assert "at least" in margin.detail
    assert margin.level is not Level.OK
    assert readout(state, "uncertainty").level is Level.MEDIUM


@pytest.mark.parametrize(
    ("tip", "hub", "aligned"),
    [((1.9, 0.0), (0.0, -1.9), True), ((1.5, 1.5), (0.0, 0.0), False), ((0, 0), (2.1, 0), False)],
)
def test_aligned_needs_tip_and_hub_inside_the_disc(
    tip: tuple[float, float], hub: tuple[float, float], aligned: bool
) -> None:
    shown = replace(snapshot(T0), guidance=numbers(tip_offset_mm=np.array(tip), hub_offset_mm=np.array(hub)))
    assert present(shown, T0).bullseye.aligned is aligned


def test_offsets_beyond_the_rim_are_pulled_back_along_their_direction() -> None:
    right, up, clamped = clamp_to_rim((30.0, -40.0), 10.0)
    assert clamped
    assert (right, up) == pytest.approx((6.0, -8.0))
    assert clamp_to_rim((3.0, 4.0), 10.0) == (3.0, 4.0, False)


def test_the_gate_alone_blanks_numbers_that_are_there() -> None:
    shown = replace(
        snapshot(T0), gate=GateVerdict(GateState.BLANK, (GateReason("landmark_order", GateState.BLANK, "order"),))
    )
    state = present(shown, T0)
    assert set(values(state)) == {"---"}
    assert state.message.text == "order"
    assert lamp(state, "registration").level is Level.HIGH


def test_present_is_pure() -> None:
    shown = lost_snapshot(T0)
    assert present(shown, T0) == present(shown, T0)
    assert shown.setup.done <= ALL_STEPS


def test_respiration_lamp() -> None:
    assert lamp(present(replace(snapshot(T0), breath_hold=True), T0), "respiration").text == "breath held"
    free = replace(
        snapshot(T0),
        breath_hold=False,
        gate=GateVerdict(GateState.DEGRADED, (GateReason("breathing", GateState.DEGRADED, "The patient breathes."),)),
    )
    assert lamp(present(free, T0), "respiration").level is Level.MEDIUM
    assert lamp(present(snapshot(T0), T0), "respiration").level is Level.OFF


# -- streams and their clocks --------------------------------------------------------------------------------------


CLOCK = StreamClock(3012.44, 0.0, 9.81, 12.4, 1, 0.3)


def test_a_stream_line_tells_the_clock_and_the_losses() -> None:
    line = stream_line(stream(clock=CLOCK, rejected=3, refused=1, gaps=2))
    assert line == (
        "NeedleToTracker: live, 60 of 60 Hz; clock +3012.4 ms, lag 0.0 ms, jitter 9.8 ms, drift +12 ppm, set 1\u00d7, "
        "late 0 ms; 2 gaps, 0 dropped, 3 out of order, 1 refused"
    )
    far = StreamClock(-3_600_000.0, 0.0, 1.0, None, 0, 0.0)
    assert "clock -3600.0 s" in stream_line(stream(clock=far))
    assert "drift \u2013" in stream_line(stream(clock=far))
    assert "no stamps" in stream_line(stream())


def test_what_looks_wrong_stands_below_its_stream_and_turns_the_lamp_yellow() -> None:
    found = StreamFinding("clock_step", "the sender's clock was set", "1 times so far", "never", "Wait")
    shown = replace(snapshot(), streams=(stream(findings=(found,)), stream("ReferenceToTracker")))
    state = present(shown, T0)
    assert lamp(state, "tracker").level is Level.MEDIUM
    assert "    ! the sender's clock was set (1 times so far; limit: never). Wait" in lamp(state, "tracker").detail
    assert "ReferenceToTracker: live" in lamp(state, "tracker").detail
    image = stream("ultrasound", "image", findings=(found,))
    shown = replace(snapshot(), streams=(stream(), stream("ReferenceToTracker"), image))
    assert lamp(present(shown, T0), "ultrasound").level is Level.MEDIUM
    assert lamp(present(shown, T0), "tracker").level is Level.OK
