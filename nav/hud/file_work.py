"""File work outside the Qt thread: one job at a time, with progress and cancel, its outcome back on the Qt thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PySide6.QtCore import QObject, QRunnable, QThreadPool, Signal

from nav.hud.session import FileProblem, Progress

__all__ = ["FileWork"]


class _Cancelled(Exception):
    """Raised inside a job at its next progress report."""


class _Job(QRunnable):
    def __init__(self, owner: FileWork, number: int, work: Callable[[Progress], Any]) -> None:
        super().__init__()
        self.setAutoDelete(True)
        self._owner, self._number, self._work = owner, number, work

    def run(self) -> None:
        owner, number = self._owner, self._number

        def progress(share: float, text: str) -> None:
            if owner.cancelled or number != owner.number:
                raise _Cancelled
            owner._progressed.emit(number, share, text)

        try:
            result = self._work(progress)
        except _Cancelled:
            owner._ended.emit(number, None, "cancelled")
        except (FileProblem, ValueError, OSError, LookupError) as error:
            owner._ended.emit(number, None, str(error) or type(error).__name__)
        except Exception as error:  # A bug in a reader must not kill the window that guides a needle.
            owner._ended.emit(number, None, f"internal error: {type(error).__name__}: {error}")
        else:
            owner._ended.emit(number, result, "")


class FileWork(QObject):
    """Runs one blocking call at a time.

    Signals
    -------
    started(str), progressed(float, str), finished(), failed(str)
        On the Qt thread.
    """

    started = Signal(str)
    progressed = Signal(float, str)
    finished = Signal()
    failed = Signal(str)
    _progressed = Signal(int, float, str)
    _ended = Signal(int, object, str)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._pool = QThreadPool(self)
        self._pool.setMaxThreadCount(1)
        self._done: Callable[[Any], None] | None = None
        self.number = 0
        self.busy = False
        self.cancelled = False
        self._progressed.connect(self._on_progress)
        self._ended.connect(self._on_end)

    def run(self, title: str, work: Callable[[Progress], Any], done: Callable[[Any], None]) -> bool:
        """Start a job; False (and nothing happens) while another one runs. ``done`` is called with its result."""
        if self.busy:
            return False
        self.number += 1
        self.busy, self.cancelled, self._done = True, False, done
        self.started.emit(title)
        self._pool.start(_Job(self, self.number, work))
        return True

    def cancel(self) -> None:
        """Ask the job to end; it does at its next progress report."""
        self.cancelled = True

    def shut_down(self) -> None:
        """Cancel and wait (5 s at most)."""
        self.cancel()
        self._done = None
        self._pool.waitForDone(5000)

    def _on_progress(self, number: int, share: float, text: str) -> None:
        if number == self.number and self.busy:
            self.progressed.emit(share, text)

    def _on_end(self, number: int, result: Any, problem: str) -> None:
        if number != self.number:
            return
        done, self._done, self.busy = self._done, None, False
        if problem:
            self.failed.emit(problem)
            return
        self.finished.emit()
        if done is not None:
            done(result)
