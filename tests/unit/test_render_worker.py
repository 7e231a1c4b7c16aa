"""Pacing of the render worker, and what it does when something breaks."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from nav.geometry.poses import PoseStatus
from nav.geometry.volume import Volume
from nav.guidance.numbers import GateState, GateVerdict
from nav.hud.pane_frame import PaneFrame, ViewState
from nav.hud.panes import SceneModel, build_scene
from nav.hud.render_worker import PanePacer, RenderWorker
from nav.io.case import Case, CaseIdentity
from nav.runtime.clock import ManualClock, SystemClock
from nav.runtime.snapshot import NavigationSnapshot, SetupState, ToolState, TrackedImage

VIEW = ViewState(sizes=dict.fromkeys("ABCD", (48, 40)), mm_per_px=1.0)
TICK_NS = 16_666_667


@pytest.fixture(scope="module")
def scene() -> SceneModel:
    return build_scene(Case(CaseIdentity("x"), Volume.of(np.zeros((8, 8, 8), np.int16), np.eye(4))))


def snapshot(sequence: int, case_generation: int = 0, acquired_ns: int | None = None) -> NavigationSnapshot:
    """A new pose with each sequence number, unless ``acquired_ns`` says otherwise."""
    acquired = sequence if acquired_ns is None else acquired_ns
    return NavigationSnapshot(
        sequence=sequence, now_ns=sequence, cut={}, events=0,
        needle=ToolState("NeedleTip", None, PoseStatus.MISSING, acquired, 0), tools={}, guidance=None, placed=None,
        margin=None, uncertainty=None, gate=GateVerdict(GateState.BLANK), streams=(), registration=None,
        setup=SetupState("plan", frozenset(), ""), case_generation=case_generation,
    )  # fmt: skip


def play(view: ViewState, scene: SceneModel, ticks: int) -> list[tuple[str, str]]:
    pacer = PanePacer()
    pacer.due(scene, snapshot(0), view, 0)
    rounds = []
    for n in range(1, ticks + 1):
        first, rest = pacer.due(scene, snapshot(n), view, n * TICK_NS)
        rounds.append(("".join(sorted(first)), "".join(sorted(rest))))
    return rounds


def test_the_tip_pane_comes_with_every_pose(scene: SceneModel) -> None:
    rounds = play(VIEW, scene, 600)
    counts = {pane: sum(pane in first + rest for first, rest in rounds) for pane in "ABCD"}
    assert all(first == "C" for first, _ in rounds)
    assert counts == {"A": 300, "B": 300, "C": 600, "D": 300}


def test_the_fused_pane_is_a_tip_pane_in_the_ultrasound_layout(scene: SceneModel) -> None:
    rounds = play(replace(VIEW, layout="ultrasound"), scene, 60)
    assert all(first == "A" for first, _ in rounds)
    assert sum("B" in rest for _, rest in rounds) == 30


def test_a_maximised_pane_comes_with_every_pose_and_alone(scene: SceneModel) -> None:
    assert set(play(replace(VIEW, maximised="B"), scene, 20)) == {("", "B")}
    rounds = play(replace(VIEW, maximised="D"), scene, 60)
    assert sum(rest == "D" for _, rest in rounds) == 30


def test_the_3d_view_is_limited_at_high_rates(scene: SceneModel) -> None:
    pacer = PanePacer()
    count = 0
    for n in range(1000):  # 1 kHz for a second
        _, rest = pacer.due(scene, snapshot(n), VIEW, n * 1_000_000)
        count += "D" in rest
    assert 25 <= count <= 36


def test_a_snapshot_that_shows_nothing_new_is_not_drawn_but_for_long(scene: SceneModel) -> None:
    pacer = PanePacer()
    pacer.due(scene, snapshot(0, acquired_ns=7), VIEW, 0)
    assert pacer.due(scene, snapshot(1, acquired_ns=7), VIEW, 8_000_000) == (frozenset(), frozenset())
    first, _ = pacer.due(scene, snapshot(2, acquired_ns=8), VIEW, 16_000_000)
    assert first == {"C"}
    assert pacer.due(scene, snapshot(3, acquired_ns=8), VIEW, 100_000_000) == (frozenset(), frozenset())
    first, _ = pacer.due(scene, snapshot(4, acquired_ns=8), VIEW, 117_000_000)
    assert first == {"C"}


def image(sequence: int) -> TrackedImage:
    return TrackedImage("Image", np.zeros((1, 4, 4), np.uint8), np.eye(4), sequence, sequence, sequence)


def test_a_new_image_is_drawn_at_once_where_it_is_the_picture_and_later_as_an_overlay(scene: SceneModel) -> None:
    def shown(view: ViewState, at_ns: int) -> frozenset[str]:
        pacer = PanePacer()
        pacer.due(scene, replace(snapshot(0, acquired_ns=7), image=image(1)), view, 0)
        return pacer.due(scene, replace(snapshot(1, acquired_ns=7), image=image(2)), view, at_ns)[0]

    assert shown(replace(VIEW, layout="ultrasound"), 14_000_000) == {"A"}
    assert shown(replace(VIEW, layout="ultrasound"), 5_000_000) == frozenset()
    assert shown(VIEW, 14_000_000) == frozenset()
    assert shown(VIEW, 31_000_000) == {"C"}


def test_a_changed_view_or_case_renders_everything(scene: SceneModel) -> None:
    pacer = PanePacer()
    assert pacer.due(scene, snapshot(0), VIEW, 0) == (frozenset("C"), frozenset("ABD"))
    assert pacer.due(scene, snapshot(0), VIEW, 1) == (frozenset(), frozenset())
    assert pacer.due(scene, snapshot(0), replace(VIEW), 2) == (frozenset(), frozenset())  # equal values: no change
    turned = replace(VIEW, camera_azimuth_deg=31.0)
    assert pacer.due(scene, snapshot(0), turned, 3) == (frozenset("C"), frozenset("ABD"))
    other = replace(scene, extent_mm=80.0)
    assert pacer.due(other, snapshot(0), turned, 4) == (frozenset("C"), frozenset("ABD"))


def make_worker(state: dict[str, object], scene: SceneModel | None) -> tuple[RenderWorker, list[dict[str, PaneFrame]]]:
    published: list[dict[str, PaneFrame]] = []
    worker = RenderWorker(
        lambda: state.get("snapshot"),  # type: ignore[arg-type, return-value]
        lambda: state["view"],  # type: ignore[arg-type, return-value]
        published.append,
        ManualClock(),
        lambda text: state.update(fault=text),
        scene,
    )
    return worker, published


def finish(worker: RenderWorker) -> None:
    for _ in range(20):
        if not worker.render_due():
            return
    raise AssertionError("there is always something due")


def test_nothing_is_rendered_without_a_snapshot_or_across_a_change_of_case(scene: SceneModel) -> None:
    state: dict[str, object] = {"view": VIEW}
    worker, published = make_worker(state, None)
    assert not worker.render_due()
    worker.set_scene(replace(scene, generation=0))
    assert not worker.render_due()
    state["snapshot"] = snapshot(0, case_generation=1)
    assert not worker.render_due()
    worker.set_scene(replace(scene, generation=1))
    assert worker.render_due()
    assert [sorted(p) for p in published] == [["C"], ["A"]]
    finish(worker)
    assert [sorted(p) for p in published] == [["C"], ["A"], ["B"], ["D"]]


def test_a_new_pose_does_not_wait_for_all_the_other_panes(scene: SceneModel) -> None:
    state: dict[str, object] = {"view": VIEW, "snapshot": snapshot(1)}
    worker, published = make_worker(state, scene)
    worker.render_due()
    state["snapshot"] = snapshot(2)
    worker.render_due()
    assert [sorted(p) for p in published] == [["C"], ["A"], ["C"], ["B"]]
    assert published[2]["C"].snapshot_sequence == 2
    finish(worker)
    assert {pane for p in published for pane in p} == set("ABCD")


def test_slow_pictures_starve_no_pane(scene: SceneModel) -> None:
    """A new pose with every round, and time for two pictures in each: others are due again before D had its turn."""
    published: list[str] = []
    clock, shown = ManualClock(0), [snapshot(0)]
    worker = RenderWorker(
        lambda: shown[0], lambda: VIEW, lambda frames: published.extend(frames), clock, pytest.fail, scene
    )
    for n in range(1, 61):
        shown[0] = snapshot(n)
        clock.set(n * 3 * TICK_NS)
        worker.render_due()
    counts = {pane: published[6:].count(pane) for pane in "ABCD"}
    assert counts["C"] >= 55
    assert min(counts[pane] for pane in "ABD") >= 17


def test_frozen_keeps_the_snapshot_but_follows_the_view(scene: SceneModel) -> None:
    state: dict[str, object] = {"view": VIEW, "snapshot": snapshot(1)}
    worker, published = make_worker(state, scene)
    finish(worker)
    state.update(view=replace(VIEW, frozen=True), snapshot=snapshot(2))
    finish(worker)
    published.clear()
    state["snapshot"] = snapshot(3)
    assert not worker.render_due()
    state["view"] = replace(VIEW, frozen=True, level_hu=100.0)
    assert worker.render_due()
    finish(worker)
    assert {f.snapshot_sequence for p in published for f in p.values()} == {2}
    state["view"] = replace(VIEW, level_hu=100.0)
    published.clear()
    assert worker.render_due()
    finish(worker)
    assert {f.snapshot_sequence for p in published for f in p.values()} == {3}


def test_the_thread_renders_new_snapshots_and_stops(scene: SceneModel) -> None:
    seen: set[int] = set()
    current = {"snapshot": snapshot(0)}

    def publish(frames: dict[str, PaneFrame]) -> None:
        seen.update(f.snapshot_sequence for f in frames.values())

    faults: list[str] = []
    worker = RenderWorker(lambda: current["snapshot"], lambda: VIEW, publish, SystemClock(), faults.append, scene)
    worker.start()
    with pytest.raises(RuntimeError, match="already"):
        worker.start()
    for n in range(20):
        current["snapshot"] = snapshot(n)
        if n % 2:
            worker.notify()  # woken, or found by polling
        deadline = time.monotonic() + 5.0
        while n not in seen and time.monotonic() < deadline:
            time.sleep(0.001)
        assert n in seen
    worker.stop()
    worker.stop()
    assert seen == set(range(20))
    assert not worker.alive
    assert not faults


def test_an_idle_thread_sleeps(scene: SceneModel) -> None:
    still = snapshot(0)
    cpu: list[float] = []

    def view() -> ViewState:
        cpu.append(time.thread_time())
        return VIEW

    worker = RenderWorker(lambda: still, view, lambda _: None, SystemClock(), pytest.fail, scene)
    worker.start()
    time.sleep(0.6)
    worker.stop()
    assert len(cpu) < 200  # polls, not a busy loop
    assert cpu[-1] - cpu[len(cpu) // 2] < 0.1


def test_an_error_ends_the_thread_and_is_told(scene: SceneModel) -> None:
    state: dict[str, object] = {"view": replace(VIEW, window_hu=0.0), "snapshot": snapshot(0)}
    worker, published = make_worker(state, scene)
    worker.start()
    deadline = time.monotonic() + 5.0
    while worker.alive and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not worker.alive
    assert "window is 0.0 HU" in str(state["fault"])
    assert not published
    worker.stop()
