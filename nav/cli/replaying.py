"""Repeats the ticks of a recording: the same inputs, the same clock readings, hence the same numbers bit for bit."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from drivers.replay.source import decode_all
from nav.cli.guidance_run import WINDOW_SIZE, show_window
from nav.cli.live import ROOM_ATTACHMENT, case_attachment, zone_attachment
from nav.cli.progress import Steps, warm_up_visibly
from nav.cli.run_log import RunLog, write_summary
from nav.cli.session import WindowSession
from nav.cli.versions import software
from nav.config.load import ConfigError
from nav.config.room import RoomConfig
from nav.guidance.numbers import GateState
from nav.io.case import Case
from nav.runtime.clock import Clock, ManualClock, SystemClock
from nav.runtime.core import NavigationCore
from nav.runtime.essentials import CaseEssentials
from nav.runtime.events import OperatorEvent
from nav.runtime.predicted_zones import from_bytes
from nav.runtime.recording import Recording, RecordingError, Tick
from nav.runtime.slots import CutFeed, LatestSlot, RecordingGap
from nav.runtime.snapshot import NavigationSnapshot
from nav.runtime.summary import navigation_numbers

__all__ = ["RecordedSession", "ReplayThread", "ReplayedTick", "picture_of", "recompute", "show_replay"]


T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class ReplayedTick:
    """A tick computed again, beside what was recorded."""

    recorded: Tick
    snapshot: NavigationSnapshot


class RecordedSession:
    """Room, case and inputs of a recording.

    Raises
    ------
    RecordingError
        Not a recording of this program, or one without its configuration or case, or one that begins in the middle of
        a session.
    """

    def __init__(self, path: Path) -> None:
        self.recording = Recording.open(path)
        self.room = self._room(path)
        self.metadata = self.recording.metadata
        if self.metadata.get("begins", "start") != "start":
            raise RecordingError(
                f"{path}: begins in the middle of a session, so its numbers cannot be computed again from their "
                "beginning; its streams can be served (--serve HOST:PORT), and the session's first recording replayed"
            )
        self._cases = self._attached(case_attachment, CaseEssentials.from_bytes)
        self._zones = self._attached(zone_attachment, from_bytes)
        key = str(self.metadata.get("case", ""))
        if key not in self._cases:
            raise RecordingError(f"{path}: the case it started with is missing; it was damaged or cut at the start")
        self.case = self._cases[key]
        self.gap = ""

    def _room(self, path: Path) -> RoomConfig:
        try:
            return RoomConfig.model_validate_json(self.recording.attachment(ROOM_ATTACHMENT))
        except ValueError as error:
            raise ConfigError(f"{path}: {ROOM_ATTACHMENT}", [str(error)]) from None

    def _attached(self, name: Callable[[str], str], read: Callable[[bytes], T]) -> dict[str, T]:
        """Key → what is attached under ``name(key)``."""
        before, after = name("*").split("*")
        return {
            n.removeprefix(before).removesuffix(after): read(self.recording.attachment(n))
            for n in self.recording.attachments
            if n.startswith(before)
        }

    def core(self) -> NavigationCore:
        """A fresh core in the state in which the recording began."""
        core = NavigationCore(self.room, self.case, self._cases, self._zones)
        started = self.metadata.get("started")
        if isinstance(started, dict):
            core.streams.utc_minus_local_ns = int(started["utc_ns"]) - int(started["monotonic_ns"])
        return core

    def ticks(self, core: NavigationCore) -> Iterator[ReplayedTick]:
        """Compute every recorded tick again with a fresh `core`, in order.

        A recording that was cut (the process was killed) ends with the last tick whose inputs are all there; `gap`
        then says so.
        """
        feed = CutFeed(decode_all(self.recording, self.room))
        events: dict[int, list[OperatorEvent]] = defaultdict(list)
        for recorded in self.recording.events():
            events[recorded.tick].append(recorded.event)
        for tick in self.recording.ticks():
            try:
                batch = feed.take(tick.cut, tick.overflowed)
            except RecordingGap as gap:
                self.gap = str(gap)
                return
            snapshot = core.tick(batch, events.get(tick.sequence, []), tick.now_ns, faults=tick.faults, recording=True)
            yield ReplayedTick(tick, snapshot)


class ReplayThread:
    """Publishes a recording's snapshots at the pace of the recording. Implements `nav.cli.session.Compute`."""

    def __init__(
        self,
        session: RecordedSession,
        clock: Clock,
        *,
        speed: float = 1.0,
        on_tick: Callable[[NavigationSnapshot], None] = lambda _: None,
    ) -> None:
        self._session = session
        self._clock = clock
        self._speed = speed
        self._on_tick = on_tick
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.core = session.core()
        self.snapshots: LatestSlot[NavigationSnapshot] = LatestSlot()
        self.finished = threading.Event()
        self._first_ns = 0
        self._started_ns = 0

    def recorded_now_ns(self) -> int:
        """The recording's clock, as it passes during the replay."""
        if not self._started_ns:
            return self._first_ns
        return self._first_ns + round((self._clock.now_ns() - self._started_ns) * self._speed)

    def start(self) -> None:
        """Start publishing."""
        self._thread = threading.Thread(target=self._run, name="replay", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop; safe to call twice."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2.0)
            self._thread = None

    def submit(self, event: OperatorEvent) -> None:
        """A replay repeats what was done; new events have no place in it."""

    def set_fault(self, kind: str, text: str) -> None:
        """A replay shows the recorded faults only."""

    def _run(self) -> None:
        for replayed in self._session.ticks(self.core):
            tick_ns = replayed.recorded.now_ns
            if not self._started_ns:
                self._first_ns, self._started_ns = tick_ns, self._clock.now_ns()
            wait_s = (tick_ns - self.recorded_now_ns()) / 1e9 / self._speed
            if wait_s > 0 and self._stop.wait(wait_s):
                return
            if self._stop.is_set():
                return
            self.snapshots.put(replayed.snapshot)
            self._on_tick(replayed.snapshot)
        self.finished.set()


class ReplayClock:
    """The recording's clock, as it passes during a replay."""

    def __init__(self, thread: ReplayThread) -> None:
        self._thread = thread

    def now_ns(self) -> int:
        """Monotonic time in the recording."""
        return self._thread.recorded_now_ns()

    def utc_ns(self) -> int:
        """A replay has no wall clock of its own; the recording's monotonic time."""
        return self._thread.recorded_now_ns()


def recompute(session: RecordedSession, case: Case | None, out: Path, steps: Steps) -> tuple[int, dict[str, Any]]:
    """Compute every tick again, compare, write ``summary.json`` and a last screenshot.

    Returns
    -------
    differing : int
        Ticks whose numbers differ from the recorded ones in any bit.
    summary : dict
    """
    warm_up_visibly(steps)
    log = RunLog()
    core = session.core()
    differing = done = 0
    last: NavigationSnapshot | None = None
    with steps.step("Computing again") as update:
        for replayed in session.ticks(core):
            log.on_tick(replayed.snapshot)
            differing += navigation_numbers(replayed.snapshot) != replayed.recorded.navigation
            done += 1
            if replayed.snapshot.gate.state is GateState.OK or (
                last is None and replayed.snapshot.guidance is not None
            ):
                last = replayed.snapshot
            if done % 200 == 0:
                update(-1.0, f"{done} ticks")
    if session.gap:
        steps.say(f"  note: {session.gap}")
    versions = software(session.room)
    summary = log.builder.write(
        out / "summary.json",
        streams=core.streams.summary(),
        version=versions["version"],
        config_sha256=versions["config_sha256"],
    )
    if case is not None and last is not None:
        steps.say(f"  wrote {picture_of(session.room, case, last, out)}")
    steps.say(f"  wrote {out / 'summary.json'}")
    return differing, summary


class _Still:
    """A single snapshot at its own time. Implements `nav.cli.session.Compute`."""

    def __init__(self, snapshot: NavigationSnapshot) -> None:
        self.snapshots: LatestSlot[NavigationSnapshot] = LatestSlot()
        self.snapshots.put(snapshot)

    def start(self) -> None:
        """Nothing runs."""

    def stop(self) -> None:
        """Nothing runs."""

    def submit(self, event: OperatorEvent) -> None:
        """A picture takes no events."""

    def set_fault(self, kind: str, text: str) -> None:
        """A picture shows what was recorded."""


def picture_of(room: RoomConfig, case: Case, snapshot: NavigationSnapshot, out: Path) -> Path:
    """A screenshot of the HUD as it stood at one snapshot: ``hud-replay.png``."""
    from nav.hud.app import create_application, grab
    from nav.hud.main_window import MainWindow

    app = create_application(headless=True)
    session = WindowSession(room, ManualClock(snapshot.now_ns), _Still(snapshot), out=out)
    session.take_case(case)
    session.set_layout("guide")
    window = MainWindow(session, show_time=False)
    window.resize(*WINDOW_SIZE)
    window.show()
    session.start()
    wall = SystemClock()
    deadline = wall.now_ns() + 5_000_000_000
    while set(session.latest_panes()) < {"A", "B", "C", "D"} and wall.now_ns() < deadline:
        app.processEvents()
        window.tick()
    window.tick()
    app.processEvents()
    path = out / "hud-replay.png"
    grab(window, str(path), session.screenshot_metadata())
    session.stop()
    window.close()
    return path


def show_replay(session: RecordedSession, case: Case | None, out: Path, speed: float, steps: Steps) -> None:
    """Play the recording in the window at its own pace."""
    warm_up_visibly(steps)
    log = RunLog()
    thread = ReplayThread(session, SystemClock(), speed=speed, on_tick=log.on_tick)
    window = WindowSession(session.room, ReplayClock(thread), thread, out=out)
    if case is not None:
        window.take_case(case)
    shown = show_window(
        window, log, headless=False, duration_s=None, finished=thread.finished.is_set, out=out, layout="guide"
    )
    write_summary(out, session.room, thread.core.streams, log)
    for path in (*shown, out / "summary.json"):
        steps.say(f"  wrote {path}")
