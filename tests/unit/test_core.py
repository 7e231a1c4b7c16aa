"""The navigation core on a virtual clock: same inputs, same numbers; lost data is lost; mistakes change nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from drivers.room.geometry import RoomSetup
from drivers.room.operator import Script
from drivers.room.patient import build_patient, patient_case
from nav.config.load import load_toml, shipped_config
from nav.config.room import RoomConfig
from nav.geometry.poses import PoseStatus
from nav.guidance.numbers import GateState
from nav.runtime.core import NavigationCore
from nav.runtime.essentials import CaseEssentials
from nav.runtime.events import (
    ChooseApplicator,
    CollectLandmark,
    LoadCase,
    LoadRegistration,
    OperatorEvent,
    SetPlan,
    StartAblation,
    StartGuidance,
    StopAblation,
    TakeZone,
    UseLandmark,
)
from nav.runtime.messages import LinkMessage, LinkState, Message, PoseMessage, StatusMessage, TextMessage, ToolReport
from nav.runtime.slots import Batch, CutFeed
from nav.runtime.snapshot import NavigationSnapshot
from nav.runtime.summary import navigation_numbers
from nav.runtime.zone_worker import compute_zone
from tests.virtual_room import START_NS, play, room_messages, simulated_room

S = 1_000_000_000


@pytest.fixture(scope="module")
def essentials() -> CaseEssentials:
    return CaseEssentials.of(patient_case(build_patient()), margin_mm=5.0)


@pytest.fixture(scope="module")
def script() -> Script:
    return Script.build(build_patient().geometry, RoomSetup.from_room(simulated_room()), 10.0)


@pytest.fixture(scope="module")
def messages(script: Script) -> list[Message]:
    return room_messages(script, 9.0)


def run(
    essentials: CaseEssentials, messages: list[Message], until_s: float, tick_ms: float = 8.0
) -> list[NavigationSnapshot]:
    core = NavigationCore(simulated_room(), essentials)
    return list(play(core, messages, until_ns=START_NS + round(until_s * S), tick_ns=round(tick_ms * 1e6)))


def renumbered(messages: list[Message]) -> list[Message]:
    return [replace(m, sequence=n) for n, m in enumerate(messages)]


def seconds(snapshot: NavigationSnapshot) -> float:
    return (snapshot.now_ns - START_NS) / S


def test_the_whole_job_reaches_guidance_close_to_the_truth(
    essentials: CaseEssentials, messages: list[Message], script: Script
) -> None:
    snapshots = run(essentials, messages, 9.0)
    guided = [s for s in snapshots if s.guidance is not None and 5.5 < seconds(s) < 8.9]
    assert len(guided) > 350
    tips = np.array([s.guidance.tip_ras for s in guided if s.guidance])
    true = script.needle_tip(np.array([seconds(s) for s in guided]))[:, :3, 3]
    errors = np.linalg.norm(tips - true, axis=1)
    assert np.percentile(errors, 95) < 2.0
    assert guided[-1].registration is not None
    assert guided[-1].registration.method == "landmarks"
    assert guided[-1].zone is not None
    assert guided[-1].margin is not None
    assert guided[-1].gate.state is GateState.OK


def test_same_inputs_give_the_same_numbers_bit_for_bit(essentials: CaseEssentials, messages: list[Message]) -> None:
    first = [navigation_numbers(s) for s in run(essentials, messages, 6.5)]
    second = [navigation_numbers(s) for s in run(CaseEssentials.from_bytes(essentials.to_bytes()), messages, 6.5)]
    assert first == second
    assert any(n is not None for n in first)


def without_needle(messages: list[Message], start_s: float, end_s: float) -> list[Message]:
    """Take the needle's reports of a span of acquisition times away (the link goes on speaking)."""
    low, high = START_NS + round(start_s * S), START_NS + round(end_s * S)
    return renumbered(
        [m for m in messages if m.device != "NeedleToTracker" or not low <= m.arrival_ns - 30_000_000 < high]
    )


