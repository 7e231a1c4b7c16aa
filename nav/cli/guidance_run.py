"""Runs a session in the window, on a display or off screen, from the first frame to the summary."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nav.cli.live import LiveSession, LiveStreams, essentials_of
from nav.cli.progress import Steps
from nav.cli.run_log import RunLog, Truth, write_summary
from nav.cli.session import WindowSession
from nav.config.room import RoomConfig
from nav.io.case import Case
from nav.runtime.clock import SystemClock
from nav.runtime.events import OperatorEvent, Point, SetPlan, StartGuidance
from nav.runtime.memory import keep_freed_memory
from nav.runtime.plugins import make_source
from nav.runtime.snapshot import NavigationSnapshot

if TYPE_CHECKING:
    from drivers.openigtlink.publisher import NavigationPublisher

__all__ = ["Shot", "guide_live", "show_window"]

WINDOW_SIZE = (1920, 1080)
#: Python's default of 5 ms was measured to delay the reader by 10 ms (median) beside a busy thread; this by 1 ms.
SWITCH_INTERVAL_S = 0.0005


@dataclass(frozen=True, slots=True)
class Shot:
    """A screenshot to take: ``hud-<name>.png``, ``at_s`` seconds after the window is shown."""

    at_s: float
    name: str


def show_window(
    session: WindowSession,
    log: RunLog,
    *,
    headless: bool,
    duration_s: float | None,
    shots: Sequence[Shot] = (),
    on_shown: Callable[[], None] = lambda: None,
    on_beat: Callable[[], str] = lambda: "",
    finished: Callable[[], bool] = lambda: False,
    out: Path | None = None,
    layout: str = "",
) -> list[Path]:
    """Show the HUD until it is closed or ``duration_s`` is over; returns the screenshots' paths.

    Parameters
    ----------
    session : WindowSession
        Started here (so that the window stands before the first data) and stopped at the end.
    on_shown : callable
        Called once the window is shown and the session runs.
    on_beat : callable
        Called ten times a second; returns the layout that should be shown now, or nothing.
    finished : callable
        True when there is nothing more to show (asked ten times a second).
    layout : str
        ``plan``, ``guide`` or ``ultrasound``; empty: as the case needs it.
    """
    from nav.hud.app import create_application, grab_later, wait_for_pictures
    from nav.hud.event_loop import run_event_loop
    from nav.hud.main_window import MainWindow
    from nav.hud.panes import tip_panes

    app = create_application(headless)
    if layout:
        session.set_layout(layout)

    def painted(pane: str, sequence: int, arrival_ns: int, painted_ns: int) -> None:
        if pane == ("A" if "A" in tip_panes(session.view()) else "C"):
            log.on_painted(sequence, arrival_ns, painted_ns)

    window = MainWindow(session, on_painted=painted, latency_warn_ms=session.room.limits.latency_warn_ms)
    window.resize(*WINDOW_SIZE)
    window.show()
    app.processEvents()
    session.start()
    window.start()
    taken: list[Path] = []

    def take(name: str) -> None:
        if out is not None:
            path = out / f"hud-{name}.png"
            grab_later(window, str(path), session.screenshot_metadata())
            taken.append(path)

    def beat() -> bool:
        wanted = on_beat()
        if wanted:
            window.controller.trigger(f"layout_{wanted}")
        return not finished()

    try:
        on_shown()
        at = [(shot.at_s, lambda name=shot.name: take(name)) for shot in shots]
        run_event_loop(app, duration_s=duration_s, at=at, beat=beat)
        take("final")
    finally:
        window.stop()
        session.stop()
        window.close()
        wait_for_pictures()
    return taken


def guide_live(
    room: RoomConfig,
    case: Case | None,
    *,
    out: Path,
    headless: bool,
    duration_s: float | None,
    steps: Steps,
    target_ras: Point | None = None,
    entry_ras: Point | None = None,
    registration: Path | None = None,
    shots: Sequence[Shot] = (),
    layout: str = "",
    on_shown: Callable[[], Truth | None] = lambda: None,
    on_beat: Callable[[], str] = lambda: "",
    room_cpu_seconds: Callable[[], float] | None = None,
) -> dict[str, Any]:
    """Guide with live sources; writes recording, screenshots and ``summary.json`` into ``out``; returns the summary.

    Parameters
    ----------
    on_shown : callable
        Called when everything runs (a simulated room begins then); returns the ground truth where there is one.
    room_cpu_seconds : callable, optional
        CPU seconds that a simulated room has spent so far.
    """
    # The reader, compute and render threads each wait for the interpreter only this long while another runs Python.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    keep_freed_memory()
    clock = SystemClock()
    log = RunLog(keeps_tips=room_cpu_seconds is not None)  # only a simulated room knows the truth
    sources = tuple(make_source(source, clock) for source in room.sources)
    out.mkdir(parents=True, exist_ok=True)
    identity = None if case is None else case.identity

    def ticked(snapshot: NavigationSnapshot) -> None:
        log.on_tick(snapshot)
        if publisher is not None:
            publisher.offer(snapshot)

    live = LiveStreams(room, sources, clock, essentials_of(case, room), out=out, identity=identity, on_tick=ticked)
    publisher = _publisher(room, clock, live)
    session = LiveSession(room, live, clock, case=case, out=out)
    truth: list[Truth] = []
    spent: list[float] = []
    started_ns: list[int] = []

    def shown() -> None:
        for event in _opening_events(session, case, target_ras, entry_ras, registration):
            session.submit(event)
        found = on_shown()
        if found is not None:
            truth.append(found)
        started_ns.append(clock.now_ns())
        if room_cpu_seconds is not None:
            spent.append(room_cpu_seconds())

    if not layout:
        layout = "plan" if case is None or not _prepared(room, case, registration) else "guide"
    if not shots and duration_s is not None:
        shots = tuple(Shot(duration_s * share, name) for share, name in ((0.34, "1"), (0.67, "2")))
    with ExitStack() as stack:
        if publisher is not None:
            stack.enter_context(publisher)
            steps.say(f"  publishing at {publisher.server.host}:{publisher.server.port}")
        taken = show_window(
            session,
            log,
            headless=headless,
            duration_s=duration_s,
            shots=shots,
            on_shown=shown,
            on_beat=on_beat,
            out=out,
            layout=layout,
        )
    cores = None
    if room_cpu_seconds is not None and spent:
        cores = (room_cpu_seconds() - spent[0]) / max((clock.now_ns() - started_ns[0]) / 1e9, 1e-3)
    if truth:
        log.compare(truth[0])
    summary = write_summary(out, room, live.core.streams, log, sources=live.source_counts(), room_cpu_cores=cores)
    for path in (*taken, out / "summary.json", *live.recordings):
        steps.say(f"  wrote {path}")
    if live.problem:
        steps.say(f"  problem: {live.problem}")
    return summary


def _publisher(room: RoomConfig, clock: SystemClock, live: LiveStreams) -> NavigationPublisher | None:
    """What sends the guidance on to other programs, where the room says so."""
    if room.publish is None:
        return None
    from drivers.openigtlink.publisher import NavigationPublisher

    return NavigationPublisher(room, room.publish, clock, live)


def _prepared(room: RoomConfig, case: Case, registration: Path | None) -> bool:
    """True when guidance can start without anything being done in the window."""
    assumed = room.rigid_calibration(room.reference_frame, room.ct_frame) is not None
    return case.tumour is not None and (assumed or registration is not None)


def _opening_events(
    session: LiveSession, case: Case | None, target: Point | None, entry: Point | None, registration: Path | None
) -> list[OperatorEvent]:
    """What a command line that says everything does instead of the person."""
    events: list[OperatorEvent] = []
    if case is None:
        return events
    if target is None and not case.paths and case.tumour is not None:
        target = _centre(case)
    if target is not None:
        events.append(SetPlan(target, entry))
    if registration is not None:
        session.load_registration(str(registration), lambda _share, _text: None)
    if _prepared(session.room, case, registration):
        events.append(StartGuidance())
    return events


def _centre(case: Case) -> Point:
    """Centroid of the tumour, RAS mm."""
    assert case.tumour is not None
    index = np.argwhere(case.tumour.array)[:, ::-1].mean(axis=0)
    x, y, z = (float(v) for v in case.tumour.to_ras(index))
    return x, y, z
