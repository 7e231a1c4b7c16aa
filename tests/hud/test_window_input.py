"""Keys, buttons and mouse of the window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from PySide6.QtCore import QEvent, QPoint, QPointF, Qt
from PySide6.QtGui import QImage, QKeyEvent, QMouseEvent, QWheelEvent
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from nav.hud.actions import ACTIONS
from nav.hud.main_window import MINIMUM_SIZE, MainWindow
from nav.hud.panes_view import PaneView
from nav.runtime.events import AcknowledgeAlarm, BreathHold, CollectLandmark, SetPlan, StartAblation, StopAblation
from nav.runtime.snapshot import AblationTimer
from tests.hud.fakes import MS, PATHS, T0, FakeSession, lost_snapshot, snapshot

Step = Callable[[], None]


def press(qtbot: QtBot, window: MainWindow, key: Qt.Key) -> None:
    qtbot.keyClick(window, key)


def mouse(
    pane: PaneView, kind: QEvent.Type, at: tuple[float, float], button: Qt.MouseButton, held: Qt.MouseButton
) -> None:
    """One hand-made mouse event: Qt's test helper sends moves without any button held."""
    viewport = pane.viewport()
    local = QPointF(*at)
    event = QMouseEvent(
        kind, local, QPointF(viewport.mapToGlobal(local.toPoint())), button, held, Qt.KeyboardModifier.NoModifier
    )
    QApplication.sendEvent(viewport, event)


def drag(pane: PaneView, button: Qt.MouseButton, right: float, up: float) -> None:
    start = (100.0, 100.0)
    mouse(pane, QEvent.Type.MouseButtonPress, start, button, button)
    for n in range(1, 5):
        at = (start[0] + right * n / 4, start[1] - up * n / 4)
        mouse(pane, QEvent.Type.MouseMove, at, Qt.MouseButton.NoButton, button)
    mouse(pane, QEvent.Type.MouseButtonRelease, at, button, Qt.MouseButton.NoButton)


def click(pane: PaneView, at: tuple[float, float]) -> None:
    left = Qt.MouseButton.LeftButton
    mouse(pane, QEvent.Type.MouseButtonPress, at, left, left)
    mouse(pane, QEvent.Type.MouseButtonRelease, at, left, Qt.MouseButton.NoButton)


def wheel(pane: PaneView, notches: int, modifiers: Qt.KeyboardModifier = Qt.KeyboardModifier.NoModifier) -> None:
    viewport = pane.viewport()
    event = QWheelEvent(
        QPointF(50, 50),
        QPointF(viewport.mapToGlobal(QPoint(50, 50))),
        QPoint(),
        QPoint(0, 120 * notches),
        Qt.MouseButton.NoButton,
        modifiers,
        Qt.ScrollPhase.NoScrollPhase,
        False,
    )
    QApplication.sendEvent(viewport, event)


# -- keys ----------------------------------------------------------------------------------------------------------


def test_layout_keys_place_the_panes(qtbot: QtBot, window: MainWindow, session: FakeSession) -> None:
    press(qtbot, window, Qt.Key.Key_F3)
    assert session.view_state.layout == "ultrasound"
    assert set(session.view_state.sizes) == {"A", "C", "D"}
    assert not window.panes["B"].isVisible()
    assert window.panes["A"].width() > 1.8 * window.panes["C"].width()
    press(qtbot, window, Qt.Key.Key_F1)
    assert session.view_state.layout == "plan"
    assert window.setup.isVisible()
    press(qtbot, window, Qt.Key.Key_F2)
    assert set(session.view_state.sizes) == {"A", "B", "C", "D"}
    assert window.readouts.isVisible()


@pytest.mark.parametrize(("key", "pane"), [(Qt.Key.Key_1, "A"), (Qt.Key.Key_3, "C"), (Qt.Key.Key_4, "D")])
def test_number_keys_maximise_and_escape_goes_back(
    qtbot: QtBot, window: MainWindow, session: FakeSession, key: Qt.Key, pane: str
) -> None:
    press(qtbot, window, key)
    assert [k for k, p in window.panes.items() if p.isVisible()] == [pane]
    assert window.panes[pane].size() == window.grid.size()
    assert session.view_state.sizes == {pane: window.panes[pane].device_size()}
    press(qtbot, window, Qt.Key.Key_Escape)
    assert all(p.isVisible() for p in window.panes.values())


