"""A live session: sources, inbox, compute thread and recorder behind the window."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nav.cli.session import WindowSession
from nav.cli.versions import software
from nav.config.room import RoomConfig
from nav.io.case import Case, CaseIdentity
from nav.runtime.clock import Clock
from nav.runtime.core import NavigationCore
from nav.runtime.essentials import CaseEssentials
from nav.runtime.events import LoadCase
from nav.runtime.messages import Source
from nav.runtime.pipeline import ComputeThread
from nav.runtime.recorder import Recorder
from nav.runtime.slots import Inbox
from nav.runtime.snapshot import NavigationSnapshot

__all__ = ["ROOM_ATTACHMENT", "LiveSession", "LiveStreams", "case_attachment", "essentials_of"]


def essentials_of(case: Case | None, room: RoomConfig) -> CaseEssentials:
    """What the compute thread needs of a case; empty before one is open."""
    return CaseEssentials("") if case is None else CaseEssentials.of(case, margin_mm=room.limits.margin_mm)


class LiveStreams:
    """Sources, inbox, compute thread and recorder, without any window.

    Parameters
    ----------
    sources : tuple of Source
        Not started yet; `start` does that last.
    essentials : CaseEssentials
        The case at start.
    out : Path or None
        Folder of ``recording.mcap``; None records nothing.
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
        self.core = NavigationCore(room, essentials)
        self.recorder = None if out is None else _open_recorder(out, room, essentials, identity, clock)
        self.inbox = Inbox(self.recorder)
        self.compute = ComputeThread(self.core, self.inbox, clock, recorder=self.recorder, on_tick=on_tick)

    def start(self) -> None:
        """Start computing, then receiving."""
        self.compute.start()
        for source in self._sources:
            source.start(self.inbox)

    def stop(self) -> None:
        """Stop receiving and computing; finish the recording. Safe to call twice."""
        for source in self._sources:
            source.stop()
        self.compute.stop()
        if self.recorder is not None:
            self.recorder.close()

    def finish_recording(self) -> None:
        """Close the file and go on without it; it is not taken up again (a replay needs it from the start)."""
        if self.recorder is not None:
            self.inbox.recorder = None
            self.compute.set_recorder(None)
            self.recorder.close()

    @property
    def problem(self) -> str:
        """What went wrong inside (a thread that died, a recording fault); empty when nothing did."""
        fault = "" if self.recorder is None else self.recorder.fault
        return self.compute.error or fault


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
            self._show(case, 0)

    def start(self) -> None:
        """Start drawing, computing and, last, receiving."""
        self.worker.start()
        self._live.start()

    def stop(self) -> None:
        """Stop receiving, computing, drawing; finish the recording. Safe to call twice."""
        self._live.stop()
        self.worker.stop()

    def finish_recording(self) -> None:
        """See `HudSession`."""
        self._live.finish_recording()

    def take_case(self, case: Case) -> None:
        """Hand a new or changed case to everything that computes with it, then show it."""
        essentials = essentials_of(case, self.room)
        key = self._live.core.add_case(essentials)
        if self._live.recorder is not None:
            self._live.recorder.attach(case_attachment(key), essentials.to_bytes())
        # The core counts its cases the same way, so the pictures of a case never meet the numbers of another.
        self._cases_taken += 1
        self.submit(LoadCase(key))
        self._show(case, self._cases_taken)


ROOM_ATTACHMENT = "room.json"


def case_attachment(key: str) -> str:
    """Name of the attachment that holds the essentials of a case."""
    return f"case-{key}.npz"


def _open_recorder(
    out: Path, room: RoomConfig, essentials: CaseEssentials, identity: CaseIdentity | None, clock: Clock
) -> Recorder:
    out.mkdir(parents=True, exist_ok=True)
    key = essentials.sha256()
    metadata: dict[str, object] = {"software": software(room), "case": key, "pseudonym": essentials.pseudonym}
    if room.privacy.record_patient and identity is not None:
        metadata["patient"] = {"name": identity.patient_name, "id": identity.patient_id, "study": identity.study_uid}
    recorder = Recorder(out / "recording.mcap", metadata=metadata, clock=clock, overwrite=True)
    recorder.attach(ROOM_ATTACHMENT, room.model_dump_json().encode(), "application/json")
    recorder.attach(case_attachment(key), essentials.to_bytes())
    return recorder
