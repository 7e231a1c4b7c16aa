"""Runs the Qt event loop for a while, with things to do on the way. The only place that starts it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence

from PySide6.QtCore import QTimer
from PySide6.QtWidgets import QApplication

__all__ = ["run_event_loop"]

BEAT_MS = 100


def run_event_loop(
    app: QApplication,
    *,
    duration_s: float | None,
    at: Sequence[tuple[float, Callable[[], None]]] = (),
    beat: Callable[[], bool] = lambda: True,
) -> None:
    """Run until the last window is closed, Ctrl-C, ``duration_s`` is over, or ``beat`` returns False.

    Parameters
    ----------
    at : sequence of (seconds, callable)
        Called once each, that long after the start.
    beat : callable
        Called ten times a second (which also lets Python see a signal); False ends the loop.
    """

    def pulse() -> None:
        if not beat():
            app.quit()

    timer = QTimer()
    timer.timeout.connect(pulse)
    timer.start(BEAT_MS)
    for seconds, action in at:
        QTimer.singleShot(round(seconds * 1000), action)
    if duration_s is not None:
        QTimer.singleShot(round(duration_s * 1000), app.quit)
    previous = signal.signal(signal.SIGINT, lambda *_: app.quit())
    try:
        app.exec()
    finally:
        signal.signal(signal.SIGINT, previous)
        timer.stop()