def test_drop_out_of_300_ms_takes_the_numbers_away_and_gives_them_back(
    essentials: CaseEssentials, messages: list[Message]
) -> None:
    snapshots = run(essentials, without_needle(messages, 6.0, 6.3), 7.0, tick_ms=4.0)
    last_pose = max(s.needle.acquired_ns for s in snapshots if s.needle.pose is not None and seconds(s) < 6.2)
    gone = [s for s in snapshots if s.guidance is None and seconds(s) > 6.0]
    assert gone
    assert (gone[0].now_ns - last_pose) / 1e6 <= 250.0 + 4.0
    for s in gone:
        assert s.needle.pose is None
        assert s.zone is None
        assert s.margin is None
        assert s.gate.state is GateState.BLANK
    assert any("NeedleToTracker" in r.code for r in gone[0].gate.reasons)
    assert any("NeedleToTracker" in r.text for r in gone[0].gate.reasons)
    back = [s for s in snapshots if s.guidance is not None and s.now_ns > gone[-1].now_ns]
    assert back
    assert seconds(back[0]) < 6.3 + 0.12
    # Between the last pose and the blanking the pose is called stale, never fresh.
    late = [s for s in snapshots if s.guidance is not None and last_pose < s.now_ns - 110_000_000 < last_pose + S // 5]
    assert all(s.gate.state is GateState.DEGRADED for s in late if seconds(s) < 6.25)


def test_closed_socket_blanks_at_the_next_tick_and_names_the_link(
    essentials: CaseEssentials, messages: list[Message]
) -> None:
    cut_ns = START_NS + 6 * S
    before = [m for m in messages if m.arrival_ns < cut_ns]
    closed = LinkMessage("tracker", len(before), cut_ns, "", None, {}, LinkState.CLOSED, "closed by the peer")
    snapshots = run(essentials, [*before, closed], 6.5, tick_ms=4.0)
    after = [s for s in snapshots if s.now_ns >= cut_ns]
    assert after[0].gate.state is GateState.BLANK
    assert after[0].guidance is None
    assert any(r.code.startswith("link_lost:") for r in after[0].gate.reasons)


def test_silent_link_is_named_within_a_second(essentials: CaseEssentials, messages: list[Message]) -> None:
    cut_ns = START_NS + 6 * S
    snapshots = run(essentials, [m for m in messages if m.arrival_ns < cut_ns], 7.3)
    named = [s for s in snapshots if any(r.code.startswith("link_lost:") for r in s.gate.reasons)]
    assert named
    assert (named[0].now_ns - cut_ns) / S <= 1.02
    blank = [s for s in snapshots if s.now_ns > cut_ns + 250_000_000]
    assert all(s.guidance is None and s.needle.pose is None for s in blank)


def test_lost_tool_with_speaking_link_is_called_lost_not_link_lost(
    essentials: CaseEssentials, messages: list[Message]
) -> None:
    kept = without_needle(messages, 6.0, 99.0)
    alive = [StatusMessage("tracker", 0, START_NS + 6 * S + n * S // 4, "", None, {}, 1, 0, "", "") for n in range(8)]
    kept = renumbered(sorted([*kept, *alive], key=lambda m: m.arrival_ns))
    final = run(essentials, kept, 7.5)[-1]
    codes = {r.code for r in final.gate.reasons}
    assert "tool_lost:NeedleToTracker" in codes
    assert not any(c.startswith("link_lost") for c in codes)


@pytest.mark.parametrize("bad", ["nan", "scaled", "mirrored"])
def test_a_matrix_that_is_no_pose_never_moves_the_needle(
    essentials: CaseEssentials, messages: list[Message], bad: str
) -> None:
    matrix = np.eye(4)
    if bad == "nan":
        matrix[0, 3] = np.nan
    elif bad == "scaled":
        matrix[:3, :3] *= 1000.0
    else:
        matrix[0, 0] = -1.0
    cut_ns = START_NS + 6 * S
    changed = [
        replace(m, tools=(ToolReport(m.device, PoseStatus.OK, matrix),))
        if isinstance(m, PoseMessage) and m.device == "NeedleToTracker" and m.arrival_ns > cut_ns
        else m
        for m in messages
    ]
    after = [s for s in run(essentials, changed, 6.6) if s.now_ns > cut_ns + 50_000_000]
    assert all(s.needle.pose is None and s.guidance is None for s in after)
    assert any("INVALID" in r.text for r in after[-1].gate.reasons)


def test_assumed_registration_guides_degraded_and_says_so(
    essentials: CaseEssentials, messages: list[Message], script: Script
) -> None:
    core = NavigationCore(simulated_room(), essentials)
    feed = CutFeed(messages)
    upto = sum(m.arrival_ns < START_NS + 3 * S for m in messages)
    core.tick(feed.take({"tracker": upto}), [], START_NS + 3 * S - 1)
    truth = script.geometry.ras_from_reference
    events = [LoadRegistration(tuple(truth.matrix.ravel().tolist()), "assumed"), StartGuidance()]
    snapshot = core.tick(Batch((), (), {"tracker": upto}), events, START_NS + 3 * S)
    assert snapshot.gate.state is GateState.DEGRADED
    assert {r.code for r in snapshot.gate.reasons} == {"registration_assumed"}
    assert snapshot.guidance is not None
    assert snapshot.uncertainty is not None
    assert not snapshot.uncertainty.calibrated


def test_another_case_withdraws_registration_and_plan(essentials: CaseEssentials, messages: list[Message]) -> None:
    core = NavigationCore(simulated_room(), essentials)
    snapshot = list(play(core, messages, until_ns=START_NS + 6 * S))[-1]
    assert snapshot.guidance is not None
    other = core.add_case(replace(essentials, pseudonym="CASE-other", paths=()))
    snapshot = core.tick(Batch((), (), snapshot.cut), [LoadCase(other)], snapshot.now_ns + 1)
    assert snapshot.registration is None
    assert snapshot.target_ras is None
    assert snapshot.guidance is None
    assert {"registration_missing", "not_started"} <= {r.code for r in snapshot.gate.reasons}
    assert not any(row.collected for row in snapshot.setup.landmarks)


def test_the_first_case_of_a_session_keeps_what_the_configuration_assumes(essentials: CaseEssentials) -> None:
    room = load_toml(shipped_config("rooms", "openigtlink_tracker_server.toml"), RoomConfig)
    core = NavigationCore(room, CaseEssentials(""))
    key = core.add_case(essentials)
    snapshot = core.tick(Batch((), (), {}), [LoadCase(key)], START_NS)
    assert snapshot.registration is not None
    assert snapshot.registration.method == "assumed"
    other = core.add_case(replace(essentials, pseudonym="CASE-other"))
    assert core.tick(Batch((), (), {}), [LoadCase(other)], START_NS + 1).registration is None


def test_a_changed_tumour_of_the_same_ct_keeps_the_registration(
    essentials: CaseEssentials, messages: list[Message]
) -> None:
    core = NavigationCore(simulated_room(), essentials)
    snapshot = list(play(core, messages, until_ns=START_NS + 6 * S))[-1]
    same = core.add_case(replace(essentials, tumour=None))
    snapshot = core.tick(Batch((), (), snapshot.cut), [LoadCase(same), StartGuidance()], snapshot.now_ns + 1)
    assert snapshot.registration is not None
    assert all(row.collected for row in snapshot.setup.landmarks)
    assert snapshot.guidance is not None
    assert snapshot.margin is None


def test_touch_without_a_view_of_the_stylus_is_refused_and_changes_nothing(essentials: CaseEssentials) -> None:
    core = NavigationCore(simulated_room(), essentials)
    snapshot = core.tick(Batch((), (), {}), [CollectLandmark()], START_NS)
    assert "no pose received yet" in snapshot.setup.message
    assert not any(row.collected for row in snapshot.setup.landmarks)


def test_mistaken_events_are_explained_and_change_nothing(essentials: CaseEssentials) -> None:
    core = NavigationCore(simulated_room(), essentials)
    before = core.tick(Batch((), (), {}), [], START_NS)
    for event, words in (
        (UseLandmark("nowhere", True), "not one of this case"),
        (SetPlan((1.0, 2.0, 3.0), (1.0, 2.0, 3.0)), "entry"),
        (LoadRegistration(tuple(np.diag([1.0, 1.0, -1.0, 1.0]).ravel().tolist())), "mirrors"),
        (LoadCase("0" * 64), "not known"),
        (TakeZone("0" * 64), "not known"),
        (StopAblation(), "none is running"),
        (ChooseApplicator("emprint", 100.0, 600.0, "wood"), "wood"),
    ):
        snapshot = core.tick(Batch((), (), {}), [event], START_NS + 1)
        assert words in snapshot.setup.message
        assert snapshot.registration is None
        assert np.array_equal(snapshot.target_ras, before.target_ras)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"kind": "load_registration", "matrix": [1, 2, 3]}', "matrix"),
        ('{"kind": "collect_landmark", "dwell_s": NaN}', "dwell_s"),
        ('{"kind": "collect_landmark", "dwell_s": 1e9}', "dwell_s"),
        ('{"kind": "set_plan", "target": "abc"}', "target"),
        ('{"kind": "set_plan", "target": [1, 2, Infinity]}', "target"),
        ('{"kind": "select_landmark", "name": {}}', "name"),
        ('{"kind": "load_case", "sha256": 7}', "sha256"),
        ('{"kind": "breath_hold", "held": "maybe"}', "held"),
        ('{"kind": "start_guidance", "now": true}', "unknown keys"),
        ('{"kind": []}', "unknown; known"),
        ("[1, 2]", "not an object"),
        ("not json", "FootSwitch"),
        ('{"kind": "set_plan", "target": [1, 2, 3]}', "set_plan is not for a foot switch; allowed: select_landmark"),
        ('{"kind": "choose_applicator", "name": "../x", "power_w": 1, "time_s": 1}', "not for a foot switch"),
        (f'{{"kind": "load_registration", "matrix": {np.eye(4).ravel().tolist()}}}', "not for a foot switch"),
        ('{"kind": "load_case", "sha256": "00"}', "not for a foot switch"),
    ],
)
def test_a_foot_switch_that_sends_nonsense_is_explained_and_changes_nothing(
    essentials: CaseEssentials, content: str, words: str
) -> None:
    core = NavigationCore(simulated_room(), essentials)
    before = core.tick(Batch((), (), {}), [], START_NS)
    message = TextMessage("tracker", 0, START_NS + 1, "FootSwitch", None, {}, content)
    after = core.tick(Batch((message,), (), {"tracker": 1}), [], START_NS + 1)
    assert words in after.setup.message
    assert after.breath_hold is None
    assert after.registration is None
    assert after.setup.done == before.setup.done
    assert after.setup.active_landmark == before.setup.active_landmark
    assert np.array_equal(after.target_ras, before.target_ras)


