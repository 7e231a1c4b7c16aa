"""Set-up pages at the patient: landmarks, tip check, applicator, start of guidance."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QHBoxLayout,
    QHeaderView,
    QSpinBox,
    QTableWidget,
    QTableWidgetItem,
    QWidget,
)

from nav.hud.numbers_text import format_value
from nav.hud.session import ApplicatorInfo
from nav.hud.setup_widgets import Page, PageHost, button, label, set_text
from nav.runtime.events import (
    ApplyRegistration,
    CheckTip,
    ChooseApplicator,
    ClearLandmark,
    CollectLandmark,
    DiscardAblations,
    SelectLandmark,
    StartGuidance,
    StopGuidance,
    UseLandmark,
)
from nav.runtime.snapshot import LandmarkRow, NavigationSnapshot

__all__ = ["ApplicatorPage", "GuidePage", "LandmarksPage", "TipPage"]

_STEP_WORDS = {
    "case": "case open",
    "tumour": "tumour set",
    "plan": "target set",
    "landmarks": "registered",
    "tip_check": "needle tip checked",
    "applicator": "applicator chosen",
}
TIP_CHECK_GOOD_MM = 3.0


class LandmarksPage(Page):
    """Touch each landmark with the stylus and collect it; the residuals grow in the table."""

    def __init__(self, host: PageHost) -> None:
        super().__init__(
            host, "Touch the marked landmark with the stylus and press L (or Return). Click a row to choose."
        )
        self.table = QTableWidget(0, 4)
        self.table.setHorizontalHeaderLabels(["landmark", "done", "residual mm", "use"])
        self.table.verticalHeader().hide()
        self.table.verticalHeader().setDefaultSectionSize(44)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.NoSelection)
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        for column, width in ((1, 46), (2, 88), (3, 46)):
            header.setSectionResizeMode(column, QHeaderView.ResizeMode.Fixed)
            self.table.setColumnWidth(column, width)
        self.table.setMinimumHeight(150)
        self.table.cellClicked.connect(self._cell)
        self.collect = button("Collect (L)", lambda: self.session.submit(CollectLandmark()), primary=True)
        self.clear = button("Clear", self._clear)
        self.quality = label()
        self.warning = label("", "warning")
        self.apply = button("Apply registration", lambda: self.session.submit(ApplyRegistration()), primary=True)
        self.load = button("Load landmarks \u2026", self._load)
        self.load_registration = button("Load transform \u2026", self._load_registration)
        top, bottom = QHBoxLayout(), QHBoxLayout()
        top.addWidget(self.collect, 2)
        top.addWidget(self.clear, 1)
        bottom.addWidget(self.load)
        bottom.addWidget(self.load_registration)
        self.column.addWidget(self.table, 1)
        self.column.addLayout(top)
        self.column.addWidget(self.quality)
        self.column.addWidget(self.warning)
        self.column.addWidget(self.apply)
        self.column.addLayout(bottom)
        self._rows: tuple[LandmarkRow, ...] = ()
        self._active = ""

    def _cell(self, row: int, column: int) -> None:
        if not 0 <= row < len(self._rows):
            return
        landmark = self._rows[row]
        if column == 3:
            self.session.submit(UseLandmark(landmark.name, not landmark.used))
        else:
            self.session.submit(SelectLandmark(landmark.name))
            self.host.place_crosshair(landmark.fixed_ras)

    def _clear(self) -> None:
        if self._active:
            self.session.submit(ClearLandmark(self._active))

    def _load(self) -> None:
        path = self.host.ask("file", "Load landmarks", "Markups (*.mrk.json *.json *.fcsv);;All files (*)")
        if path:
            session = self.session
            self.host.work.run(
                "Loading landmarks",
                lambda p: session.load_landmarks(path, p),
                lambda _: self.host.say("Landmarks loaded"),
            )

    def _load_registration(self) -> None:
        path = self.host.ask("file", "Load registration", "ITK transforms (*.tfm *.txt *.h5);;All files (*)")
        if path:
            session = self.session
            self.host.work.run(
                "Loading registration",
                lambda p: session.load_registration(path, p),
                lambda _: self.host.say("Registration loaded"),
            )

    def show_snapshot(self, snapshot: NavigationSnapshot | None) -> None:
        """Show the landmarks and what they give."""
        setup = snapshot.setup if snapshot is not None else None
        rows = setup.landmarks if setup is not None else ()
        active = setup.active_landmark if setup is not None else ""
        if rows != self._rows or active != self._active:
            self._rows, self._active = rows, active
            self._fill()
        collected = sum(r.collected for r in rows)
        self.collect.setEnabled(bool(active))
        self.clear.setEnabled(any(r.collected and r.name == active for r in rows))
        self.apply.setEnabled(sum(r.collected and r.used for r in rows) >= 3)
        text = f"{collected} of {len(rows)} collected" if rows else "No landmarks; load them, or a transform."
        used = [r.residual_mm for r in rows if r.used and r.residual_mm is not None]
        if used:
            rms = (sum(v * v for v in used) / len(used)) ** 0.5
            text += f"   FRE {format_value(rms)} mm"
        registration = snapshot.registration if snapshot is not None else None
        if registration is not None:
            tre = format_value(registration.tre_at_target_mm)
            text += f"\nIn force: {registration.method}, TRE at target {tre} mm"
        set_text(self.quality, text)
        set_text(self.warning, registration.warning if registration is not None else "")

    def _fill(self) -> None:
        table = self.table
        table.setRowCount(len(self._rows))
        for n, row in enumerate(self._rows):
            current = row.name == self._active
            values = (
                ("\u25b6 " if current else "") + row.name,
                "\u2713" if row.collected else "\u2013",
                format_value(row.residual_mm),
                "\u2611" if row.used else "\u2610",
            )
            for column, text in enumerate(values):
                item = table.item(n, column)
                if item is None:
                    item = QTableWidgetItem()
                    table.setItem(n, column, item)
                    if column == 2:
                        item.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
                    elif column:
                        item.setTextAlignment(Qt.AlignmentFlag.AlignCenter)
                item.setText(text)
                face = item.font()
                face.setBold(current)
                item.setFont(face)
            if current:
                first = table.item(n, 0)
                if first is not None:
                    table.scrollToItem(first)


class TipPage(Page):
    """Put the needle tip into a known divot; the distance between where it is and where it should be is shown."""

    def __init__(self, host: PageHost) -> None:
        super().__init__(host, "Put the needle tip into a known divot, hold it still, and check.")
        self.divots = QComboBox()
        self.check = button("Check tip", self._check, primary=True)
        self.error = label("", "title")
        self.state = label("", "muted")
        for widget in (self.divots, self.check, self.error, self.state):
            self.column.addWidget(widget)
        self.column.addStretch(1)
        self._tool = "NeedleTip"

    def _check(self) -> None:
        if self.divots.currentText():
            self.session.submit(CheckTip(divot=self.divots.currentText(), tool=self._tool))

    def show_snapshot(self, snapshot: NavigationSnapshot | None) -> None:
        """Show the divots, the error, and why a check is refused."""
        case = self.session.case_info()
        names = [d.name for d in (*case.divots, *case.landmarks)] if case is not None else []
        if names != [self.divots.itemText(n) for n in range(self.divots.count())]:
            self.divots.clear()
            self.divots.addItems(names)
        registered = snapshot is not None and snapshot.registration is not None
        lost = ""
        if snapshot is not None:
            self._tool = snapshot.needle.name
            stem = self._tool.removesuffix("Tip")
            lost = next((s.name for s in snapshot.streams if s.name.startswith(stem) and s.state != "live"), "")
        self.check.setEnabled(bool(names) and registered and not lost)
        error = snapshot.setup.tip_check_error_mm if snapshot is not None else None
        if error is None:
            set_text(self.error, "Error: not checked")
        else:
            verdict = "\u2713 good" if error <= TIP_CHECK_GOOD_MM else f"\u2715 above {TIP_CHECK_GOOD_MM:g} mm"
            set_text(self.error, f"Error {format_value(error)} mm   {verdict}")
        if not names:
            set_text(self.state, "The case has no known points; the step can be left out.")
        elif not registered:
            set_text(self.state, "Register first.")
        elif lost:
            set_text(self.state, f"Refused: {lost} is not seen. Clear the line of sight.")
        else:
            set_text(self.state, "")


class ApplicatorPage(Page):
    """Applicator, power and time, limited to what the published chart holds, and the tissue to compute for."""

    def __init__(self, host: PageHost) -> None:
        super().__init__(host, "A chart is the manufacturer's, not a prediction. With a tissue the zone is computed.")
        self.names = QComboBox()
        self.power = QComboBox()
        self.seconds = QSpinBox()
        self.seconds.setSuffix(" s")
        self.seconds.setSingleStep(30)
        self.tissue = QComboBox()
        self.zone = label("", "title")
        self.basis = label("", "muted")
        self.use = button("Use these settings", self._use, primary=True)
        self.now = label()
        choosers: tuple[tuple[str, QWidget], ...] = (
            ("Applicator", self.names), ("Power", self.power), ("Time", self.seconds), ("Zone", self.tissue),
        )  # fmt: skip
        for title, chooser in choosers:
            self.column.addWidget(label(title, "muted"))
            self.column.addWidget(chooser)
        for widget in (self.zone, self.basis, self.use, self.now):
            self.column.addWidget(widget)
        self.column.addStretch(1)
        self._infos: tuple[ApplicatorInfo, ...] = ()
        self.names.currentIndexChanged.connect(self._applicator_changed)
        self.power.currentIndexChanged.connect(self._power_changed)
        self.seconds.valueChanged.connect(self._zone_changed)

    def _applicator_changed(self) -> None:
        info = self._info()
        self.power.clear()
        if info is not None:
            for watts in sorted(info.settings):
                self.power.addItem(f"{watts:g} {info.unit}", watts)
        chosen = self.tissue.currentData()
        self.tissue.clear()
        self.tissue.addItem("chart only", "")
        if info is not None and info.computed:
            for tissue in self.session.tissues():
                self.tissue.addItem(f"computed in {tissue.title}", tissue.name)
        self.tissue.setCurrentIndex(max(self.tissue.findData(chosen), 0))

    def _power_changed(self) -> None:
        info, watts = self._info(), self.power.currentData()
        if info is not None and watts is not None:
            low, high = info.settings[watts]
            self.seconds.setRange(round(low), round(high))
        self._zone_changed()

    def _info(self) -> ApplicatorInfo | None:
        index = self.names.currentIndex()
        return self._infos[index] if 0 <= index < len(self._infos) else None

    def _zone_changed(self) -> None:
        info, watts = self._info(), self.power.currentData()
        if info is None or watts is None:
            return
        try:
            size = self.session.zone_size(info.name, float(watts), float(self.seconds.value()))
        except ValueError as error:
            set_text(self.zone, "\u2715 outside the chart")
            set_text(self.basis, str(error))
            self.use.setEnabled(False)
            return
        self.use.setEnabled(True)
        set_text(self.zone, f"Chart {size.long_mm:.0f} \u00d7 {size.short_mm:.0f} mm")
        set_text(self.basis, size.basis or info.citation)

    def _use(self) -> None:
        info, watts = self._info(), self.power.currentData()
        if info is not None and watts is not None:
            seconds, tissue = float(self.seconds.value()), str(self.tissue.currentData() or "")
            self.session.submit(ChooseApplicator(info.name, float(watts), seconds, tissue))

    def show_snapshot(self, snapshot: NavigationSnapshot | None) -> None:
        """Show the choice in force."""
        infos = self.session.applicators()
        if infos != self._infos:
            self._infos = infos
            self.names.clear()
            self.names.addItems([i.title for i in infos])
        setting = snapshot.setting if snapshot is not None else None
        if setting is None or snapshot is None:
            set_text(self.now, "In force: none")
        else:
            computed = f"computed in {setting.tissue}" if setting.tissue else "chart only"
            set_text(self.now, f"In force: {snapshot.applicator}, {computed}")


class GuidePage(Page):
    """What is done, what is missing, and the start."""

    def __init__(self, host: PageHost) -> None:
        super().__init__(host, "Guidance shows numbers only while everything they rest on is there and fresh.")
        self.list = label()
        self.start = button("Start guidance", self._start, primary=True)
        self.stop = button("Stop guidance", lambda: self.session.submit(StopGuidance()))
        self.discard = button("Discard ablations made", lambda: self.session.submit(DiscardAblations()))
        for widget in (self.list, self.start, self.stop, self.discard):
            self.column.addWidget(widget)
        self.column.addStretch(1)

    def _start(self) -> None:
        self.session.submit(StartGuidance())
        self.host.guidance_started()

    def show_snapshot(self, snapshot: NavigationSnapshot | None) -> None:
        """Show the list."""
        done = snapshot.setup.done if snapshot is not None else frozenset()
        marks = {True: "\u2713", False: "\u2013"}
        lines = [f"{marks[step in done]}  {text}" for step, text in _STEP_WORDS.items()]
        set_text(self.list, "\n".join(lines))
        # The gate decides what is shown; only what makes guidance meaningless keeps the button off.
        self.start.setEnabled({"case", "plan", "landmarks"} <= done and "guide" not in done)
        self.stop.setEnabled("guide" in done)
        self.discard.setEnabled(
            snapshot is not None and snapshot.ablation is not None and not snapshot.ablation.running
        )
