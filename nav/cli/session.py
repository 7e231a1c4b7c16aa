"""What stands behind the window, live or replayed: the case, the view, the render worker, and the snapshots."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from nav.ablation.applicators import list_applicators, load_applicator
from nav.ablation.thermal import list_tissues, load_tissue
from nav.cli.case_files import CaseFiles
from nav.cli.versions import VERSION
from nav.config.load import config_sha256
from nav.config.room import RoomConfig
from nav.hud.pane_frame import PaneFrame, ViewState
from nav.hud.panes import build_scene
from nav.hud.render_worker import RenderWorker
from nav.hud.session import ApplicatorInfo, CaseInfo, Progress, SeriesChoice, TissueInfo, TumourChoice, ZoneSize
from nav.io.case import Case, PlannedPath
from nav.runtime.clock import Clock
from nav.runtime.events import LoadRegistration, OperatorEvent, Point
from nav.runtime.slots import LatestSlot
from nav.runtime.snapshot import NavigationSnapshot

__all__ = ["Compute", "WindowSession"]


class Compute(Protocol):
    """Where snapshots come from: the live compute thread, or a replay."""

    snapshots: LatestSlot[NavigationSnapshot]

    def start(self) -> None:
        """Start publishing."""

    def stop(self) -> None:
        """Stop; safe to call twice."""

    def submit(self, event: OperatorEvent) -> None:
        """Queue an operator event."""

    def set_fault(self, kind: str, text: str) -> None:
        """Report (or with an empty text clear) a fault."""


class WindowSession:
    """Implements `nav.hud.session.HudSession`, except for what only a live session can do.

    Parameters
    ----------
    room : RoomConfig
    clock : Clock
        In which the snapshots' times are.
    compute : Compute
    out : Path or None
        Folder for screenshots; None: the working folder.
    """

    def __init__(self, room: RoomConfig, clock: Clock, compute: Compute, *, out: Path | None) -> None:
        self.room = room
        self.out = out
        self.compute = compute
        self._clock = clock
        self._lock = threading.Lock()
        self._screenshots = 0
        self._panes: dict[str, PaneFrame] = {}
        self._view = ViewState(sizes={})
        self._files = CaseFiles(room)
        self._case: Case | None = None
        self._generation = 0
        self._case_info: CaseInfo | None = None
        self._applicators = tuple(_applicator_info(name) for name in list_applicators())
        self._tissues = tuple(TissueInfo(name, load_tissue(name).name) for name in list_tissues())
        self.worker = RenderWorker(self.latest_snapshot, self.view, self._publish, clock, on_fault=self._render_fault)

    def start(self) -> None:
        """Start computing and drawing."""
        self.compute.start()
        self.worker.start()

    def stop(self) -> None:
        """Stop computing and drawing. Safe to call twice."""
        self.compute.stop()
        self.worker.stop()

    def _publish(self, frames: dict[str, PaneFrame]) -> None:
        self._panes = {**self._panes, **frames}

    def _render_fault(self, text: str) -> None:
        self.compute.set_fault("display", text)

    # -- polled --------------------------------------------------------------------------------------------------

    def clock_now_ns(self) -> int:
        """See `HudSession`."""
        return self._clock.now_ns()

    def latest_snapshot(self) -> NavigationSnapshot | None:
        """See `HudSession`."""
        return self.compute.snapshots.peek()

    def latest_panes(self) -> Mapping[str, PaneFrame]:
        """See `HudSession`."""
        return self._panes

    def view(self) -> ViewState:
        """See `HudSession`."""
        return self._view

    def set_view(self, view: ViewState) -> None:
        """See `HudSession`."""
        self._view = view
        self.worker.notify()

    def set_layout(self, layout: str) -> None:
        """Choose ``plan``, ``guide`` or ``ultrasound``."""
        self.set_view(replace(self._view, layout=layout))

    def case_info(self) -> CaseInfo | None:
        """See `HudSession`."""
        return self._case_info

    def applicators(self) -> tuple[ApplicatorInfo, ...]:
        """See `HudSession`."""
        return self._applicators

    def zone_size(self, name: str, power_w: float, time_s: float) -> ZoneSize:
        """See `HudSession`."""
        applicator = load_applicator(name)
        size = applicator.size(power_w, time_s)
        return ZoneSize(size.long_mm, size.short_mm, applicator.stated_basis)

    def hu_at(self, ras: Point) -> float | None:
        """See `HudSession`."""
        case = self._case
        if case is None:
            return None
        i, j, k = (round(float(v)) for v in case.ct.to_index(ras))
        size_i, size_j, size_k = case.ct.size
        if not (0 <= i < size_i and 0 <= j < size_j and 0 <= k < size_k):
            return None
        return float(case.ct.array[k, j, i])

    def zone_work(self) -> str:
        """See `HudSession`; nothing is computed here."""
        return ""

    def tissues(self) -> tuple[TissueInfo, ...]:
        """See `HudSession`."""
        return self._tissues

    def needle_name(self) -> str:
        """See `HudSession`."""
        return self.room.needle_frame

    def screenshot_path(self) -> str:
        """See `HudSession`."""
        with self._lock:
            self._screenshots += 1
            number = self._screenshots
        folder = self.out or Path.cwd()
        return str(folder / f"screenshot-{number:03d}.png")

    def screenshot_metadata(self) -> Mapping[str, str]:
        """See `HudSession`."""
        pseudonym = "" if self._case is None else self._case.identity.pseudonym
        return {
            "Software": f"ablation-nav {VERSION} (research use only)",
            "ConfigSHA256": config_sha256(self.room),
            "Case": pseudonym,
        }

    # -- operator ------------------------------------------------------------------------------------------------

    def submit(self, event: OperatorEvent) -> None:
        """See `HudSession`."""
        self.compute.submit(event)

    def finish_recording(self) -> None:
        """See `HudSession`; nothing is recorded here."""

    def connect_now(self) -> None:
        """See `HudSession`; nothing is connected here."""

    # -- case ----------------------------------------------------------------------------------------------------

    def take_case(self, case: Case) -> None:
        """Show a new or changed case."""
        self._show(case)

    def _show(self, case: Case, scene_generation: int | None = None) -> None:
        """Show a case; with ``scene_generation`` only beside snapshots of that case (`NavigationSnapshot`)."""
        scene = build_scene(case, scene_generation)
        self._case = case
        self._generation += 1
        self._panes = {}
        self.worker.set_scene(scene)
        i, j, k = case.ct.size
        spacing = " × ".join(f"{v:.2f}" for v in case.ct.spacing_mm)
        tumour_ml = 0.0
        if case.tumour is not None:
            tumour_ml = float(np.count_nonzero(case.tumour.array)) * case.tumour.voxel_volume_mm3 / 1000.0
        self._case_info = CaseInfo(
            generation=self._generation,
            pseudonym=_shown_name(case, self.room),
            ct_text=f"{i} × {j} × {k} voxels of {spacing} mm",
            tumour_text="" if case.tumour is None else f"{tumour_ml:.2f} ml",
            landmarks=case.landmarks,
            divots=case.divots,
            paths=case.paths,
            warnings=case.warnings,
        )

    def _needed_case(self) -> Case:
        if self._case is None:
            raise ValueError("open a CT first")
        return self._case

    def scan_ct(self, path: str, progress: Progress) -> tuple[SeriesChoice, ...]:
        """See `HudSession`."""
        return self._files.scan_ct(path, progress)

    def load_ct(self, path: str, key: str, progress: Progress) -> None:
        """See `HudSession`."""
        self.take_case(self._files.load_ct(path, key, progress))

    def scan_tumour(self, path: str, progress: Progress) -> tuple[TumourChoice, ...]:
        """See `HudSession`."""
        return self._files.scan_tumour(self._needed_case(), path, progress)

    def load_tumour(self, path: str, key: str, progress: Progress) -> None:
        """See `HudSession`."""
        self.take_case(self._files.load_tumour(self._needed_case(), path, key, progress))

    def pick_tumour(self, path: str, ras: Point, progress: Progress) -> None:
        """See `HudSession`."""
        self.take_case(self._files.pick_tumour(self._needed_case(), path, ras, progress))

    def load_landmarks(self, path: str, progress: Progress) -> None:
        """See `HudSession`."""
        self.take_case(self._files.load_landmarks(self._needed_case(), path, progress))

    def load_plan(self, path: str, progress: Progress) -> tuple[PlannedPath, ...]:
        """See `HudSession`."""
        case = self._files.load_plan(self._needed_case(), path, progress)
        self.take_case(case)
        return case.paths

    def load_registration(self, path: str, progress: Progress) -> None:
        """See `HudSession`."""
        matrix = self._files.load_registration(path, progress)
        self.submit(LoadRegistration(matrix))


def _shown_name(case: Case, room: RoomConfig) -> str:
    """The pseudonym; with the patient's name and number behind it only where the configuration says so."""
    identity = case.identity
    parts = [identity.pseudonym]
    if room.privacy.show_patient:
        parts += [identity.patient_name.replace("^", " ").strip(), identity.patient_id]
    return "  ".join(p for p in parts if p)


def _applicator_info(name: str) -> ApplicatorInfo:
    applicator = load_applicator(name)
    settings = {p: applicator.time_range_s(p) for p in applicator.powers_w}
    return ApplicatorInfo(
        name, applicator.name, settings, applicator.citation, applicator.control, applicator.heating is not None
    )