def test_a_computed_zone_replaces_the_chart_when_its_event_comes(
    essentials: CaseEssentials, messages: list[Message]
) -> None:
    core = NavigationCore(simulated_room(), essentials)
    before = list(play(core, messages, until_ns=START_NS + 6 * S))[-1]
    assert before.zone is not None
    assert before.zone.tier == 0
    assert before.margin is not None
    assert before.margin.chance is not None
    assert before.margin.chance.of_chart
    assert before.zone_request is not None
    event = TakeZone(core.add_zone(compute_zone(before.zone_request, None)))
    after = core.tick(Batch((), (), before.cut), [event, StartAblation()], before.now_ns + 1)
    assert after.zone is not None
    assert after.zone.tier == 1
    assert after.margin is not None
    assert after.margin.chance is not None
    assert not after.margin.chance.of_chart
    assert after.margin.sigma_mm > before.margin.sigma_mm
    assert after.zone_request is None
    assert after.ablation is not None
    assert after.ablation.running


def test_ablations_made_survive_another_tumour_of_the_same_ct_and_no_other_registration(
    essentials: CaseEssentials, messages: list[Message]
) -> None:
    core = NavigationCore(simulated_room(), essentials)
    last = list(play(core, messages, until_ns=START_NS + 6 * S))[-1]

    def tick(*events: OperatorEvent, seconds: float = 0.001) -> NavigationSnapshot:
        nonlocal last
        last = core.tick(Batch((), (), last.cut), list(events), last.now_ns + round(seconds * S))
        return last

    tick(TakeZone(core.add_zone(compute_zone(last.zone_request, None))))  # type: ignore[arg-type]
    core.apply(StartAblation(), last.now_ns - 300 * S)
    tick()
    tick(StopAblation())
    assert last.made_margin_mm is not None
    assert last.placed is not None
    assert len(last.placed.made) == 1
    key = core.add_case(replace(essentials, divots=()))
    tick(LoadCase(key))
    assert last.made_margin_mm is not None
    tick(LoadRegistration(tuple(np.eye(4).ravel().tolist())))
    assert last.made_margin_mm is None
    assert "not shown any more" in last.setup.message


