"""What the window needs from the program around it: one protocol, and the small values that cross it. No Qt.

The window never reads a file, a socket or a clock by itself. It polls `HudSession.latest_snapshot` and
`HudSession.latest_panes`, sends operator events, and calls the blocking file methods from a worker thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from nav.hud.pane_frame import PaneFrame, ViewState
from nav.io.case import Landmark, PlannedPath
from nav.runtime.events import OperatorEvent, Point
from nav.runtime.snapshot import NavigationSnapshot

__all__ = [
    "ApplicatorInfo",
    "CaseInfo",
    "FileProblem",
    "HudSession",
    "Progress",
    "SeriesChoice",
    "TissueInfo",
    "TumourChoice",
    "ZoneSize",
]

#: Called by file work with the share done (0 to 1; negative: unknown) and what is being done. May raise to cancel.
Progress = Callable[[float, str], None]


class FileProblem(Exception):
    """File work that failed for a reason the person can act on; the text names it and what to do."""


@dataclass(frozen=True, slots=True)
class SeriesChoice:
    """One CT series found at a path. ``key`` goes back to `HudSession.load_ct`; ``text`` holds no identifiers."""

    key: str
    text: str


@dataclass(frozen=True, slots=True)
class TumourChoice:
    """One connected component of one label. ``key`` goes back to `HudSession.load_tumour`."""

    key: str
    text: str
    volume_ml: float
    centre_ras: Point


@dataclass(frozen=True, slots=True)
class ApplicatorInfo:
    """An applicator and the settings its published chart holds. The chart is not extrapolated.

    ``settings`` maps a power (or what else is set, in ``unit``) to the smallest and largest time in s for it.
    ``computed`` says whether zones can be computed for it, too.
    """

    name: str
    title: str
    settings: Mapping[float, tuple[float, float]]
    citation: str = ""
    unit: str = "W"
    computed: bool = False


@dataclass(frozen=True, slots=True)
class TissueInfo:
    """A tissue for which zones can be computed. ``name`` goes back in `ChooseApplicator`; ``title`` is shown."""

    name: str
    title: str


@dataclass(frozen=True, slots=True)
class ZoneSize:
    """The chart's zone for one setting, mm (full diameters)."""

    long_mm: float
    short_mm: float
    basis: str = ""


@dataclass(frozen=True, slots=True)
class CaseInfo:
    """The case as the window shows it: a pseudonym, never a name.

    ``generation`` changes whenever any other field does.
    """

    generation: int
    pseudonym: str
    ct_text: str = ""
    tumour_text: str = ""
    landmarks: tuple[Landmark, ...] = ()
    divots: tuple[Landmark, ...] = ()
    paths: tuple[PlannedPath, ...] = ()
    warnings: tuple[str, ...] = ()


class HudSession(Protocol):
    """Everything behind the window.

    Methods marked *worker* may take seconds; the window calls them from a worker thread, one at a time. They raise
    `FileProblem` (or `ValueError`, `OSError`) with a text for the person.
    """

    # -- polled on the Qt thread, must return at once --------------------------------------------------------------

    def clock_now_ns(self) -> int:
        """The clock that all times of the snapshots are in (local monotonic; a replay's own clock)."""

    def latest_snapshot(self) -> NavigationSnapshot | None:
        """The newest snapshot, None before the first."""

    def latest_panes(self) -> Mapping[str, PaneFrame]:
        """The newest picture of each pane that has one."""

    def view(self) -> ViewState:
        """The view in force."""

    def set_view(self, view: ViewState) -> None:
        """What the render worker draws from now on."""

    def case_info(self) -> CaseInfo | None:
        """The open case, None while there is none."""

    def applicators(self) -> tuple[ApplicatorInfo, ...]:
        """The applicators that can be chosen."""

    def zone_size(self, name: str, power_w: float, time_s: float) -> ZoneSize:
        """The chart's zone; `ValueError` names the chart's range when the setting lies outside."""

    def tissues(self) -> tuple[TissueInfo, ...]:
        """The tissues for which zones can be computed."""

    def zone_work(self) -> str:
        """What zone is being computed and how far it is; empty when none is."""

    def hu_at(self, ras: Point) -> float | None:
        """CT number at a point, None outside the CT or without one."""

    def needle_name(self) -> str:
        """As shown in the top bar."""

    def screenshot_path(self) -> str:
        """Where the next screenshot goes (a new name each time)."""

    def screenshot_metadata(self) -> Mapping[str, str]:
        """Version, configuration hash, pseudonym: written into the PNG. No identifiers."""

    # -- what the operator does ------------------------------------------------------------------------------------

    def submit(self, event: OperatorEvent) -> None:
        """Queue an operator event; never drops."""

    def finish_recording(self) -> None:
        """Finish the recording file; the session goes on without one."""

    def connect_now(self) -> None:
        """Connect to every source whose connection is lost, without waiting; those connected are left alone."""

    # -- worker ----------------------------------------------------------------------------------------------------

    def scan_ct(self, path: str, progress: Progress) -> tuple[SeriesChoice, ...]:
        """The CT series at ``path`` (a DICOM folder or one NRRD, NIfTI, MHA file)."""

    def load_ct(self, path: str, key: str, progress: Progress) -> None:
        """Open a series as a new case."""

    def scan_tumour(self, path: str, progress: Progress) -> tuple[TumourChoice, ...]:
        """The labels and connected components of a mask or label map."""

    def load_tumour(self, path: str, key: str, progress: Progress) -> None:
        """Take one component as the tumour."""

    def pick_tumour(self, path: str, ras: Point, progress: Progress) -> None:
        """Take the component of the mask at ``path`` that contains ``ras``, or the nearest within 5 mm."""

    def load_landmarks(self, path: str, progress: Progress) -> None:
        """Landmarks from ``.mrk.json``."""

    def load_plan(self, path: str, progress: Progress) -> tuple[PlannedPath, ...]:
        """Paths (lines, or an entry and a target) from ``.mrk.json``; they are in `case_info` afterwards."""

    def load_registration(self, path: str, progress: Progress) -> None:
        """Put a registration from an ITK transform file in force."""
