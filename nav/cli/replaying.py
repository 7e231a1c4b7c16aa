"""Repeats the ticks of a recording: the same inputs, the same clock readings, hence the same numbers bit for bit."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from drivers.replay.source import decode_all
from nav.cli.live import ROOM_ATTACHMENT
from nav.config.load import ConfigError
from nav.config.room import RoomConfig
from nav.runtime.clock import Clock
from nav.runtime.core import NavigationCore
from nav.runtime.essentials import CaseEssentials
from nav.runtime.events import OperatorEvent
from nav.runtime.recording import Recording, RecordingError, Tick
from nav.runtime.slots import CutFeed, LatestSlot, RecordingGap
from nav.runtime.snapshot import NavigationSnapshot

__all__ = ["RecordedSession", "ReplayThread", "ReplayedTick"]


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
        Not a recording of this program, or one without its configuration or case.
    """

    def __init__(self, path: Path) -> None:
        self.recording = Recording.open(path)
        self.room = self._room(path)
        self.metadata = self.recording.metadata
        self._cases = self._load_cases()
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

    def _load_cases(self) -> dict[str, CaseEssentials]:
        names = [n for n in self.recording.attachments if n.startswith("case-")]
        cases = [CaseEssentials.from_bytes(self.recording.attachment(n)) for n in names]
        return {n.removeprefix("case-").removesuffix(".npz"): c for n, c in zip(names, cases, strict=True)}

    def core(self) -> NavigationCore:
        """A fresh core in the state in which the recording began."""
        return NavigationCore(self.room, self.case, self._cases)

    def ticks(self) -> Iterator[ReplayedTick]:
        """Compute every recorded tick again, in order.

        A recording that was cut (the process was killed) ends with the last tick whose inputs are all there; `gap`
        then says so.
        """
        core = self.core()
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

    def __init__(self, session: RecordedSession, clock: Clock, *, speed: float = 1.0) -> None:
        self._session = session
        self._clock = clock
        self._speed = speed
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
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
        for replayed in self._session.ticks():
            tick_ns = replayed.recorded.now_ns
            if not self._started_ns:
                self._first_ns, self._started_ns = tick_ns, self._clock.now_ns()
            wait_s = (tick_ns - self.recorded_now_ns()) / 1e9 / self._speed
            if wait_s > 0 and self._stop.wait(wait_s):
                return
            if self._stop.is_set():
                return
            self.snapshots.put(replayed.snapshot)
        self.finished.set()