def test_candidate_paths_are_compared_before_any_needle_is_there(essentials: CaseEssentials) -> None:
    path = essentials.paths[0]
    beside = replace(path, name="beside", target_ras=(path.target_ras[0] + 40.0, *path.target_ras[1:]))
    core = NavigationCore(simulated_room(), replace(essentials, paths=(path, beside)))
    first = core.tick(Batch((), (), {}), [], START_NS)
    assert first.zone is None
    assert first.plan.margin is not None
    assert first.plan.placed is not None
    good, bad = first.plan.path_margins_mm
    assert good == first.plan.margin.min_margin_mm
    assert good is not None
    assert bad is not None
    assert bad < good - 20.0
    again = core.tick(Batch((), (), {}), [], START_NS + 1)
    assert again.plan is first.plan  # worked out once
    other = core.tick(Batch((), (), {}), [SetPlan(beside.target_ras, beside.entry_ras)], START_NS + 2)
    assert other.plan.margin is not None
    assert other.plan.margin.min_margin_mm == bad
    smaller = core.tick(Batch((), (), {}), [ChooseApplicator("emprint", 45.0, 150.0)], START_NS + 3)
    assert smaller.plan.path_margins_mm[0] is not None
    assert smaller.plan.path_margins_mm[0] < good
    aimless = core.tick(Batch((), (), {}), [SetPlan(path.target_ras, None)], START_NS + 4)
    assert aimless.plan.placed is None


def test_power_outside_the_chart_gives_no_zone_and_says_why(
    essentials: CaseEssentials, messages: list[Message]
) -> None:
    core = NavigationCore(simulated_room(), essentials)
    snapshot = list(play(core, messages, until_ns=START_NS + 6 * S))[-1]
    assert snapshot.zone is not None
    snapshot = core.tick(Batch((), (), snapshot.cut), [ChooseApplicator("emprint", 400.0, 600.0)], snapshot.now_ns + 1)
    assert snapshot.zone is None
    assert snapshot.margin is None
    assert snapshot.guidance is not None
    assert snapshot.gate.state is GateState.DEGRADED
    assert any(r.code == "no_zone" and "400 W" in r.text for r in snapshot.gate.reasons)
