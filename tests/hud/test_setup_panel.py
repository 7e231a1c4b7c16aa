"""A case prepared and guided in the window, without any command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from nav.ablation.zone import MarginResult
from nav.guidance.numbers import GateReason, GateState
from nav.hud.main_window import MainWindow
from nav.hud.session import SeriesChoice
from nav.hud.setup_case_pages import CasePage, PlanPage, TumourPage
from nav.hud.setup_patient_pages import ApplicatorPage, GuidePage, LandmarksPage, TipPage
from nav.runtime.events import (
    ApplyRegistration,
    CheckTip,
    ChooseApplicator,
    ClearLandmark,
    CollectLandmark,
    SelectLandmark,
    SetPlan,
    StartGuidance,
    UseLandmark,
)
from nav.runtime.snapshot import NavigationSnapshot, PlanView
from tests.hud.fakes import MS, PATHS, T0, FakeSession, blanked, setup_snapshot, snapshot, stream

Show = Callable[[NavigationSnapshot], None]


@pytest.fixture
def show(window: MainWindow, session: FakeSession, qapp: QApplication) -> Show:
    """Publish a snapshot and let the panel take it."""
    window.controller.trigger("layout_plan")

    def run(shown: NavigationSnapshot) -> None:
        session.now_ns += 60 * MS
        session.put(replace(shown, now_ns=session.now_ns))
        window.tick()
        qapp.processEvents()

    return run


def step_snapshot(step: str, done: set[str], **changes: object) -> NavigationSnapshot:
    base = setup_snapshot(T0)
    return replace(base, setup=replace(base.setup, step=step, done=frozenset(done)), **changes)  # type: ignore[arg-type]


def finish(qtbot: QtBot, window: MainWindow) -> None:
    """Wait for the file work to end."""
    qtbot.waitUntil(lambda: not window.setup.work.busy, timeout=3000)


def click(qtbot: QtBot, widget: object) -> None:
    qtbot.mouseClick(widget, Qt.MouseButton.LeftButton)


def test_the_panel_follows_the_step_until_a_person_opens_another(window: MainWindow, show: Show) -> None:
    show(step_snapshot("case", set()))
    assert window.setup.step == "case"
    show(step_snapshot("tumour", {"case"}))
    assert window.setup.step == "tumour"
    assert window.setup.steps["case"].text().startswith("\u2713")
    window.setup.open_step("applicator")
    show(step_snapshot("tumour", {"case"}))
    assert window.setup.step == "applicator"
    show(step_snapshot("plan", {"case", "tumour"}))
    assert window.setup.step == "plan"


def test_a_single_series_opens_at_once_and_several_ask(
    qtbot: QtBot, window: MainWindow, session: FakeSession, show: Show
) -> None:
    show(step_snapshot("case", set()))
    asked: list[str] = []

    def ask(kind: str, _title: str, _pattern: str) -> str:
        asked.append(kind)
        return "/data/ct"

    window.setup.path_asker = ask
    page = window.setup.pages["case"]
    assert isinstance(page, CasePage)
    click(qtbot, page.folder)
    finish(qtbot, window)
    finish(qtbot, window)
    assert asked == ["folder"]
    qtbot.waitUntil(lambda: ("load_ct", "/data/ct", "s1") in session.calls, timeout=3000)
    finish(qtbot, window)
    assert not page.series.isVisible()

    session.calls.clear()
    session.series = (SeriesChoice("s1", "portal venous, 120 slices"), SeriesChoice("s2", "arterial, 118 slices"))
    click(qtbot, page.file)
    finish(qtbot, window)
    assert page.series.isVisible()
    assert page.series.count() == 2
    assert session.calls == [("scan_ct", "/data/ct")]
    page.series.itemClicked.emit(page.series.item(1))
    finish(qtbot, window)
    assert session.calls[-1] == ("load_ct", "/data/ct", "s2")


def test_a_cancelled_dialogue_does_nothing(qtbot: QtBot, window: MainWindow, session: FakeSession, show: Show) -> None:
    show(step_snapshot("case", set()))
    window.setup.path_asker = lambda _kind, _title, _pattern: ""
    page = window.setup.pages["case"]
    assert isinstance(page, CasePage)
    click(qtbot, page.folder)
    assert session.calls == []
    assert not window.setup.work.busy


def test_file_trouble_is_said_and_the_panel_works_on(
    qtbot: QtBot, window: MainWindow, session: FakeSession, show: Show
) -> None:
    show(step_snapshot("case", set()))
    session.problem = "slice 17 is missing; export the series again"
    page = window.setup.pages["case"]
    assert isinstance(page, CasePage)
    page.open_path("/data/ct")
    assert window.setup.progress.isVisible()
    assert not window.setup.stack.isEnabled()
    finish(qtbot, window)
    assert window.setup.problem.isVisible()
    assert window.setup.problem.text() == "slice 17 is missing; export the series again"
    assert not window.setup.progress.isVisible()
    assert window.setup.stack.isEnabled()
    session.problem = ""
    page.open_path("/data/ct")
    qtbot.waitUntil(lambda: ("load_ct", "/data/ct", "s1") in session.calls, timeout=3000)
    finish(qtbot, window)
    assert not window.setup.problem.isVisible()


def test_file_work_runs_outside_the_qt_thread_and_can_be_cancelled(
    qtbot: QtBot, window: MainWindow, show: Show
) -> None:
    import threading

    show(step_snapshot("case", set()))
    threads: list[int] = []
    gate = threading.Event()

    def work(progress: Callable[[float, str], None]) -> str:
        threads.append(threading.get_ident())
        while not gate.wait(0.005):
            progress(0.3, "working")
        return "done"

    results: list[object] = []
    assert window.setup.work.run("Long work", work, results.append)
    assert not window.setup.work.run("Another", work, results.append)
    qtbot.waitUntil(lambda: window.setup.progress.value() == 300, timeout=3000)
    click(qtbot, window.setup.cancel)
    finish(qtbot, window)
    assert threads != [threading.get_ident()]
    assert results == []
    assert window.setup.problem.text() == "cancelled"


def test_tumour_from_a_list_of_components(qtbot: QtBot, window: MainWindow, session: FakeSession, show: Show) -> None:
    show(step_snapshot("tumour", {"case"}))
    page = window.setup.pages["tumour"]
    assert isinstance(page, TumourPage)
    page.open_path("/data/labels.nrrd")
    finish(qtbot, window)
    assert page.choices.count() == 2
    page.choices.setCurrentRow(1)
    # Choosing shows where it is, and nothing is taken yet.
    assert session.view_state.crosshair_ras == (40.0, 0.0, 12.0)
    assert not any(c[0] == "load_tumour" for c in session.calls)
    click(qtbot, page.use)
    finish(qtbot, window)
    assert session.calls[-1] == ("load_tumour", "/data/labels.nrrd", "1:2")


def test_tumour_picked_at_the_crosshair(qtbot: QtBot, window: MainWindow, session: FakeSession, show: Show) -> None:
    show(step_snapshot("tumour", {"case"}))
    page = window.setup.pages["tumour"]
    assert isinstance(page, TumourPage)
    assert not page.pick.isEnabled()
    page.open_path("/data/labels.nrrd")
    finish(qtbot, window)
    click(qtbot, page.cross)
    assert window.controller.crosshair_on
    window.controller.place_crosshair((35.0, 10.0, 0.0))
    show(step_snapshot("tumour", {"case"}))
    click(qtbot, page.pick)
    finish(qtbot, window)
    assert session.calls[-1] == ("pick_tumour", "/data/labels.nrrd", (35.0, 10.0, 0.0))


def test_target_and_entry_are_set_only_by_their_buttons(
    qtbot: QtBot, window: MainWindow, session: FakeSession, show: Show
) -> None:
    show(step_snapshot("plan", {"case", "tumour"}, target_ras=None, entry_ras=None))
    page = window.setup.pages["plan"]
    assert isinstance(page, PlanPage)
    assert not page.target.isEnabled()
    window.controller.place_crosshair((35.0, 10.0, 0.0))
    show(step_snapshot("plan", {"case", "tumour"}, target_ras=None, entry_ras=None))
    assert session.events == []
    assert page.target.isEnabled()
    assert not page.entry.isEnabled()  # No entry without a target.
    click(qtbot, page.target)
    assert session.events == [SetPlan((35.0, 10.0, 0.0), None)]
    shown = step_snapshot("plan", {"case", "tumour", "plan"})
    show(replace(shown, entry_ras=None))
    window.controller.place_crosshair((60.0, 80.0, 10.0))
    click(qtbot, page.entry)
    assert session.events[-1] == SetPlan((35.0, 10.0, 0.0), (60.0, 80.0, 10.0))


def test_plan_from_a_file(qtbot: QtBot, window: MainWindow, session: FakeSession, show: Show) -> None:
    show(step_snapshot("plan", {"case", "tumour"}))
    page = window.setup.pages["plan"]
    assert isinstance(page, PlanPage)
    page.open_path("/data/plan.mrk.json")
    finish(qtbot, window)
    assert session.events == [SetPlan(PATHS[0].target_ras, PATHS[0].entry_ras, "path 1")]
    page.paths.cellClicked.emit(1, 0)
    assert session.events[-1] == SetPlan(PATHS[1].target_ras, PATHS[1].entry_ras, "path 2")


def test_candidate_paths_are_compared_by_score_and_margin(window: MainWindow, session: FakeSession, show: Show) -> None:
    judged = replace(
        PATHS[1], score=0.42, criteria=(("risk", 0.5), ("capsule_angle", 0.9)), setting="Emprint 75 W 300 s"
    )
    assert session.case is not None
    session.case = replace(session.case, generation=2, paths=(PATHS[0], judged))
    shown = step_snapshot("plan", {"case", "tumour", "plan"})
    plan = PlanView(snapshot().placed, MarginResult(3.2, np.zeros(3), 0.91, 0.2), (None, 3.2))
    show(replace(shown, plan=plan, target_ras=np.array(judged.target_ras), entry_ras=np.array(judged.entry_ras)))
    page = window.setup.pages["plan"]
    assert isinstance(page, PlanPage)
    cells = [[page.paths.item(r, c).text() for c in range(4)] for r in range(2)]
    assert cells[0][2:] == ["---", "---"]
    assert cells[1] == ["path 2", "68", "0.42", "+3.2"]
    words = page.chosen.text()
    for part in ("path 2 is in force, planned for Emprint 75 W 300 s", "risk 0.50", "margin +3.2 mm, 91 %", "CHART"):
        assert part in words
    assert "TIER" not in words


def test_landmarks_by_key_and_table(qtbot: QtBot, window: MainWindow, session: FakeSession, show: Show) -> None:
    show(setup_snapshot(T0))
    page = window.setup.pages["landmarks"]
    assert isinstance(page, LandmarksPage)
    cells = [[page.table.item(r, c).text() for c in range(4)] for r in range(4)]
    assert cells[0] == ["xiphoid", "\u2713", "0.8", "\u2611"]
    assert cells[2] == ["\u25b6 left rib 10", "\u2013", "---", "\u2611"]
    assert not page.apply.isEnabled()  # Two are not enough.
    qtbot.keyClick(window, Qt.Key.Key_L)
    click(qtbot, page.collect)
    assert session.events == [CollectLandmark(), CollectLandmark()]
    page.table.cellClicked.emit(3, 0)
    assert session.events[-1] == SelectLandmark("umbilicus")
    assert session.view_state.crosshair_ras == (0.0, 90.0, -80.0)
    page.table.cellClicked.emit(0, 3)
    assert session.events[-1] == UseLandmark("xiphoid", False)
    shown = setup_snapshot(T0)
    rows = tuple(replace(r, collected=True, residual_mm=0.5) for r in shown.setup.landmarks)
    show(replace(shown, setup=replace(shown.setup, landmarks=rows)))
    assert "FRE 0.5 mm" in page.quality.text()
    click(qtbot, page.clear)
    assert session.events[-1] == ClearLandmark("left rib 10")
    click(qtbot, page.apply)
    assert session.events[-1] == ApplyRegistration()


def test_order_warning_stands_beside_the_table(window: MainWindow, show: Show) -> None:
    shown = setup_snapshot(T0)
    registration = snapshot().registration
    assert registration is not None
    show(replace(shown, registration=replace(registration, warning="xiphoid and umbilicus may be swapped")))
    page = window.setup.pages["landmarks"]
    assert isinstance(page, LandmarksPage)
    assert page.warning.text() == "xiphoid and umbilicus may be swapped"


def test_tip_check_is_refused_while_the_needle_is_not_seen(
    qtbot: QtBot, window: MainWindow, session: FakeSession, show: Show
) -> None:
    ready = replace(
        blanked(snapshot(T0), GateReason("not_started", GateState.BLANK, "Start guidance")),
        setup=replace(setup_snapshot(T0).setup, step="tip_check"),
    )
    show(ready)
    page = window.setup.pages["tip_check"]
    assert isinstance(page, TipPage)
    click(qtbot, page.check)
    assert session.events == [CheckTip("divot 1", "NeedleTip")]
    show(replace(ready, setup=replace(ready.setup, tip_check_error_mm=1.26)))
    assert page.error.text().startswith("Error 1.3 mm")
    assert "good" in page.error.text()
    show(replace(ready, setup=replace(ready.setup, tip_check_error_mm=4.0)))
    assert "above 3 mm" in page.error.text()
    show(replace(ready, streams=(stream(state="lost"),)))
    assert not page.check.isEnabled()
    assert "Refused: NeedleToTracker" in page.state.text()
    show(replace(ready, registration=None))
    assert not page.check.isEnabled()


def test_applicator_stays_inside_the_chart(qtbot: QtBot, window: MainWindow, session: FakeSession, show: Show) -> None:
    show(step_snapshot("applicator", {"case"}))
    page = window.setup.pages["applicator"]
    assert isinstance(page, ApplicatorPage)
    page.power.setCurrentIndex(1)
    assert (page.seconds.minimum(), page.seconds.maximum()) == (150, 600)
    page.seconds.setValue(300)
    assert page.zone.text() == "Chart 35 \u00d7 31 mm"
    click(qtbot, page.use)
    page.tissue.setCurrentIndex(1)
    click(qtbot, page.use)
    assert session.events == [
        ChooseApplicator("emprint", 100.0, 300.0),
        ChooseApplicator("emprint", 100.0, 300.0, "liver"),
    ]
    page.seconds.setValue(600)
    assert "outside the chart" in page.zone.text()
    assert not page.use.isEnabled()
    page.names.setCurrentIndex(1)
    assert [page.power.itemText(n) for n in range(page.power.count())] == ["60 W"]
    assert (page.seconds.minimum(), page.seconds.maximum()) == (60, 300)
    assert [page.tissue.itemText(n) for n in range(page.tissue.count())] == ["chart only"]


def test_start_needs_case_plan_and_registration(
    qtbot: QtBot, window: MainWindow, session: FakeSession, show: Show
) -> None:
    show(step_snapshot("guide", {"case", "tumour", "plan", "applicator"}))
    page = window.setup.pages["guide"]
    assert isinstance(page, GuidePage)
    assert not page.start.isEnabled()
    show(step_snapshot("guide", {"case", "tumour", "plan", "applicator", "landmarks"}))
    click(qtbot, page.start)
    assert session.events == [StartGuidance()]
    assert session.view_state.layout == "guide"
    assert window.readouts.isVisible()


def test_what_cannot_be_done_is_said_in_the_panel(window: MainWindow, show: Show) -> None:
    shown = setup_snapshot(T0)
    text = "StylusTip in Reference: newest pose is 900 ms old, limit 250 ms"
    show(replace(shown, setup=replace(shown.setup, message=text)))
    assert window.setup.line.text() == text


def test_names_from_files_are_never_taken_as_markup(window: MainWindow, session: FakeSession, show: Show) -> None:
    assert session.case is not None
    session.case = replace(session.case, generation=2, ct_text="<b>bold</b><img src=x>")
    show(step_snapshot("case", set()))
    page = window.setup.pages["case"]
    assert isinstance(page, CasePage)
    assert page.info.textFormat() == Qt.TextFormat.PlainText
    assert "<b>bold</b>" in page.info.text()