def test_view_keys(qtbot: QtBot, window: MainWindow, session: FakeSession) -> None:
    press(qtbot, window, Qt.Key.Key_W)
    assert (session.view_state.window_hu, session.view_state.level_hu) == (150.0, 30.0)
    press(qtbot, window, Qt.Key.Key_P)
    assert session.view_state.centre == "target"
    press(qtbot, window, Qt.Key.Key_A)
    assert not session.view_state.show_zone
    press(qtbot, window, Qt.Key.Key_U)
    assert session.view_state.ultrasound_blend == 1.0
    press(qtbot, window, Qt.Key.Key_U)
    assert session.view_state.ultrasound_blend == 0.0
    press(qtbot, window, Qt.Key.Key_BracketRight)
    assert session.view_state.ultrasound_blend == pytest.approx(0.1)
    press(qtbot, window, Qt.Key.Key_BracketLeft)
    press(qtbot, window, Qt.Key.Key_BracketLeft)
    assert session.view_state.ultrasound_blend == 0.0
    press(qtbot, window, Qt.Key.Key_F)
    assert session.view_state.frozen
    press(qtbot, window, Qt.Key.Key_F)
    assert not session.view_state.frozen


def test_overlays_are_hidden_only_while_the_key_is_held(qtbot: QtBot, window: MainWindow, session: FakeSession) -> None:
    qtbot.keyPress(window, Qt.Key.Key_O)
    assert not session.view_state.show_overlays
    qtbot.keyRelease(window, Qt.Key.Key_O)
    assert session.view_state.show_overlays


