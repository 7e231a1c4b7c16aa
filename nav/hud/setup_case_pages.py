"""Set-up pages of what is known before the patient: case, tumour, plan."""

from __future__ import annotations

import math

from PySide6.QtCore import Qt
from PySide6.QtWidgets import (
    QAbstractItemView,
    QHBoxLayout,
    QHeaderView,
    QListWidget,
    QListWidgetItem,
    QTableWidget,
    QTableWidgetItem,
)

from nav.hud.numbers_text import format_value
from nav.hud.presentation import zone_label
from nav.hud.session import SeriesChoice, TumourChoice
from nav.hud.setup_widgets import Page, PageHost, button, label, point_text, set_text
from nav.io.case import PlannedPath
from nav.runtime.events import Point, SetPlan
from nav.runtime.snapshot import NavigationSnapshot

__all__ = ["CasePage", "PlanPage", "TumourPage"]

_IMAGES = "Images (*.nrrd *.nhdr *.nii *.nii.gz *.mha *.mhd *.dcm);;All files (*)"
_MASKS = "Masks and label maps (*.nrrd *.nhdr *.nii *.nii.gz *.mha *.mhd *.dcm);;All files (*)"
_MARKUPS = "Markups and plans (*.mrk.json *.json);;All files (*)"


class CasePage(Page):
    """Open a CT: a DICOM folder or one file; several series give a list to choose from."""

    def __init__(self, host: PageHost) -> None:
        super().__init__(host, "Open the CT. Its series stay apart: where there are several, choose one.")
        self.folder = button("Open DICOM folder \u2026", lambda: self._open("folder"), primary=True)
        self.file = button("Open CT file \u2026", lambda: self._open("file"))
        self.series = QListWidget()
        self.series.itemActivated.connect(self._choose)
        self.series.itemClicked.connect(self._choose)
        self.series.setMinimumHeight(140)
        self.series.hide()
        self.info = label()
        self.warnings = label("", "warning")
        for widget in (self.folder, self.file, self.series, self.info, self.warnings):
            self.column.addWidget(widget)
        self.column.addStretch(1)
        self._path = ""

    def _open(self, kind: str) -> None:
        path = self.host.ask(kind, "Open CT", _IMAGES)
        if path:
            self.open_path(path)

    def open_path(self, path: str) -> None:
        """Look for series at a path; the only one is opened at once."""
        self._path = path
        session = self.session
        self.host.work.run("Looking for CT series", lambda p: session.scan_ct(path, p), self._found)

    def _found(self, choices: tuple[SeriesChoice, ...]) -> None:
        self.series.clear()
        self.series.setVisible(len(choices) > 1)
        if not choices:
            self.host.say("No CT series found there", problem=True)
        elif len(choices) == 1:
            self._load(choices[0].key)
        else:
            self.host.say(f"{len(choices)} series: choose one")
            for choice in choices:
                item = QListWidgetItem(choice.text)
                item.setData(Qt.ItemDataRole.UserRole, choice.key)
                self.series.addItem(item)

    def _choose(self, item: QListWidgetItem) -> None:
        self._load(str(item.data(Qt.ItemDataRole.UserRole)))

    def _load(self, key: str) -> None:
        session, path = self.session, self._path
        self.host.work.run("Loading CT", lambda p: session.load_ct(path, key, p), lambda _: self.host.say("CT opened"))

    def show_snapshot(self, _snapshot: NavigationSnapshot | None) -> None:
        """Show the open case."""
        case = self.session.case_info()
        set_text(self.info, "No case is open." if case is None else f"{case.pseudonym}\n{case.ct_text}")
        set_text(self.warnings, "" if case is None else "\n".join(f"! {w}" for w in case.warnings))


