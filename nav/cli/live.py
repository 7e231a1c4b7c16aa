"""A live session: sources, inbox, compute thread and recorder behind the window."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from nav.cli.session import WindowSession
from nav.cli.versions import software
from nav.config.room import RoomConfig
from nav.io.case import Case, CaseIdentity
from nav.runtime.clock import Clock
from nav.runtime.core import NavigationCore
from nav.runtime.essentials import CaseEssentials
from nav.runtime.events import LoadCase, TakeZone
from nav.runtime.messages import Source
from nav.runtime.pipeline import ComputeThread
from nav.runtime.predicted_zones import Prediction, to_bytes
from nav.runtime.recorder import Recorder, RecorderError
from nav.runtime.slots import Inbox
from nav.runtime.snapshot import NavigationSnapshot
from nav.runtime.zone_worker import ZoneWorker

__all__ = [
    "FIRST_RECORDING",
    "ROOM_ATTACHMENT",
    "LiveSession",
    "LiveStreams",
    "case_attachment",
    "essentials_of",
    "zone_attachment",
]

ROOM_ATTACHMENT = "room.json"
FIRST_RECORDING = "recording.mcap"
#: Recordings can be started from the network: so many, and no more, in one session.
MAX_RECORDINGS = 100
_SAFE_STEM = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")


@runtime_checkable
class Reconnectable(Protocol):
    """A source that can be told to connect again."""

    def reconnect(self) -> None:
        """Connect now if there is no connection."""


@runtime_checkable
class Counting(Protocol):
    """A source that counts what it receives."""

    def counts(self) -> dict[str, Any]:
        """JSON-able."""


def essentials_of(case: Case | None, room: RoomConfig) -> CaseEssentials:
    """What the compute thread needs of a case; empty before one is open."""
    return CaseEssentials("") if case is None else CaseEssentials.of(case, margin_mm=room.limits.margin_mm)


class LiveStreams:
    """Sources, inbox, compute thread and recorder, without any window.

    The first recording begins with the session (``recording.mcap``): a replay computes its numbers again. It can be
    stopped, and another begun (``recording-2.mcap``), which holds the streams from then on.

    Parameters
    ----------
    sources : tuple of Source
        Not started yet; `start` does that last.
    essentials : CaseEssentials
        The case at start.
    out : Path or None
        Folder of the recordings; None records nothing.
    identity : CaseIdentity, optional
        Goes into the recording only where ``privacy.record_patient`` says so.
    on_tick : callable, optional
        Called on the compute thread with every snapshot.
    """

    def __init__(
        self,
        room: RoomConfig,
        sources: tuple[Source, ...],
        clock: Clock,
        essentials: CaseEssentials,
        *,
        out: Path | None,
        identity: CaseIdentity | None = None,
        on_tick: Callable[[NavigationSnapshot], None] | None = None,
    ) -> None:
        self._sources = sources
        self._room, self._clock, self._out, self._identity = room, clock, out, identity
        self._essentials = essentials
        self._lock = threading.Lock()
        self._recordings: list[Path] = []
        self._ended = False
        self._past_fault = ""
        self.core = NavigationCore(room, essentials)
        self.recorder: Recorder | None = None
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            self.recorder = self._open_recorder(out / FIRST_RECORDING, overwrite=True)
        self.inbox = Inbox(self.recorder)
        self.zones = ZoneWorker(self._take_zone, lambda text: self.compute.set_fault("zones", text))

        def ticked(snapshot: NavigationSnapshot) -> None:
            self.zones.want(snapshot.zone_request)
            if on_tick is not None:
                on_tick(snapshot)

        self.compute = ComputeThread(self.core, self.inbox, clock, recorder=self.recorder, on_tick=ticked)

    def start(self) -> None:
        """Start computing, then receiving."""
        self.zones.start()
        self.compute.start()
        for source in self._sources:
            source.start(self.inbox)

    def stop(self) -> None:
        """Stop receiving and computing; finish the recording. Safe to call twice."""
        with self._lock:
            self._ended = True
        for source in self._sources:
            source.stop()
        self.compute.stop()
        self.zones.stop()
        if self.recorder is not None:
            self.recorder.close()

    @property
    def problem(self) -> str:
        """What went wrong inside (a thread that died, a recording fault); empty when nothing did."""
        recorder = self.recorder
        return self.compute.error or self._past_fault or ("" if recorder is None else recorder.fault)

    # -- recording -----------------------------------------------------------------------------------------------

    @property
    def recording(self) -> str:
        """Name of the file that is being recorded; empty when none is."""
        recorder = self.recorder
        return "" if recorder is None else recorder.path.name

    @property
    def recordings(self) -> tuple[Path, ...]:
        """The files of this session, in the order in which they were begun."""
        with self._lock:
            return tuple(self._recordings)

    def start_recording(self, name: str = "") -> str:
        """Begin another recording; returns its file name. From any thread.

        Parameters
        ----------
        name : str
            Only its last part counts, and its suffix becomes ``.mcap``: the file always lies in the session's folder.
            Empty: ``recording-2.mcap`` and so on.

        Raises
        ------
        RecorderError
            When a recording runs, the session keeps none or has ended, the name cannot be used, or the file exists.
        """
        with self._lock:
            if self.recorder is not None:
                raise RecorderError(f"{self.recorder.path.name} is being recorded; stop it before another is started")
            if self._out is None or self._ended:
                raise RecorderError("this session has ended" if self._ended else "this session keeps no recordings")
            if len(self._recordings) >= MAX_RECORDINGS:
                raise RecorderError(f"{MAX_RECORDINGS} recordings were made in this session, which is the limit")
            path = self._out / _file_name(name) if name else _free_name(self._out)
            recorder = self._open_recorder(path, overwrite=False)
            self.recorder = recorder
            # Messages first: a recorded tick never refers to one that the file does not hold.
            self.inbox.recorder = recorder
            self.compute.set_recorder(recorder)
            return path.name

    def stop_recording(self) -> str:
        """Finish the file and go on without one; returns its name. From any thread.

        Raises
        ------
        RecorderError
            When nothing is recorded, or the file is not whole (the fault is named).
        """
        with self._lock:
            recorder = self.recorder
            if recorder is None:
                raise RecorderError("nothing is recorded now")
            self.compute.set_recorder(None)
            self.inbox.recorder = None
            self.recorder = None
        recorder.close()
        if recorder.fault:
            self._past_fault = recorder.fault
            raise RecorderError(f"{recorder.path.name}: {recorder.fault}")
        return recorder.path.name

    def take_case(self, essentials: CaseEssentials) -> LoadCase:
        """Make a case known to the compute thread and to the recording; returns the event that takes it up."""
        key = self.core.add_case(essentials)
        with self._lock:
            self._essentials = essentials
            if self.recorder is not None:
                self.recorder.attach(case_attachment(key), essentials.to_bytes())
        return LoadCase(key)

    def _take_zone(self, prediction: Prediction) -> None:
        """Hand a computed zone to the compute thread and to the recording. On a thread of the worker."""
        key = self.core.add_zone(prediction)
        with self._lock:
            if self.recorder is not None:
                self.recorder.attach(zone_attachment(key), to_bytes(prediction))
        self.compute.submit(TakeZone(key))

    def _open_recorder(self, path: Path, *, overwrite: bool) -> Recorder:
        room, essentials, identity = self._room, self._essentials, self._identity
        key = essentials.sha256()
        metadata: dict[str, object] = {
            "software": software(room),
            "case": key,
            "pseudonym": essentials.pseudonym,
            "begins": "middle" if self._recordings else "start",
        }
        if room.privacy.record_patient and identity is not None:
            metadata["patient"] = {
                "name": identity.patient_name,
                "id": identity.patient_id,
                "study": identity.study_uid,
            }
        recorder = Recorder(path, metadata=metadata, clock=self._clock, overwrite=overwrite)
        recorder.attach(ROOM_ATTACHMENT, room.model_dump_json().encode(), "application/json")
        recorder.attach(case_attachment(key), essentials.to_bytes())
        self._recordings.append(path)
        return recorder

    # -- sources -------------------------------------------------------------------------------------------------

    def reconnect(self, name: str) -> None:
        """Let a source connect again, if it has no connection.

        Raises
        ------
        LookupError
            When no source has that name, or its driver cannot reconnect.
        """
        source = next((s for s in self._sources if s.name == name), None)
        if source is None:
            known = ", ".join(s.name for s in self._sources)
            raise LookupError(f"source {name!r}: there is none; known: {known}")
        if not isinstance(source, Reconnectable):
            raise LookupError(f"source {name!r}: its driver cannot reconnect")
        source.reconnect()

    def source_counts(self) -> dict[str, dict[str, Any]]:
        """Source → what its driver has counted (connections, messages, drops), for those that count."""
        return {s.name: s.counts() for s in self._sources if isinstance(s, Counting)}

    def connect_now(self) -> None:
        """Let every source connect again that can and has no connection."""
        for source in self._sources:
            if isinstance(source, Reconnectable):
                source.reconnect()


class LiveSession(WindowSession):
    """Live guidance in a window.

    Parameters
    ----------
    live : LiveStreams
        Started and stopped with this session.
    case : Case or None
        Open at start (``live`` was made with its essentials); others come from the window.
    out : Path or None
        Folder for screenshots.
    """

    def __init__(
        self, room: RoomConfig, live: LiveStreams, clock: Clock, *, case: Case | None, out: Path | None
    ) -> None:
        super().__init__(room, clock, live.compute, out=out)
        self._live = live
        live.compute.on_published = self.worker.notify
        self._cases_taken = 0
        if case is not None:
            live.zones.set_vessels(case.vessels)
            self._show(case, 0)

    def start(self) -> None:
        """Start drawing, computing and, last, receiving."""
        self.worker.start()
        self._live.start()

    def stop(self) -> None:
        """Stop receiving, computing, drawing; finish the recording. Safe to call twice."""
        self._live.stop()
        self.worker.stop()

    def connect_now(self) -> None:
        """See `HudSession`."""
        self._live.connect_now()

    def zone_work(self) -> str:
        """See `HudSession`."""
        return self._live.zones.progress

    def finish_recording(self) -> None:
        """See `HudSession`."""
        # Its faults are on the screen already; that it is finished twice, or by another, is none.
        with contextlib.suppress(RecorderError):
            self._live.stop_recording()

    def take_case(self, case: Case) -> None:
        """Hand a new or changed case to everything that computes with it, then show it."""
        self._live.zones.set_vessels(case.vessels)
        event = self._live.take_case(essentials_of(case, self.room))
        # The core counts its cases the same way, so the pictures of a case never meet the numbers of another.
        self._cases_taken += 1
        self.submit(event)
        self._show(case, self._cases_taken)


def case_attachment(key: str) -> str:
    """Name of the attachment that holds the essentials of a case."""
    return f"case-{key}.npz"


def zone_attachment(key: str) -> str:
    """Name of the attachment that holds a computed zone."""
    return f"zone-{key}.npz"


def _file_name(name: str) -> str:
    """The name of a recording that somebody else asked for: the last part alone, with our suffix."""
    stem = name.replace("\\", "/").rpartition("/")[2].split(".", 1)[0]
    if not _SAFE_STEM.fullmatch(stem):
        raise RecorderError(f"recording {name!r}: expected a name of 1 to 64 letters, digits, '-' or '_'")
    return f"{stem}.mcap"


def _free_name(folder: Path) -> Path:
    """``recording-2.mcap``, or the next that does not exist."""
    number = 2
    while (path := folder / f"recording-{number}.mcap").exists():
        number += 1
    return path
