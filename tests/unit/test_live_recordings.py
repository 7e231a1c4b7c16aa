"""Recordings of a live session: begun, stopped, begun again, and never outside the session's folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nav.cli.live import LiveStreams
from nav.cli.replaying import RecordedSession
from nav.config.room import RoomConfig
from nav.runtime.clock import SystemClock
from nav.runtime.essentials import CaseEssentials
from nav.runtime.events import LoadCase
from nav.runtime.messages import Message, MessageSink, StatusMessage
from nav.runtime.recorder import RecorderError
from nav.runtime.recording import Recording, RecordingError
from tests.virtual_room import simulated_room


class Source:
    """Delivers what the test says."""

    def __init__(self, name: str = "tracker") -> None:
        self.name = name
        self.reconnected = 0
        self._sink: MessageSink | None = None
        self._number = 0

    def start(self, sink: MessageSink) -> None:
        self._sink = sink

    def stop(self) -> None:
        self._sink = None

    def reconnect(self) -> None:
        self.reconnected += 1

    def say(self, raw: bytes) -> None:
        assert self._sink is not None
        message: Message = StatusMessage(self.name, self._number, SystemClock().now_ns(), "S", None, {}, 1, 0, "", "")
        self._number += 1
        self._sink.deliver(message, raw)


class Mute:
    """A source that cannot reconnect."""

    name = "mute"

    def start(self, sink: MessageSink) -> None:
        del sink

    def stop(self) -> None:
        pass


@pytest.fixture
def room() -> RoomConfig:
    return simulated_room()


def live(room: RoomConfig, out: Path | None, *sources: Source | Mute) -> LiveStreams:
    return LiveStreams(room, sources, SystemClock(), CaseEssentials("P-1"), out=out)


def raws(path: Path) -> list[bytes]:
    with Recording.open(path) as recording:
        assert recording.complete
        return [m.raw for m in recording.raw_messages()]


def test_stopped_and_begun_again_each_file_holds_its_own_messages(room: RoomConfig, tmp_path: Path) -> None:
    source = Source()
    session = live(room, tmp_path, source)
    session.start()
    try:
        source.say(b"first")
        assert session.stop_recording() == "recording.mcap"
        source.say(b"between")
        assert session.start_recording() == "recording-2.mcap"
        source.say(b"second")
        assert session.stop_recording() == "recording-2.mcap"
        assert session.start_recording("../../elsewhere/Named.igs.nrrd") == "Named.mcap"
        source.say(b"third")
    finally:
        session.stop()
    names = ("recording.mcap", "recording-2.mcap", "Named.mcap")
    assert [p.name for p in session.recordings] == list(names)
    assert all(p.parent == tmp_path for p in session.recordings)
    assert [raws(tmp_path / n) for n in names] == [[b"first"], [b"second"], [b"third"]]
    assert not (tmp_path.parent / "elsewhere").exists()
    assert not session.problem


def test_a_recording_from_the_middle_says_so_and_is_not_replayed(room: RoomConfig, tmp_path: Path) -> None:
    session = live(room, tmp_path)
    session.start()
    session.stop_recording()
    session.start_recording()
    session.stop()
    with Recording.open(tmp_path / "recording.mcap") as first, Recording.open(tmp_path / "recording-2.mcap") as second:
        assert (first.metadata["begins"], second.metadata["begins"]) == ("start", "middle")
    assert RecordedSession(tmp_path / "recording.mcap").metadata["begins"] == "start"
    with pytest.raises(RecordingError, match=r"recording-2.mcap: begins in the middle of a session.*--serve"):
        RecordedSession(tmp_path / "recording-2.mcap")


def test_a_later_recording_holds_the_case_that_was_open_when_it_began(room: RoomConfig, tmp_path: Path) -> None:
    session = live(room, tmp_path)
    session.start()
    session.stop_recording()
    other = CaseEssentials("P-2")
    event = session.take_case(other)
    assert event == LoadCase(other.sha256())
    session.start_recording()
    session.stop()
    with Recording.open(tmp_path / "recording-2.mcap") as recording:
        assert recording.metadata["case"] == other.sha256()
        assert recording.metadata["pseudonym"] == "P-2"
        assert f"case-{other.sha256()}.npz" in recording.attachments


@pytest.mark.parametrize("name", ["..", "a b", "$(x)", "x" * 65, "../", ".hidden", "é"])
def test_names_that_cannot_be_used_are_refused(room: RoomConfig, tmp_path: Path, name: str) -> None:
    session = live(room, tmp_path)
    session.stop_recording()
    with pytest.raises(RecorderError, match="expected a name"):
        session.start_recording(name)
    session.stop()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["recording.mcap"]


def test_nothing_is_overwritten_and_one_runs_at_a_time(
    room: RoomConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nav.cli.live.MAX_RECORDINGS", 3)
    session = live(room, tmp_path)
    with pytest.raises(RecorderError, match=r"recording.mcap is being recorded"):
        session.start_recording()
    session.stop_recording()
    with pytest.raises(RecorderError, match="nothing is recorded"):
        session.stop_recording()
    with pytest.raises(RecorderError, match="exists already"):
        session.start_recording("recording.mha")
    assert (tmp_path / "recording.mcap").stat().st_size > 0
    for _ in range(2):
        session.start_recording()
        session.stop_recording()
    with pytest.raises(RecorderError, match="3 recordings"):
        session.start_recording()
    session.stop()
    with pytest.raises(RecorderError, match="ended"):
        session.start_recording()
    without = live(room, None)
    with pytest.raises(RecorderError, match="keeps no recordings"):
        without.start_recording()


def test_reconnect_reaches_the_named_source_only(room: RoomConfig) -> None:
    a, b = Source("tracker"), Source("ultrasound")
    session = live(room, None, a, b, Mute())
    session.reconnect("ultrasound")
    assert (a.reconnected, b.reconnected) == (0, 1)
    with pytest.raises(LookupError, match="known: tracker, ultrasound, mute"):
        session.reconnect("nobody")
    with pytest.raises(LookupError, match="cannot reconnect"):
        session.reconnect("mute")


def test_the_registration_in_force_is_in_the_snapshot(room: RoomConfig) -> None:
    from nav.runtime.core import NavigationCore
    from nav.runtime.events import LoadRegistration
    from nav.runtime.slots import Batch

    core = NavigationCore(room, CaseEssentials(""))
    matrix = np.eye(4)
    matrix[:3, 3] = (1.0, 2.0, 3.0)
    snapshot = core.tick(Batch((), (), {}), [LoadRegistration(tuple(matrix.ravel().tolist()))], 1)
    assert snapshot.registration is not None
    assert snapshot.registration.transform is not None
    assert snapshot.registration.transform.name.wire == "ReferenceToRas"
    assert np.array_equal(snapshot.registration.transform.matrix, matrix)