class TumourPage(Page):
    """Load a mask or label map and take one connected component, from a list or at the crosshair."""

    def __init__(self, host: PageHost) -> None:
        super().__init__(host, "Load a mask or label map, then choose the tumour in the list or pick it with a click.")
        self.load = button("Load mask or labels \u2026", self._open, primary=True)
        self.choices = QListWidget()
        self.choices.setMinimumHeight(180)
        self.choices.currentItemChanged.connect(lambda item, _before: self._preview(item))
        self.choices.hide()
        self.use = button("Use the chosen one", self._use)
        self.use.setEnabled(False)
        self.cross = button("Place crosshair by click", lambda: self.host.set_crosshair_mode(True))
        self.pick = button("Pick tumour at crosshair", self._pick)
        self.pick.setEnabled(False)
        self.info = label()
        for widget in (self.load, self.choices, self.use, self.cross, self.pick, self.info):
            self.column.addWidget(widget)
        self.column.addStretch(1)
        self._path = ""
        self._found_choices: tuple[TumourChoice, ...] = ()

    def _open(self) -> None:
        path = self.host.ask("file", "Load mask or label map", _MASKS)
        if path:
            self.open_path(path)

    def open_path(self, path: str) -> None:
        """Find the labels and components of a mask; the only one is taken at once."""
        self._path = path
        session = self.session
        self.host.work.run("Reading labels", lambda p: session.scan_tumour(path, p), self._found)

    def _found(self, choices: tuple[TumourChoice, ...]) -> None:
        self._found_choices = choices
        self.choices.clear()
        self.choices.setVisible(len(choices) > 1)
        self.use.setEnabled(len(choices) > 1)
        if not choices:
            self.host.say("The file has no labelled voxels", problem=True)
            return
        if len(choices) == 1:
            self._load(choices[0].key)
            return
        self.host.say(f"{len(choices)} components: choose the tumour")
        for choice in choices:
            item = QListWidgetItem(f"{choice.text}\n{choice.volume_ml:.1f} ml   {point_text(choice.centre_ras)}")
            item.setData(Qt.ItemDataRole.UserRole, choice.key)
            self.choices.addItem(item)

    def _preview(self, item: QListWidgetItem | None) -> None:
        row = -1 if item is None else self.choices.row(item)
        if 0 <= row < len(self._found_choices):
            self.host.place_crosshair(self._found_choices[row].centre_ras)

    def _use(self) -> None:
        item = self.choices.currentItem()
        if item is None:
            self.host.say("Choose a component in the list first", problem=True)
            return
        self._load(str(item.data(Qt.ItemDataRole.UserRole)))

    def _load(self, key: str) -> None:
        session, path = self.session, self._path
        self.host.work.run(
            "Taking the tumour", lambda p: session.load_tumour(path, key, p), lambda _: self.host.say("Tumour set")
        )

    def _pick(self) -> None:
        ras = self.host.crosshair()
        if not self._path:
            self.host.say("Load a mask or label map first", problem=True)
            return
        if ras is None:
            self.host.say("Place the crosshair on the tumour first", problem=True)
            return
        session, path = self.session, self._path
        self.host.work.run(
            "Picking the tumour", lambda p: session.pick_tumour(path, ras, p), lambda _: self.host.say("Tumour set")
        )

    def show_snapshot(self, _snapshot: NavigationSnapshot | None) -> None:
        """Show the tumour in force."""
        case = self.session.case_info()
        text = "" if case is None else case.tumour_text
        set_text(self.info, text or "No tumour yet.")
        self.load.setEnabled(case is not None)
        self.pick.setEnabled(case is not None and bool(self._path) and self.host.crosshair() is not None)


