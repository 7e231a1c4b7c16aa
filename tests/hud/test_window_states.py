"""A screenshot of every state, judged by its pixels: what must be there is, and what must not be is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PySide6.QtGui import QImage

from nav.guidance.numbers import GateReason, GateState, GateVerdict
from nav.hud.hud_state import Freshness
from nav.hud.main_window import MainWindow
from tests.hud.fakes import MS, T0, FakeSession, frame, lost_snapshot, setup_snapshot, snapshot

Picture = Callable[[str], QImage]
Pixels = NDArray[np.uint8]

RED, YELLOW, CYAN, WHITE, ZONE = (220, 38, 38), (250, 204, 21), (103, 232, 249), (255, 255, 255), (127, 212, 255)


def pixels(image: QImage) -> Pixels:
    """(h, w, 3) RGB."""
    raw = np.frombuffer(image.constBits(), np.uint8).reshape(image.height(), image.bytesPerLine() // 4, 4)
    return raw[:, : image.width(), 2::-1].copy()


def pane_pixels(window: MainWindow, image: QImage, key: str) -> Pixels:
    """The part of the picture where a pane is."""
    pane = window.panes[key]
    corner = pane.mapTo(window, pane.rect().topLeft())
    return pixels(image)[corner.y() : corner.y() + pane.height(), corner.x() : corner.x() + pane.width()]


def share(area: Pixels, colour: tuple[int, int, int]) -> float:
    """Share of pixels within 12 levels of a colour."""
    return float((np.abs(area.astype(int) - colour).max(axis=2) <= 12).mean())


def border(area: Pixels) -> Pixels:
    """The outermost pixels but the two corner columns where lines end."""
    return np.concatenate([area[1:3, 20:-20].reshape(-1, 3), area[-3:-1, 20:-20].reshape(-1, 3)])[None]


def needle_line(area: Pixels) -> Pixels:
    """Where the fake pictures have their needle: left of the middle, at half height, clear of the letter."""
    h, w = area.shape[:2]
    return area[h // 2 - 2 : h // 2 + 3, w // 5 : w * 2 // 5]


def test_normal(window: MainWindow, session: FakeSession, picture: Picture) -> None:
    session.put(snapshot())
    image = picture("normal")
    for key in "ABC":
        area = pane_pixels(window, image, key)
        assert share(needle_line(area), WHITE) > 0.3
        assert share(area, ZONE) > 0.002
        assert share(border(area), RED) == 0.0
    assert share(needle_line(pane_pixels(window, image, "D")), WHITE) > 0.3
    assert window.readouts.text_of("tip_to_target") == "42.3"
    assert not window.message.button.isVisible()


def test_stale(window: MainWindow, session: FakeSession, picture: Picture) -> None:
    session.put(snapshot())
    session.now_ns += 150 * MS
    image = picture("stale")
    for key in "ABCD":
        area = pane_pixels(window, image, key)
        assert share(border(area), YELLOW) > 0.9
        assert share(needle_line(area), WHITE) > 0.3
    assert window.readouts.text_of("tip_to_target") == "42.3"


@pytest.mark.parametrize("state", ["lost", "link_lost"])
def test_lost_tool_and_lost_link(window: MainWindow, session: FakeSession, picture: Picture, state: str) -> None:
    session.put(snapshot())
    picture("before")
    session.now_ns += 300 * MS
    # The pictures are still the old ones, with a needle in them: only the snapshot has changed yet.
    session.current = lost_snapshot(session.now_ns, state=state)
    image = picture(state)
    for key in "ABCD":
        area = pane_pixels(window, image, key)
        assert share(border(area), RED) > 0.9
        assert share(needle_line(area), WHITE) == 0.0
        assert share(area, ZONE) < 1e-4
    assert {r.value for r in window.readouts.readouts} == {"---"}
    assert not window.bullseye.state.shown
    assert window.message.button.isVisible()


def test_dead_compute_thread(window: MainWindow, session: FakeSession, picture: Picture) -> None:
    session.put(snapshot())
    picture("before")
    session.now_ns += 260 * MS
    image = picture("stopped")
    for key in "ABCD":
        area = pane_pixels(window, image, key)
        assert share(border(area), RED) > 0.9
        assert share(needle_line(area), WHITE) == 0.0
    assert window.message.message.code == "navigation_stopped"
    assert {r.value for r in window.readouts.readouts} == {"---"}


def test_old_picture_of_a_live_stream_shows_no_needle(
    window: MainWindow, session: FakeSession, picture: Picture
) -> None:
    """A render worker that hangs: the snapshots go on, the pictures do not."""
    session.put(snapshot())
    picture("before")
    session.now_ns += 400 * MS
    session.current = snapshot(session.now_ns)
    image = picture("old-picture")
    assert window.state is not None
    assert window.state.panes.freshness is Freshness.NORMAL
    for key in "ABCD":
        assert share(needle_line(pane_pixels(window, image, key)), WHITE) == 0.0


def test_the_paint_event_itself_refuses_an_old_pose(
    window: MainWindow, session: FakeSession, picture: Picture, step: Callable[[], None]
) -> None:
    session.put(snapshot())
    step()
    session.now_ns += 400 * MS
    # Painted without any tick in between.
    image = window.panes["A"].viewport().grab().toImage().convertToFormat(QImage.Format.Format_RGB32)
    assert share(needle_line(pixels(image)), WHITE) == 0.0
    picture("after")


def test_blank_before_registration(window: MainWindow, session: FakeSession, picture: Picture) -> None:
    session.put(setup_snapshot())
    image = picture("blank")
    for key in "ABCD":
        area = pane_pixels(window, image, key)
        assert share(border(area), RED) == 0.0
        assert share(needle_line(area), WHITE) == 0.0
        assert share(area, CYAN) > 0.0005
    assert {r.value for r in window.readouts.readouts} == {"---"}
    assert window.message.message.text.startswith("Touch landmark left rib 10")


def test_assumed_registration_is_degraded_and_not_blank(
    window: MainWindow, session: FakeSession, picture: Picture
) -> None:
    shown = snapshot()
    assert shown.registration is not None
    session.put(
        replace(
            shown,
            registration=replace(shown.registration, method="assumed", fre_mm=None, tre_at_target_mm=None),
            gate=GateVerdict(
                GateState.DEGRADED,
                (GateReason("registration_assumed", GateState.DEGRADED, "Registration is assumed, not measured."),),
            ),
        )
    )
    image = picture("assumed")
    bar = pixels(image)[:44]
    assert share(bar, YELLOW) > 0.002
    assert share(needle_line(pane_pixels(window, image, "A")), WHITE) > 0.3
    assert "assumed" in window.message.message.text
    assert window.readouts.text_of("tip_to_target") == "42.3"


def test_frozen_says_so_and_keeps_running_numbers(window: MainWindow, session: FakeSession, picture: Picture) -> None:
    session.put(snapshot())
    picture("before")
    kept = window.panes["A"].frame
    window.controller.trigger("freeze")
    session.now_ns += 5000 * MS
    session.put(snapshot(session.now_ns))
    image = picture("frozen")
    for key in "ABCD":
        assert share(border(pane_pixels(window, image, key)), CYAN) > 0.9
    assert window.panes["A"].frame is kept
    # The needle of a frozen picture is dotted.
    assert 0.0 < share(needle_line(pane_pixels(window, image, "A")), WHITE) < 0.2
    assert window.readouts.text_of("tip_to_target") == "42.3"
    session.now_ns += 300 * MS
    session.current = lost_snapshot(session.now_ns)
    image = picture("frozen-and-lost")
    assert share(needle_line(pane_pixels(window, image, "A")), WHITE) == 0.0
    assert share(border(pane_pixels(window, image, "A")), RED) > 0.9
    window.controller.trigger("freeze")
    session.put(snapshot(session.now_ns))
    image = picture("running")
    assert share(border(pane_pixels(window, image, "A")), CYAN) == 0.0


def test_recovered_looks_as_if_nothing_had_happened(session: FakeSession, picture: Picture) -> None:
    session.put(snapshot())
    before = picture("normal")
    session.now_ns += 300 * MS
    session.put(lost_snapshot(session.now_ns))
    lost = picture("lost")
    assert lost != before
    session.now_ns = T0 + 60_000 * MS
    # Whole minutes later, so that the age of the registration reads the same.
    fresh = snapshot(session.now_ns)
    session.put(fresh)
    after = picture("recovered")
    different = (pixels(before) != pixels(after)).any(axis=2)
    assert different.mean() < 1e-4


def test_ultrasound_is_never_shown_old(window: MainWindow, session: FakeSession, picture: Picture) -> None:
    shown = snapshot()
    session.put(shown)
    fused = replace(frame("C", shown), ultrasound_shown=True, ultrasound_age_ms=40.0)
    session.frames["C"] = fused
    image = picture("fused")
    assert share(needle_line(pane_pixels(window, image, "C")), WHITE) > 0.3
    assert window.panes["C"].overlay.picture_shown
    session.now_ns += 190 * MS
    assert shown.image is not None
    # Needle and snapshot are fresh; only the ultrasound image stays what it was.
    session.current = replace(snapshot(session.now_ns), image=shown.image)
    session.now_ns += 5 * MS
    picture("old-ultrasound")
    assert not window.panes["C"].overlay.picture_shown
    assert window.panes["A"].overlay.picture_shown


def test_research_only_banner_and_pseudonym_are_always_there(
    window: MainWindow, session: FakeSession, picture: Picture
) -> None:
    width = window.width()
    session.put(snapshot())
    first = pixels(picture("a"))[4:22, width - 330 : width - 8]
    window.controller.trigger("help")
    window.controller.trigger("pane_D")
    session.now_ns += 1000 * MS
    second = pixels(picture("b"))[4:22, width - 330 : width - 8]
    assert np.array_equal(first, second)
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 4  # Text, not a plain field.


def test_before_the_first_picture(window: MainWindow, picture: Picture) -> None:
    image = picture("empty")
    assert share(pixels(image), RED) == 0.0
    assert {r.value for r in window.readouts.readouts} == {"---"}


def test_a_fault_of_the_display_itself_covers_the_panes(
    window: MainWindow,
    session: FakeSession,
    picture: Picture,
    step: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session.put(snapshot())
    picture("before")

    def broken() -> None:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(session, "latest_snapshot", broken)
        with pytest.raises(RuntimeError, match="no memory"):
            window.tick()
        step()  # Said once, not at every tick.
        assert window.fault.isVisible()
        assert window.fault.geometry() == window.grid.geometry()
        assert "no memory" in window.fault.text()
        assert {r.value for r in window.readouts.readouts} == {"---"}
        assert not window.bullseye.state.shown
        covered = pane_pixels(window, picture("covered"), "A")
        assert share(needle_line(covered), WHITE) == 0.0
    picture("again")
    assert not window.fault.isVisible()
    assert window.readouts.text_of("tip_to_target") == "42.3"