def test_overlays_come_back_when_the_window_loses_the_focus(
    qtbot: QtBot, window: MainWindow, session: FakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    qtbot.keyPress(window, Qt.Key.Key_O)
    monkeypatch.setattr(window, "isActiveWindow", lambda: False)
    QApplication.sendEvent(window, QEvent(QEvent.Type.ActivationChange))
    assert session.view_state.show_overlays


def test_keys_that_repeat_act_once(window: MainWindow, session: FakeSession) -> None:
    for repeat in (False, True, True):
        event = QKeyEvent(QEvent.Type.KeyPress, Qt.Key.Key_F, Qt.KeyboardModifier.NoModifier, "f", repeat)
        QApplication.sendEvent(window, event)
    assert session.view_state.frozen


def test_operator_keys(qtbot: QtBot, window: MainWindow, session: FakeSession, step: Step) -> None:
    session.put(snapshot())
    step()
    press(qtbot, window, Qt.Key.Key_R)
    assert ("finish_recording",) not in session.calls  # Once is a question.
    press(qtbot, window, Qt.Key.Key_R)
    assert session.calls[-1] == ("finish_recording",)
    press(qtbot, window, Qt.Key.Key_K)
    assert session.calls[-1] == ("connect_now",)
    press(qtbot, window, Qt.Key.Key_L)
    press(qtbot, window, Qt.Key.Key_Return)
    assert session.events[-2:] == [CollectLandmark(), CollectLandmark()]
    press(qtbot, window, Qt.Key.Key_B)
    assert session.events[-1] == BreathHold(True)
    press(qtbot, window, Qt.Key.Key_T)
    # The plan in force is the first path; T takes the second.
    assert session.events[-1] == SetPlan(PATHS[1].target_ras, PATHS[1].entry_ras, "path 2")


def test_the_ablation_begins_at_once_and_ends_when_asked_twice(
    qtbot: QtBot, window: MainWindow, session: FakeSession, step: Step
) -> None:
    session.put(snapshot(T0))
    step()
    press(qtbot, window, Qt.Key.Key_G)
    assert session.events == [StartAblation()]
    session.put(replace(snapshot(T0), ablation=AblationTimer(12.0, 600.0, True)))
    step()
    assert window.rail.buttons["ablation"].isChecked()
    press(qtbot, window, Qt.Key.Key_G)
    assert session.events == [StartAblation()]  # Once is a question.
    press(qtbot, window, Qt.Key.Key_G)
    assert session.events == [StartAblation(), StopAblation()]


def test_space_acknowledges_and_the_alarm_stays(
    qtbot: QtBot, window: MainWindow, session: FakeSession, step: Step
) -> None:
    session.put(lost_snapshot(T0))
    step()
    assert window.message.message.flashing
    press(qtbot, window, Qt.Key.Key_Space)
    assert session.events[-1] == AcknowledgeAlarm()
    session.now_ns += 60 * MS
    session.put(lost_snapshot(session.now_ns))
    step()
    assert not window.message.message.flashing
    assert "lost" in window.message.message.text
    assert not window.message.button.isVisible()


def test_screenshot_key_writes_a_png_with_metadata(
    qtbot: QtBot, window: MainWindow, session: FakeSession, step: Step
) -> None:
    session.put(snapshot())
    step()
    press(qtbot, window, Qt.Key.Key_S)
    image = QImage(session.picture_path)
    assert image.size() == window.size()
    assert image.text("Case") == "CASE-0001"
    assert image.text("Software") == "ablation-nav"


def test_a_screenshot_that_cannot_be_written_is_said(
    qtbot: QtBot, window: MainWindow, session: FakeSession, step: Step
) -> None:
    session.put(snapshot())
    session.picture_path = "/nonexistent/folder/x.png"
    press(qtbot, window, Qt.Key.Key_S)
    step()
    assert "/nonexistent/folder/x.png" in window.message.message.text


def test_help_lists_every_action(qtbot: QtBot, window: MainWindow) -> None:
    qtbot.keyClicks(window, "?")
    assert window.help.isVisible()
    from PySide6.QtWidgets import QLabel

    text = " ".join(w.text() for w in window.help.findChildren(QLabel))
    for action in ACTIONS:
        assert action.text in text
    press(qtbot, window, Qt.Key.Key_Escape)
    assert not window.help.isVisible()


def test_help_and_the_lamps_under_the_pointer_show_the_streams(
    qtbot: QtBot, window: MainWindow, session: FakeSession, step: Step
) -> None:
    session.current = snapshot()
    step()
    qtbot.keyClicks(window, "?")
    session.now_ns += 200 * MS
    session.current = snapshot(session.now_ns)
    step()
    assert "NeedleToTracker: live, 60 of 60 Hz; no stamps" in window.help.streams.text()
    assert "ultrasound: live" in window.help.streams.text()
    assert "NeedleToTracker" in window.lamps.detail_at(QPointF(20.0, 20.0))
    assert window.lamps.detail_at(QPointF(2.0, 20.0)) == ""
    assert window.lamps.detail_at(QPointF(window.width() - 5.0, 20.0)) == ""


def test_every_action_has_a_handler_and_keys_are_unique(window: MainWindow) -> None:
    keys = [key for action in ACTIONS for key in action.keys]
    assert len(keys) == len(set(keys))
    for action in ACTIONS:
        window.controller.trigger(action.name)
        window.controller.release(action.name)


def test_buttons_are_large_enough_for_a_glove(window: MainWindow, session: FakeSession) -> None:
    for button in window.rail.buttons.values():
        if button.isVisible():
            assert button.height() >= 44
            assert button.width() >= 44
    window.show_side(1)
    from PySide6.QtWidgets import QPushButton

    for key in window.setup.steps:
        window.setup.open_step(key)
        for button in window.setup.findChildren(QPushButton):
            if button.isVisible():
                assert button.height() >= 44, button.text()
    assert session.events == []


def test_the_rail_fits_the_smallest_window(window: MainWindow, qapp: QApplication) -> None:
    window.resize(*MINIMUM_SIZE)
    qapp.processEvents()
    for button in window.rail.buttons.values():
        assert not button.isVisible() or button.geometry().bottom() <= window.rail.height()
    for name in ("freeze", "record", "help", "layout_guide", "screenshot"):
        assert window.rail.buttons[name].isVisible()


def test_buttons_do_what_keys_do(qtbot: QtBot, window: MainWindow, session: FakeSession, step: Step) -> None:
    qtbot.mouseClick(window.rail.buttons["freeze"], Qt.MouseButton.LeftButton)
    assert session.view_state.frozen
    qtbot.mousePress(window.rail.buttons["hide_overlays"], Qt.MouseButton.LeftButton)
    assert not session.view_state.show_overlays
    qtbot.mouseRelease(window.rail.buttons["hide_overlays"], Qt.MouseButton.LeftButton)
    assert session.view_state.show_overlays
    session.put(lost_snapshot(T0))
    step()
    qtbot.mouseClick(window.message.button, Qt.MouseButton.LeftButton)
    assert session.events == [AcknowledgeAlarm()]


# -- mouse ---------------------------------------------------------------------------------------------------------


def test_left_drag_sets_window_and_level_of_all_planes(window: MainWindow, session: FakeSession) -> None:
    before = session.view_state
    drag(window.panes["B"], Qt.MouseButton.LeftButton, right=40.0, up=10.0)
    assert session.view_state.window_hu == pytest.approx(before.window_hu + 80.0)
    assert session.view_state.level_hu == pytest.approx(before.level_hu + 20.0)
    drag(window.panes["B"], Qt.MouseButton.LeftButton, right=-4000.0, up=0.0)
    assert session.view_state.window_hu == 1.0


def test_left_drag_orbits_the_3d_view(window: MainWindow, session: FakeSession) -> None:
    before = session.view_state
    drag(window.panes["D"], Qt.MouseButton.LeftButton, right=50.0, up=0.0)
    assert session.view_state.camera_azimuth_deg != before.camera_azimuth_deg
    assert session.view_state.window_hu == before.window_hu


def test_middle_drag_pans_one_pane_with_the_hand(window: MainWindow, session: FakeSession) -> None:
    drag(window.panes["A"], Qt.MouseButton.MiddleButton, right=100.0, up=20.0)
    right, up = (session.view_state.pan_mm or {})["A"]
    assert right == pytest.approx(-100.0 * session.view_state.mm_per_px)
    assert up == pytest.approx(-20.0 * session.view_state.mm_per_px)
    assert "B" not in (session.view_state.pan_mm or {})


def test_right_drag_zooms(window: MainWindow, session: FakeSession) -> None:
    before = session.view_state.mm_per_px
    drag(window.panes["A"], Qt.MouseButton.RightButton, right=0.0, up=50.0)
    assert session.view_state.mm_per_px < before


def test_wheel_moves_one_plane(window: MainWindow, session: FakeSession) -> None:
    wheel(window.panes["A"], 3)
    wheel(window.panes["A"], -1, Qt.KeyboardModifier.ShiftModifier)
    assert session.view_state.plane_offset_mm == {"A": -2.0}
    before = session.view_state.mm_per_px
    wheel(window.panes["A"], 1, Qt.KeyboardModifier.ControlModifier)
    assert session.view_state.mm_per_px == pytest.approx(before / 1.1)
    assert session.view_state.plane_offset_mm == {"A": -2.0}
    wheel(window.panes["D"], 1)
    assert session.view_state.camera_zoom == pytest.approx(1.1)


def test_home_recentres(qtbot: QtBot, window: MainWindow, session: FakeSession) -> None:
    fresh = session.view_state
    wheel(window.panes["A"], 3)
    drag(window.panes["C"], Qt.MouseButton.MiddleButton, 30.0, 0.0)
    press(qtbot, window, Qt.Key.Key_Home)
    assert not session.view_state.plane_offset_mm
    assert not session.view_state.pan_mm
    assert session.view_state.mm_per_px == fresh.mm_per_px


def test_a_click_alone_changes_nothing(window: MainWindow, session: FakeSession, step: Step) -> None:
    session.put(snapshot())
    step()
    before = session.view_state
    click(window.panes["A"], (60.0, 60.0))
    assert session.view_state == before
    assert session.events == []


def test_crosshair_mode_places_the_crosshair_and_not_the_target(
    qtbot: QtBot, window: MainWindow, session: FakeSession, step: Step
) -> None:
    session.put(snapshot())
    step()
    press(qtbot, window, Qt.Key.Key_C)
    pane = window.panes["A"]
    click(pane, (pane.viewport().width() / 2, pane.viewport().height() / 2))
    ras = session.view_state.crosshair_ras
    assert ras is not None
    # Middle of the fake 200 x 160 picture: pixel (99.5, 79.5), mapped by its matrix.
    assert ras == pytest.approx((-0.25, 0.25, 5.0), abs=0.3)
    assert session.events == []
    press(qtbot, window, Qt.Key.Key_C)
    assert session.view_state.crosshair_ras is None


def test_hover_tells_ct_number_and_place(window: MainWindow, session: FakeSession, step: Step) -> None:
    session.put(snapshot())
    step()
    mouse(window.panes["A"], QEvent.Type.MouseMove, (5.0, 5.0), Qt.MouseButton.NoButton, Qt.MouseButton.NoButton)
    session.now_ns += 60 * MS
    step()
    text = window.panes["A"].overlay.decor.hover_text
    assert text.startswith("\u221242 HU   L 4")
    assert window.panes["B"].overlay.decor.hover_text == ""
    session.now_ns += 60 * MS
    QApplication.sendEvent(window.panes["A"], QEvent(QEvent.Type.Leave))
    step()
    assert window.panes["A"].overlay.decor.hover_text == ""


def test_double_click_maximises_and_back(window: MainWindow, session: FakeSession) -> None:
    left = Qt.MouseButton.LeftButton
    for expected in ("B", ""):
        mouse(window.panes["B"], QEvent.Type.MouseButtonDblClick, (50.0, 50.0), left, left)
        assert session.view_state.maximised == expected


def test_measuring(qtbot: QtBot, window: MainWindow, session: FakeSession, step: Step) -> None:
    session.put(snapshot())
    step()
    press(qtbot, window, Qt.Key.Key_M)
    pane = window.panes["A"]
    width = pane.viewport().width()
    click(pane, (width * 0.25, 100.0))
    click(pane, (width * 0.75, 100.0))
    measure = window.controller.measure
    assert measure is not None
    assert measure.end is not None
    # Half of a picture of 200 px at 0.5 mm.
    assert measure.end[0] - measure.start[0] == pytest.approx(50.0, abs=0.5)
    press(qtbot, window, Qt.Key.Key_Escape)
    assert window.controller.measure is None


def test_no_key_starts_anything_without_a_case(qtbot: QtBot, window: MainWindow, session: FakeSession) -> None:
    session.case = None
    press(qtbot, window, Qt.Key.Key_T)
    assert session.events == []