class PlanPage(Page):
    """Target and entry: at the crosshair by an explicit button, or from a plan file. A click alone never moves them."""

    def __init__(self, host: PageHost) -> None:
        super().__init__(host, "Place the crosshair with a click, then set target and entry there; or load a plan.")
        self.cross = button("Place crosshair by click", lambda: self.host.set_crosshair_mode(True))
        self.where = label("", "muted")
        self.target = button("Set target here", lambda: self._set(target=True), primary=True)
        self.entry = button("Set entry here", lambda: self._set(target=False), primary=True)
        row = QHBoxLayout()
        row.addWidget(self.target)
        row.addWidget(self.entry)
        self.load = button("Load plan \u2026", self._open)
        self.paths = QTableWidget(0, 4)
        self.paths.setHorizontalHeaderLabels(["path", "mm", "score", "margin"])
        self.paths.verticalHeader().hide()
        self.paths.verticalHeader().setDefaultSectionSize(44)
        self.paths.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.paths.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.paths.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.paths.setMinimumHeight(160)
        header = self.paths.horizontalHeader()
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        for column in (1, 2, 3):
            header.setSectionResizeMode(column, QHeaderView.ResizeMode.ResizeToContents)
        self.paths.cellClicked.connect(lambda row, _column: self._take(self._listed[row]))
        self.chosen = label("", "muted")
        self.info = label()
        self.column.addWidget(self.cross)
        self.column.addWidget(self.where)
        self.column.addLayout(row)
        self.column.addWidget(self.info)
        self.column.addWidget(self.load)
        self.column.addWidget(self.paths, 1)
        self.column.addWidget(self.chosen)
        self._target: Point | None = None
        self._entry: Point | None = None
        self._listed: tuple[PlannedPath, ...] = ()
        self._margins: tuple[float | None, ...] = ()

    def _set(self, *, target: bool) -> None:
        ras = self.host.crosshair()
        if ras is None:
            self.host.say("Place the crosshair first", problem=True)
            return
        if target:
            self.session.submit(SetPlan(target=ras, entry=self._entry))
        elif self._target is None:
            self.host.say("Set the target first", problem=True)
        else:
            self.session.submit(SetPlan(target=self._target, entry=ras))

    def _open(self) -> None:
        path = self.host.ask("file", "Load plan", _MARKUPS)
        if path:
            self.open_path(path)

    def open_path(self, path: str) -> None:
        """Load a plan; its only path is taken at once."""
        session = self.session
        self.host.work.run("Loading plan", lambda p: session.load_plan(path, p), self._loaded)

    def _loaded(self, paths: tuple[PlannedPath, ...]) -> None:
        if not paths:
            self.host.say("The file holds no path (a line, or an entry and a target)", problem=True)
            return
        self._take(paths[0])
        self.host.say(f"{len(paths)} path(s) loaded; {paths[0].name} is taken")

    def _take(self, path: PlannedPath) -> None:
        self.session.submit(SetPlan(path.target_ras, path.entry_ras, path.name))
        self.host.place_crosshair(path.target_ras)

    def show_snapshot(self, snapshot: NavigationSnapshot | None) -> None:
        """Show crosshair, plan and paths."""
        ras = self.host.crosshair()
        set_text(self.where, "crosshair: not placed" if ras is None else f"crosshair: {point_text(ras)}")
        self._target = _point(snapshot.target_ras) if snapshot is not None else None
        self._entry = _point(snapshot.entry_ras) if snapshot is not None else None
        self.target.setEnabled(ras is not None)
        self.entry.setEnabled(ras is not None and self._target is not None)
        lines = [f"Target   {point_text(self._target)}" if self._target else "Target   not set"]
        lines.append(f"Entry     {point_text(self._entry)}" if self._entry else "Entry     not set")
        if self._target and self._entry:
            lines.append(f"Path length {math.dist(self._target, self._entry):.1f} mm")
        set_text(self.info, "\n".join(lines))
        case = self.session.case_info()
        paths = case.paths if case is not None else ()
        margins = snapshot.plan.path_margins_mm if snapshot is not None else ()
        if paths != self._listed or margins != self._margins:
            self._listed, self._margins = paths, margins
            self._fill()
        current = next((p for p in paths if (p.entry_ras, p.target_ras) == (self._entry, self._target)), None)
        set_text(self.chosen, _words(current, snapshot))

    def _fill(self) -> None:
        self.paths.setRowCount(len(self._listed))
        for row, path in enumerate(self._listed):
            margin = self._margins[row] if row < len(self._margins) else None
            texts = (
                path.name, f"{math.dist(path.entry_ras, path.target_ras):.0f}",
                format_value(path.score, decimals=2), format_value(margin, signed=True),
            )  # fmt: skip
            for column, text in enumerate(texts):
                item = QTableWidgetItem(text)
                if column:
                    item.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
                self.paths.setItem(row, column, item)


def _words(path: PlannedPath | None, snapshot: NavigationSnapshot | None) -> str:
    """What is known of the path in force, and of the zone at its target."""
    lines = []
    if path is not None:
        lines.append(f"{path.name} is in force" + (f", planned for {path.setting}" if path.setting else ""))
        if path.criteria:
            lines.append("   ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in path.criteria))
    plan = snapshot.plan if snapshot is not None else None
    if snapshot is not None and plan is not None and plan.placed is not None and plan.margin is not None:
        zone = plan.placed.zone
        rests = zone_label(zone) + (", no prediction" if zone.tier == 0 else "")
        margin = format_value(plan.margin.min_margin_mm, signed=True)
        covered = f"{100.0 * plan.margin.coverage:.0f} % of tumour + 5 mm"
        lines.append(f"{snapshot.applicator}, tip on the target: margin {margin} mm, {covered}\n{rests}")
    return "\n".join(lines)


def _point(ras: object) -> Point | None:
    if ras is None:
        return None
    x, y, z = (float(v) for v in ras)  # type: ignore[attr-defined]
    return x, y, z
