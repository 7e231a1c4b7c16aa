"""The summary of a run: its keys, its numbers, and that a recording carries them to the last bit."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from nav.ablation.zone import MarginResult
from nav.geometry.poses import PoseStatus
from nav.guidance.numbers import GateReason, GateState, GateVerdict, GuidanceNumbers
from nav.runtime.clock import ManualClock
from nav.runtime.jsonio import compact_json, json_ready, write_json
from nav.runtime.recorder import Recorder
from nav.runtime.recording import Recording
from nav.runtime.snapshot import LandmarkRow, NavigationSnapshot, RegistrationSummary, SetupState, ToolState
from nav.runtime.summary import NAVIGATION_KEYS, SummaryBuilder, navigation_numbers

OK = GateVerdict(GateState.OK)
MS = 1_000_000


def snapshot(
    sequence: int,
    now_ms: int,
    values: tuple[float, float, float, float] | None = None,
    *,
    margin: float | None = None,
    gate: GateVerdict = OK,
    registration: RegistrationSummary | None = None,
) -> NavigationSnapshot:
    guidance = None
    if values is not None:
        distance, lateral, depth, angle = values
        guidance = GuidanceNumbers(
            np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.0, 1.0]), distance, lateral, depth, angle, None, np.zeros(2),
            np.zeros(2),
        )  # fmt: skip
    return NavigationSnapshot(
        sequence=sequence,
        now_ns=now_ms * MS,
        cut={},
        events=0,
        needle=ToolState("NeedleTip", None, PoseStatus.MISSING, 0, 0),
        tools={},
        guidance=guidance,
        placed=None,
        margin=None if margin is None else MarginResult(margin, np.zeros(3), 0.9, 1.0),
        uncertainty=None,
        gate=gate,
        streams=(),
        registration=registration,
        setup=SetupState("guide", frozenset(), ""),
    )


def build(builder: SummaryBuilder) -> dict[str, object]:
    return builder.build(streams={}, version="0.1", config_sha256="ab", room_cpu_cores=None)


def test_keys_are_those_that_others_rely_on() -> None:
    builder = SummaryBuilder()
    builder.add_truth(1.0, at_rest=True)
    summary = build(builder)
    assert set(summary) == {
        "streams",
        "sources",
        "registration",
        "navigation",
        "hud",
        "truth",
        "room_cpu_cores",
        "gate",
        "software",
    }
    assert set(builder.navigation()) == {"n", *NAVIGATION_KEYS}
    assert set(builder.gate()) == {"ok_s", "degraded_s", "blank_s", "reasons"}
    assert set(builder.hud()) == {"fps", "pose_age_at_paint_ms"}
    assert "truth" not in build(SummaryBuilder())


def test_an_empty_run_has_no_invented_numbers() -> None:
    builder = SummaryBuilder()
    summary = build(builder)
    assert builder.navigation()["n"] == 0
    assert set(builder.navigation()["tip_to_target_mm"].values()) == {None}
    assert builder.hud() == {"fps": None, "pose_age_at_paint_ms": {"p50": None, "p95": None, "max": None}}
    assert summary["registration"] is None
    assert builder.gate() == {"ok_s": 0.0, "degraded_s": 0.0, "blank_s": 0.0, "reasons": {}}


def test_navigation_counts_only_ticks_with_numbers_and_keeps_the_last() -> None:
    builder = SummaryBuilder()
    rng = random.Random(3)
    distances = [rng.uniform(0, 80) for _ in range(101)]
    for n, distance in enumerate(distances):
        builder.add_tick(snapshot(n, 20 * n, (distance, 1.0, 2.0, 3.0), margin=None if n < 50 else -1.5))
    builder.add_tick(snapshot(101, 2020))  # blanked at the end
    navigation = builder.navigation()
    assert navigation["n"] == 101
    assert navigation["tip_to_target_mm"] == {
        "last": distances[-1],
        "p5": pytest.approx(np.percentile(distances, 5), rel=1e-3),
        "p50": pytest.approx(np.percentile(distances, 50), rel=1e-3),
        "p95": pytest.approx(np.percentile(distances, 95), rel=1e-3),
        "min": min(distances),
        "max": max(distances),
    }
    assert navigation["min_margin_mm"]["p50"] == -1.5


def test_numbers_that_are_not_finite_never_reach_a_file(tmp_path: Path) -> None:
    builder = SummaryBuilder()
    numbers = builder.add_tick(snapshot(0, 0, (math.nan, math.inf, 2.0, 3.0)))
    assert numbers is not None
    assert numbers["tip_to_target_mm"] is None
    assert numbers["lateral_mm"] is None
    assert builder.navigation()["tip_to_target_mm"]["last"] is None
    builder.write(
        tmp_path / "summary.json", streams={"x": {"age": math.nan}}, version="0", config_sha256="", room_cpu_cores=None
    )
    data = json.loads((tmp_path / "summary.json").read_text(), parse_constant=lambda c: pytest.fail(c))
    assert data["streams"] == {"x": {"age": None}}
    assert not list(tmp_path.glob("*.partial"))


def test_gate_seconds_run_from_each_tick_to_the_next() -> None:
    slow = GateReason("latency", GateState.DEGRADED, "slow")
    lost = GateReason("tool_lost:NeedleToTracker", GateState.BLANK, "lost")
    builder = SummaryBuilder()
    for n, (now, gate) in enumerate(
        [
            (0, OK),
            (100, GateVerdict(GateState.DEGRADED, (slow,))),
            (150, GateVerdict(GateState.BLANK, (lost, slow, lost))),
            (400, OK),
            (1000, OK),
        ]
    ):
        builder.add_tick(snapshot(n, now, gate=gate))
    assert builder.gate() == {
        "ok_s": pytest.approx(0.7),
        "degraded_s": pytest.approx(0.05),
        "blank_s": pytest.approx(0.25),
        "reasons": {"latency": pytest.approx(0.3), "tool_lost:NeedleToTracker": pytest.approx(0.25)},
    }
    assert list(builder.gate()["reasons"]) == ["latency", "tool_lost:NeedleToTracker"]


def test_registration_is_the_last_one_in_force() -> None:
    builder = SummaryBuilder()
    row = LandmarkRow("xiphoid", (0.0, 0.0, 0.0), True, False, None)
    made = RegistrationSummary("landmarks", 2, 0.8, 1.7, 5, (row,))
    builder.add_tick(snapshot(0, 0, registration=RegistrationSummary("assumed", 1, None, None, 0)))
    builder.add_tick(snapshot(1, 1, registration=made))
    builder.add_tick(snapshot(2, 2))
    assert builder.registration() == {
        "method": "landmarks",
        "fre_mm": 0.8,
        "tre_at_target_mm": 1.7,
        "landmarks": [{"name": "xiphoid", "residual_mm": None, "used": False}],
    }


def test_hud_ages_and_rate() -> None:
    builder = SummaryBuilder()
    for n in range(61):
        builder.add_paint(n * 16 * MS, n * 16 * MS - 30 * MS if n > 1 else None)
    hud = builder.hud()
    assert hud["fps"] == pytest.approx(62.5)
    assert hud["pose_age_at_paint_ms"] == {"p50": pytest.approx(30.0), "p95": pytest.approx(30.0), "max": 30.0}


def test_hud_rate_leaves_out_the_time_without_a_needle() -> None:
    builder = SummaryBuilder()
    for n in range(11):
        builder.add_paint(n * 20 * MS, n * 20 * MS - 5 * MS)
    for n in range(5):
        builder.add_paint(1000 * MS + n * 100 * MS, None)
    for n in range(11):
        builder.add_paint(3000 * MS + n * 20 * MS, 3000 * MS + n * 20 * MS - 5 * MS)
    assert builder.hud()["fps"] == pytest.approx(50.0)


def test_truth_splits_rest_and_advance() -> None:
    builder = SummaryBuilder()
    for error, at_rest in ((1.0, True), (2.0, True), (3.0, False), (9.0, None)):
        builder.add_truth(error, at_rest=at_rest)
    truth = builder.truth()
    assert truth is not None
    assert truth["tip_error_mm"]["max"] == 9.0
    assert truth["at_rest_tip_error_mm"] == {"p50": 1.5, "p95": pytest.approx(1.95), "max": 2.0}
    assert truth["moving_tip_error_mm"]["max"] == 3.0


def test_recorded_numbers_are_those_of_the_summary_bit_for_bit(tmp_path: Path) -> None:
    rng = random.Random(11)
    clock = ManualClock()
    recorder = Recorder(tmp_path / "r.mcap", metadata={}, clock=clock)
    live: list[dict[str, float | None] | None] = []
    for n in range(300):
        values = (rng.uniform(0, 90), rng.random() * 1e-9, rng.gauss(0, 30), rng.random() / 3)
        shot = snapshot(n, 16 * n, None if n % 9 == 0 else values, margin=rng.gauss(0, 5))
        numbers = navigation_numbers(shot)
        recorder.tick(n, shot.now_ns, {}, 0, numbers)
        live.append(numbers)
    recorder.close()
    with Recording.open(tmp_path / "r.mcap") as recording:
        assert [t.navigation for t in recording.ticks()] == live


def test_json_takes_what_numpy_gives(tmp_path: Path) -> None:
    value = {"a": np.float64(1 / 3), "b": np.array([1, 2]), "c": (np.int64(3), {"x": np.bool_(True)}), "d": {"z", "y"}}
    plain = {"a": 1 / 3, "b": [1, 2], "c": [3, {"x": True}], "d": ["y", "z"]}
    assert json_ready(value) == plain
    assert json.loads(compact_json(value)) == plain
    write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text()) == plain
