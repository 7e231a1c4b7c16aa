"""Painting costs: references, widgets, flushes, the end of paint, and processor time."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable

import pytest
from PySide6.QtCore import QEvent, QObject, QTimer
from PySide6.QtWidgets import QApplication

from nav.hud.main_window import MainWindow
from nav.hud.paint_meter import PaintMeter
from tests.hud.fakes import MS, T0, FakeSession, snapshot

Step = Callable[[], None]


def test_two_hundred_paints_lose_no_reference_to_none(session: FakeSession, step: Step) -> None:
    """PySide6 6.12.0 drops references to None while painting until the interpreter aborts (Python 3.11)."""

    def paint(count: int) -> None:
        for _ in range(count):
            session.now_ns += 16 * MS
            session.put(snapshot(session.now_ns))
            step()

    paint(20)
    gc.collect()
    before = sys.getrefcount(None)
    paint(200)
    gc.collect()
    assert abs(sys.getrefcount(None) - before) < 100


def test_closed_windows_leave_no_widget_and_no_timer(qapp: QApplication, session: FakeSession) -> None:
    def once() -> None:
        window = MainWindow(session, show_time=False)
        window.show()
        window.start()
        qapp.processEvents()
        window.close()
        window.deleteLater()
        qapp.sendPostedEvents(None, QEvent.Type.DeferredDelete.value)
        qapp.processEvents()

    once()
    gc.collect()
    before = len(qapp.allWidgets())
    for _ in range(3):
        once()
    gc.collect()
    assert len(qapp.allWidgets()) == before


def test_closing_stops_the_timer(window: MainWindow) -> None:
    window.start()
    timers = [t for t in window.findChildren(QTimer) if t.isActive()]
    assert timers
    window.close()
    assert not any(t.isActive() for t in timers)


def test_one_flush_for_four_new_pictures(window: MainWindow, session: FakeSession, step: Step) -> None:
    session.put(snapshot())
    step()
    flushes: list[int] = []

    class Counter(QObject):
        def eventFilter(self, _watched: QObject, event: QEvent) -> bool:
            if event.type() == QEvent.Type.UpdateRequest:
                flushes.append(1)
            return False

    counter = Counter()
    window.installEventFilter(counter)
    for _ in range(10):
        session.now_ns += 16 * MS
        session.put(snapshot(session.now_ns))
        step()
    window.removeEventFilter(counter)
    assert len(flushes) == 10


def test_the_end_of_paint_is_reported_once_per_picture(qapp: QApplication, session: FakeSession) -> None:
    painted: list[tuple[str, int, int, int]] = []
    window = MainWindow(session, on_painted=lambda *a: painted.append(a), show_time=False)
    window.show()
    qapp.processEvents()
    session.put(snapshot())
    window.tick()
    session.now_ns += 5 * MS
    qapp.processEvents()
    shown = snapshot()
    assert sorted(painted) == [(k, shown.sequence, shown.needle.arrival_ns, T0 + 5 * MS) for k in "ABCD"]
    # The same pictures painted again do not count again.
    for pane in window.panes.values():
        pane.viewport().update()
    qapp.processEvents()
    assert len(painted) == 4
    window.close()
    window.deleteLater()
    qapp.processEvents()


def test_nothing_new_paints_no_pane(window: MainWindow, session: FakeSession, step: Step) -> None:
    session.put(snapshot())
    step()
    for pane in window.panes.values():
        assert not pane.flush()


def test_processor_time_of_a_frame(session: FakeSession, step: Step) -> None:
    """Median of polling, presenting and painting four panes; measured 5 ms, so 25 ms is a factor and not a wobble."""
    spent = []
    for _ in range(40):
        session.now_ns += 16 * MS
        session.put(snapshot(session.now_ns))
        start = time.thread_time()
        step()
        spent.append(time.thread_time() - start)
    assert sorted(spent)[len(spent) // 2] < 0.025


def test_meter_counts_pictures_and_ages_of_the_last_second() -> None:
    meter = PaintMeter()
    for n in range(90):
        now = T0 + n * 20 * MS
        assert meter.painted("C", n, now - (30 + n % 10) * MS, now)
    assert not meter.painted("C", 89, T0, T0)
    now = T0 + 89 * 20 * MS
    assert meter.fps("C", now) == 50.0
    assert meter.age_p95_ms(now) == pytest.approx(39.0, abs=1.01)
    assert meter.age_p95_ms(now + 2000 * MS) is None
    assert meter.fps("A", now) == 0.0
