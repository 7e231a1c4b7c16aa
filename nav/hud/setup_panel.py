"""The set-up in the window: case, tumour, plan, landmarks, tip check, applicator, guidance. No command line needed."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import (
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QStackedWidget,
    QVBoxLayout,
    QWidget,
)

from nav.hud import palette
from nav.hud.controller import Controller
from nav.hud.file_work import FileWork
from nav.hud.session import HudSession
from nav.hud.setup_case_pages import CasePage, PlanPage, TumourPage
from nav.hud.setup_patient_pages import ApplicatorPage, GuidePage, LandmarksPage, TipPage
from nav.hud.setup_widgets import AskPath, Page, ask_path, label, set_text
from nav.runtime.events import Point
from nav.runtime.snapshot import NavigationSnapshot

__all__ = ["STEPS", "SetupPanel"]

STEPS: tuple[tuple[str, str], ...] = (
    ("case", "Case"),
    ("tumour", "Tumour"),
    ("plan", "Plan"),
    ("landmarks", "Landmarks"),
    ("tip_check", "Tip check"),
    ("applicator", "Applicator"),
    ("guide", "Guide"),
)


class SetupPanel(QWidget):
    """A list of steps, the page of one of them, and a line that says what happened.

    The page follows the step that is due, until the person opens another one by hand.
    """

    guiding = Signal()

    def __init__(self, session: HudSession, controller: Controller, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.session = session
        self._controller = controller
        self.work = FileWork(self)
        self.path_asker: AskPath | None = None
        self._step_followed = ""
        self.steps: dict[str, QPushButton] = {}
        self.pages: dict[str, Page] = {}
        self._build()
        self.work.started.connect(self._on_started)
        self.work.progressed.connect(self._on_progress)
        self.work.finished.connect(self._on_finished)
        self.work.failed.connect(self._on_failed)
        self.open_step("case")

    def _build(self) -> None:
        outer = QVBoxLayout(self)
        outer.setContentsMargins(6, 4, 2, 4)
        outer.setSpacing(6)
        grid = QGridLayout()
        grid.setSpacing(2)
        for n, (key, title) in enumerate(STEPS):
            step = QPushButton(f"{n + 1}  {title}")
            step.setProperty("role", "step")
            step.setCheckable(True)
            step.setFocusPolicy(Qt.FocusPolicy.NoFocus)
            step.clicked.connect(lambda _checked=False, k=key: self.open_step(k))
            self.steps[key] = step
            grid.addWidget(step, n % 4, n // 4)
        outer.addLayout(grid)
        line = QFrame()
        line.setFixedHeight(1)
        line.setStyleSheet(f"background: {palette.BORDER};")
        outer.addWidget(line)
        makers: dict[str, Callable[[SetupPanel], Page]] = {
            "case": CasePage,
            "tumour": TumourPage,
            "plan": PlanPage,
            "landmarks": LandmarksPage,
            "tip_check": TipPage,
            "applicator": ApplicatorPage,
            "guide": GuidePage,
        }
        self.stack = QStackedWidget()
        for key, _ in STEPS:
            page = makers[key](self)
            self.pages[key] = page
            scroll = QScrollArea()
            scroll.setWidgetResizable(True)
            scroll.setFrameShape(QFrame.Shape.NoFrame)
            scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
            scroll.setWidget(page)
            self.stack.addWidget(scroll)
        outer.addWidget(self.stack, 1)
        self.problem = label("", "problem")
        self.problem.hide()
        outer.addWidget(self.problem)
        self.progress = QProgressBar()
        self.progress.hide()
        self.cancel = QPushButton("Cancel")
        self.cancel.clicked.connect(self.work.cancel)
        self.cancel.hide()
        row = QHBoxLayout()
        row.addWidget(self.progress, 1)
        row.addWidget(self.cancel)
        outer.addLayout(row)
        self.line = label("", "muted")
        outer.addWidget(self.line)

    # -- steps ---------------------------------------------------------------------------------------------------

    def open_step(self, key: str) -> None:
        """Open the page of a step."""
        for name, step in self.steps.items():
            step.setChecked(name == key)
        self.stack.setCurrentIndex([k for k, _ in STEPS].index(key))
        self._say_nothing()

    @property
    def step(self) -> str:
        """The step whose page is open."""
        return STEPS[self.stack.currentIndex()][0]

    def show_snapshot(self, snapshot: NavigationSnapshot | None) -> None:
        """Show what the snapshot says of the set-up; cheap while the panel is hidden."""
        if not self.isVisible():
            return
        if snapshot is not None:
            setup = snapshot.setup
            if setup.step != self._step_followed:
                self._step_followed = setup.step
                if setup.step in self.pages:
                    self.open_step(setup.step)
            for n, (key, title) in enumerate(STEPS):
                mark = "\u2713" if key in setup.done else "\u25b6" if key == setup.step else f"{n + 1}"
                set_text(self.steps[key], f"{mark}  {title}")
            if setup.message:
                self.say(setup.message)
        self.pages[self.step].show_snapshot(snapshot)

    def guidance_started(self) -> None:
        """The person has started guidance: the window shows the guide layout."""
        self._controller.trigger("layout_guide")

    # -- what pages ask for (PageHost) ---------------------------------------------------------------------------

    def ask(self, kind: str, title: str, pattern: str = "") -> str:
        """A path chosen by the person, empty when cancelled."""
        if self.path_asker is not None:
            return self.path_asker(kind, title, pattern)
        return ask_path(self.window(), kind, title, pattern)

    def say(self, text: str, *, problem: bool = False) -> None:
        """Show a line under the page; a problem stands out until the next thing is done."""
        set_text(self.problem if problem else self.line, text)
        self.problem.setVisible(problem)

    def crosshair(self) -> Point | None:
        """Where the crosshair is, RAS mm."""
        return self.session.view().crosshair_ras

    def set_crosshair_mode(self, on: bool) -> None:
        """Let clicks in the planes place the crosshair."""
        if self._controller.crosshair_on != on:
            self._controller.trigger("crosshair")
        self.say("Click in a plane to place the crosshair" if on else "")

    def place_crosshair(self, ras: Point) -> None:
        """Show a point in the planes."""
        self._controller.place_crosshair(ras)

    def shut_down(self) -> None:
        """Cancel file work and wait for it."""
        self.work.shut_down()

    # -- file work -----------------------------------------------------------------------------------------------

    def _on_started(self, title: str) -> None:
        self._say_nothing()
        self.progress.setRange(0, 0)
        self.progress.setFormat(title)
        self.progress.show()
        self.cancel.show()
        self.stack.setEnabled(False)
        self.say(title + " \u2026")

    def _on_progress(self, share: float, text: str) -> None:
        if share < 0.0:
            self.progress.setRange(0, 0)
        else:
            self.progress.setRange(0, 1000)
            self.progress.setValue(round(1000 * min(share, 1.0)))
        self.say(text)

    def _on_finished(self) -> None:
        self._idle()
        self.say("")

    def _on_failed(self, problem: str) -> None:
        self._idle()
        self.say("")
        self.say(problem, problem=True)

    def _idle(self) -> None:
        self.progress.hide()
        self.cancel.hide()
        self.stack.setEnabled(True)

    def _say_nothing(self) -> None:
        self.problem.hide()
        set_text(self.line, "")
