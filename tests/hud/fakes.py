"""A session made by hand: a clock that is set, snapshots and pictures without any compute or render thread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from nav.ablation.zone import EllipsoidZone, MarginResult
from nav.geometry.poses import PoseStatus
from nav.geometry.rigid import Rigid
from nav.guidance.health import StreamHealth
from nav.guidance.numbers import GateReason, GateState, GateVerdict, GuidanceNumbers, TipUncertainty
from nav.hud.pane_frame import Marker, PaneFrame, Polyline, ViewState
from nav.hud.session import (
    ApplicatorInfo,
    CaseInfo,
    FileProblem,
    Progress,
    SeriesChoice,
    TissueInfo,
    TumourChoice,
    ZoneSize,
)
from nav.io.case import Landmark, PlannedPath
from nav.runtime.events import OperatorEvent, Point
from nav.runtime.snapshot import (
    LandmarkRow,
    NavigationSnapshot,
    PlacedZone,
    RegistrationSummary,
    SetupState,
    ToolState,
    TrackedImage,
    ZoneSetting,
)

MS = 1_000_000
T0 = 1_000_000_000_000
ALL_STEPS = frozenset({"case", "tumour", "plan", "landmarks", "tip_check", "applicator", "guide"})

LANDMARKS = (
    Landmark("xiphoid", (0.0, 95.0, 40.0)),
    Landmark("right rib 10", (80.0, 60.0, -10.0)),
    Landmark("left rib 10", (-80.0, 60.0, -10.0)),
    Landmark("umbilicus", (0.0, 90.0, -80.0)),
)
PATHS = (
    PlannedPath("path 1", (60.0, 80.0, 10.0), (35.0, 10.0, 0.0)),
    PlannedPath("path 2", (70.0, 60.0, 20.0), (40.0, 0.0, 12.0)),
)


def stream(name: str = "NeedleToTracker", kind: str = "tool", **changes: Any) -> StreamHealth:
    """A live 60 Hz tool stream, or what is changed of it."""
    base = StreamHealth(name, kind, "live", 60.0, 60.0, 12.0, 600, 0, 0, 100.0, 250.0)
    return replace(base, **changes)


def numbers(**changes: Any) -> GuidanceNumbers:
    """Numbers of a needle 42 mm before its target."""
    base = GuidanceNumbers(
        tip_ras=np.array([50.0, 52.0, 6.0]),
        axis_ras=np.array([-0.33, -0.93, -0.13]),
        tip_to_target_mm=42.34,
        lateral_mm=1.61,
        depth_mm=42.3,
        angle_deg=2.4,
        tip_to_surface_mm=31.2,
        tip_offset_mm=np.array([1.2, -0.9]),
        hub_offset_mm=np.array([-3.4, 4.1]),
    )
    return replace(base, **changes)


def snapshot(now_ns: int = T0, **changes: Any) -> NavigationSnapshot:
    """A guided navigation in which everything is fresh, or what is changed of it."""
    pose = np.eye(4)
    pose[:3, 3] = (50.0, 52.0, 6.0)
    base = NavigationSnapshot(
        sequence=1,
        now_ns=now_ns,
        cut={"tracker": 600},
        events=0,
        needle=ToolState(
            "NeedleTip", Rigid.from_matrix(pose, "NeedleTipToRas"), PoseStatus.OK, now_ns - 30 * MS, now_ns - 8 * MS
        ),
        tools={},
        guidance=numbers(),
        placed=PlacedZone(
            EllipsoidZone(
                np.array([50.0, 52.0, 6.0]),
                np.array([0.0, 0.0, 1.0]),
                22.0,
                17.0,
                0,
                "emprint",
                100.0,
                600.0,
                "chart",
                "IFU",
            )
        ),
        margin=MarginResult(3.24, np.array([30.0, 10.0, 0.0]), 0.874, 1.1),
        uncertainty=TipUncertainty(
            np.eye(3), 1.31, 2.2, {"registration": 1.2}, True, np.diag([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
        ),
        gate=GateVerdict(GateState.OK),
        streams=(
            stream("NeedleToTracker"),
            stream("ReferenceToTracker"),
            stream("ultrasound", "image", rate_hz=30.0, nominal_hz=30.0, age_ms=31.0),
        ),
        registration=RegistrationSummary("landmarks", 1, 0.9, 1.24, now_ns - 180_000 * MS),
        setup=SetupState("guide", ALL_STEPS, "Advance the needle along the plan"),
        target_ras=np.array([35.0, 10.0, 0.0]),
        entry_ras=np.array([60.0, 80.0, 10.0]),
        image=TrackedImage(
            "Image", np.zeros((1, 8, 8), np.uint8), np.eye(4), now_ns - 40 * MS, now_ns - 20 * MS, sequence=7
        ),
        recording=True,
        applicator="emprint 100 W 600 s",
        setting=ZoneSetting("emprint", "emprint", 100.0, 600.0, ""),
    )
    return replace(base, **changes)


def lost_snapshot(now_ns: int, *, state: str = "lost", detail: str = "MISSING for 0.1 s") -> NavigationSnapshot:
    """What the compute thread publishes when the tracker does not see the needle."""
    code = "link_lost" if state == "link_lost" else "tool_lost"
    text = "NeedleToTracker lost for 300 ms. Clear the line of sight"
    if state == "link_lost":
        text = "NeedleToTracker: connection lost. Check cable and server; it reconnects by itself"
    return blanked(
        snapshot(now_ns),
        GateReason(f"{code}:NeedleToTracker", GateState.BLANK, text),
        streams=(stream(state=state, age_ms=300.0, detail=detail), stream("ReferenceToTracker")),
    )


def blanked(base: NavigationSnapshot, *reasons: GateReason, **changes: Any) -> NavigationSnapshot:
    """``base`` with the numbers taken away by the gate."""
    return replace(
        base,
        needle=ToolState("NeedleTip", None, PoseStatus.MISSING, 0, 0, reasons[0].text if reasons else ""),
        guidance=None,
        placed=None,
        margin=None,
        uncertainty=None,
        gate=GateVerdict(GateState.BLANK, reasons),
        **changes,
    )


def setup_snapshot(now_ns: int = T0) -> NavigationSnapshot:
    """Before registration: landmarks are being collected, nothing that rests on a pose exists."""
    rows = tuple(
        LandmarkRow(m.name, m.ras, n < 2, True, None if n >= 2 else 0.8 + 0.3 * n) for n, m in enumerate(LANDMARKS)
    )
    return blanked(
        snapshot(now_ns),
        GateReason(
            "registration_missing", GateState.BLANK, "Not registered to the CT. Collect the landmarks and apply"
        ),
        GateReason("not_started", GateState.BLANK, "Guidance has not been started."),
        registration=None,
        setup=SetupState(
            "landmarks",
            frozenset({"case", "tumour", "plan", "applicator"}),
            "Touch landmark left rib 10 with the stylus and collect (2 of 4 done), then apply",
            rows,
            "left rib 10",
        ),
        recording=False,
        image=None,
        streams=(stream("NeedleToTracker"), stream("ReferenceToTracker"), stream("StylusToTracker")),
    )


def frame(key: str, shown: NavigationSnapshot | None, size: tuple[int, int] = (200, 160)) -> PaneFrame:
    """A grey picture with a tumour outline; with a pose also a needle, its tip and a zone."""
    width, height = size
    pose = shown is not None and shown.needle.pose is not None
    image: Any = np.full((height, width), 70, np.uint8)
    if key == "D":
        image = np.dstack([image, image, image, np.full_like(image, 255)])
        if pose:
            image[height // 2 - 2 : height // 2 + 2, : width // 2] = 255
    cx, cy = width / 2, height / 2
    angle = np.linspace(0.0, 2 * np.pi, 40)
    circle = np.column_stack([np.cos(angle), np.sin(angle)])
    lines = [Polyline("tumour", circle * 14.0 + (cx + 20, cy), closed=True)]
    markers = [Marker("target", cx + 20, cy)]
    if pose and key != "D":
        lines.append(Polyline("zone", circle * 30.0 + (cx, cy), closed=True))
        lines.append(Polyline("needle", np.array([[10.0, cy], [cx, cy]])))
        markers.append(Marker("tip", cx, cy))
    matrix = np.array([[0.5, 0, 0, -50.0], [0, -0.5, 0, 40.0], [0, 0, 1.0, 5.0], [0, 0, 0, 1.0]])
    image.setflags(write=False)
    return PaneFrame(
        key=key,
        image=image,
        snapshot_sequence=shown.sequence if shown is not None else 0,
        arrival_ns=shown.needle.arrival_ns if shown is not None and pose else 0,
        polylines=tuple(lines),
        markers=tuple(markers),
        ras_from_pixel=None if key == "D" else matrix,
        mm_per_px=0.5,
        letters={"left": "R", "right": "L", "top": "A", "bottom": "P"},
        title={"A": "Along needle 0\u00b0", "B": "Along needle 90\u00b0", "C": "Probe's eye", "D": "3-D"}[key],
    )


class FakeSession:
    """`HudSession` without anything behind it; what the window asks for is kept in lists."""

    def __init__(self) -> None:
        self.now_ns = T0
        self.current: NavigationSnapshot | None = None
        self.frames: dict[str, PaneFrame] = {}
        self.view_state = ViewState(sizes={})
        self.events: list[OperatorEvent] = []
        self.calls: list[tuple[Any, ...]] = []
        self.case: CaseInfo | None = CaseInfo(
            1, "CASE-0001", "512 x 512 x 300, 0.7 x 0.7 x 1.0 mm", "tumour 4.2 ml", LANDMARKS,
            (Landmark("divot 1", (0.0, 100.0, 0.0)),), PATHS,
        )  # fmt: skip
        self.series: tuple[SeriesChoice, ...] = (SeriesChoice("s1", "portal venous, 120 slices"),)
        self.tumours: tuple[TumourChoice, ...] = (
            TumourChoice("1:1", "label 1, component 1", 4.2, (35.0, 10.0, 0.0)),
            TumourChoice("1:2", "label 1, component 2", 1.1, (40.0, 0.0, 12.0)),
        )
        self.problem = ""
        self.picture_path = "screenshot.png"
        self.work = ""

    def put(self, shown: NavigationSnapshot | None, *, size: tuple[int, int] = (200, 160)) -> None:
        """Publish a snapshot and pictures of it."""
        self.current = shown
        self.frames = {key: frame(key, shown, size) for key in "ABCD"}

    def clock_now_ns(self) -> int:
        return self.now_ns

    def latest_snapshot(self) -> NavigationSnapshot | None:
        return self.current

    def latest_panes(self) -> Mapping[str, PaneFrame]:
        return self.frames

    def view(self) -> ViewState:
        return self.view_state

    def set_view(self, view: ViewState) -> None:
        self.view_state = view

    def case_info(self) -> CaseInfo | None:
        return self.case

    def applicators(self) -> tuple[ApplicatorInfo, ...]:
        return (
            ApplicatorInfo(
                "emprint", "Emprint HP", {75.0: (150.0, 600.0), 100.0: (150.0, 600.0)}, "IFU", computed=True
            ),
            ApplicatorInfo("other", "Other", {60.0: (60.0, 300.0)}, "IFU"),
        )

    def zone_size(self, name: str, power_w: float, time_s: float) -> ZoneSize:
        self.calls.append(("zone_size", name, power_w, time_s))
        if time_s > 590:
            raise ValueError(f"{name}: {time_s:g} s lies outside the chart (150 to 590 s)")
        return ZoneSize(30.0 + time_s / 60.0, 26.0 + time_s / 60.0, "ex vivo chart")

    def tissues(self) -> tuple[TissueInfo, ...]:
        return (TissueInfo("liver", "liver"), TissueInfo("kidney", "kidney"))

    def zone_work(self) -> str:
        return self.work

    def hu_at(self, ras: Point) -> float | None:
        return -42.0 if ras[0] < 0 else 61.0

    def needle_name(self) -> str:
        return "Needle"

    def screenshot_path(self) -> str:
        return self.picture_path

    def screenshot_metadata(self) -> Mapping[str, str]:
        return {"Software": "ablation-nav", "Case": "CASE-0001"}

    def submit(self, event: OperatorEvent) -> None:
        self.events.append(event)

    def connect_now(self) -> None:
        self.calls.append(("connect_now",))

    def finish_recording(self) -> None:
        self.calls.append(("finish_recording",))

    def _file(self, progress: Progress, *call: Any) -> None:
        progress(0.5, "half done")
        if self.problem:
            raise FileProblem(self.problem)
        self.calls.append(call)

    def scan_ct(self, path: str, progress: Progress) -> tuple[SeriesChoice, ...]:
        self._file(progress, "scan_ct", path)
        return self.series

    def load_ct(self, path: str, key: str, progress: Progress) -> None:
        self._file(progress, "load_ct", path, key)

    def scan_tumour(self, path: str, progress: Progress) -> tuple[TumourChoice, ...]:
        self._file(progress, "scan_tumour", path)
        return self.tumours

    def load_tumour(self, path: str, key: str, progress: Progress) -> None:
        self._file(progress, "load_tumour", path, key)

    def pick_tumour(self, path: str, ras: Point, progress: Progress) -> None:
        self._file(progress, "pick_tumour", path, ras)

    def load_landmarks(self, path: str, progress: Progress) -> None:
        self._file(progress, "load_landmarks", path)

    def load_plan(self, path: str, progress: Progress) -> tuple[PlannedPath, ...]:
        self._file(progress, "load_plan", path)
        return PATHS

    def load_registration(self, path: str, progress: Progress) -> None:
        self._file(progress, "load_registration", path)
