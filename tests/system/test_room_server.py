"""The simulated room over real sockets: what a client gets, what a disturbance looks like, and that it ends."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from drivers.openigtlink.codec import decode, encode_status
from drivers.openigtlink.framing import Framer
from drivers.room.geometry import RoomError
from drivers.room.patient import PatientModel
from drivers.room.server import RoomProcesses, start_room
from drivers.room.truth import GroundTruth
from nav.config.room import RoomConfig
from nav.runtime.events import ApplyRegistration, CollectLandmark, event_from_dict
from nav.runtime.messages import ImageMessage, Message, PoseMessage, StatusMessage, TextMessage


class Client:
    """A plain client: reads bytes, keeps messages with their header version."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), 5.0)
        self.framer = Framer()
        self.messages: list[Message] = []
        self.versions: list[int] = []

    def read_for(self, seconds: float) -> list[Message]:
        """What came within ``seconds``."""
        fresh = len(self.messages)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.sock.settimeout(max(left, 0.001))
            try:
                data = self.sock.recv(1 << 20)
            except TimeoutError:
                break
            if not data:
                raise ConnectionError("closed by the server")
            for raw in self.framer.feed(data):
                self.versions.append(raw[1])
                self.messages.append(
                    decode(raw, source="test", sequence=len(self.messages), arrival_ns=time.monotonic_ns())
                )
        return self.messages[fresh:]

    def close(self) -> None:
        self.sock.close()


def only(room: RoomConfig, *names: str) -> RoomConfig:
    return room.model_copy(update={"sources": tuple(s for s in room.sources if s.name in names)})


@pytest.fixture
def tracker(room_config: RoomConfig, room_patient: PatientModel, tmp_path: Path) -> Iterator[RoomProcesses]:
    with start_room(
        only(room_config, "tracker"), patient=room_patient, automatic_ports=True, truth_path=tmp_path / "truth.jsonl"
    ) as room:
        yield room


def poses(messages: list[Message], device: str) -> list[PoseMessage]:
    return [m for m in messages if isinstance(m, PoseMessage) and m.device == device]


def test_a_whole_procedure_arrives_as_the_truth_says(tracker: RoomProcesses, tmp_path: Path) -> None:
    client = Client(tracker.ports["tracker"])
    assert tracker.wait_for_client(timeout_s=5.0)
    truth = tracker.begin(8.0)
    before, start = tracker.cpu_seconds(), time.monotonic()
    messages = client.read_for(8.8)
    cores = (tracker.cpu_seconds() - before) / (time.monotonic() - start)
    client.close()
    assert set(client.versions) == {1}
    assert all(m.metadata == {} for m in messages)
    needle = poses(messages, "NeedleToTracker")
    assert 8.8 * 60 * 0.85 < len(needle) < 8.8 * 60 * 1.02
    assert {m.device for m in messages if isinstance(m, PoseMessage)} == {
        "NeedleToTracker", "StylusToTracker", "ProbeToTracker", "ReferenceToTracker",
    }  # fmt: skip
    local = np.array([m.sender_ns - truth.clock_offset_ns for m in needle if m.sender_ns is not None])
    assert abs(truth.clock_offset_ns - (time.time_ns() - time.monotonic_ns()) - 3_000_000_000) < 100_000_000
    latency_ms = (np.array([m.arrival_ns for m in needle]) - local) / 1e6
    assert latency_ms.min() >= 20.0
    assert 25.0 < np.median(latency_ms) < 45.0  # a busy computer may add to it
    assert np.all(np.diff(local) > 0)
    # Every pose is the true one at its own stamp, up to the noise: tip by its calibration and the true tracker pose.
    during = local > truth.begin_ns
    geometry = tracker.patient.geometry
    tips = np.array(
        [
            (geometry.ras_from_tracker @ m.tools[0].matrix @ tracker.setup.needle_from_tip)[:3, 3]
            for m in needle
            if m.tools[0].matrix is not None
        ]
    )
    error = np.linalg.norm(tips[during] - truth.tips_ras(local[during]), axis=1)
    assert 0.3 < np.sqrt((error**2).mean()) < 0.6
    events = [(m.arrival_ns, event_from_dict(json.loads(m.text)))
              for m in messages if isinstance(m, TextMessage) and m.device == "FootSwitch"]  # fmt: skip
    assert [e for _, e in events] == [e.event for e in truth.script.events]
    for (arrival, event), item in zip(events, truth.script.events, strict=True):
        late_ms = (arrival - truth.local_ns(item.time_s)) / 1e6
        assert 20.0 <= late_ms < 120.0, event
    assert any(isinstance(e, ApplyRegistration) for _, e in events)
    assert sum(isinstance(e, CollectLandmark) for _, e in events) == 8
    assert cores < 0.2
    loaded = GroundTruth.load(tmp_path / "truth.jsonl")
    assert np.array_equal(loaded.tip_ras(int(local[-1])), truth.tip_ras(int(local[-1])))


def test_a_lost_tool_is_silence_with_keep_alive(tracker: RoomProcesses) -> None:
    client = Client(tracker.ports["tracker"])
    client.read_for(0.3)
    start_ns, end_ns = tracker.lose(("Needle",), duration_ms=400.0)
    client.read_for(0.9)
    stamps = [m.sender_ns - tracker._offset_ns for m in poses(client.messages, "NeedleToTracker") if m.sender_ns]
    assert not [s for s in stamps if start_ns <= s < end_ns]
    assert [s for s in stamps if s < start_ns]
    assert [s for s in stamps if s >= end_ns]
    others = [m.sender_ns - tracker._offset_ns for m in poses(client.messages, "ReferenceToTracker") if m.sender_ns]
    assert len([s for s in others if start_ns <= s < end_ns]) > 15
    tracker.lose((), duration_ms=900.0)
    client.read_for(0.3)
    silent = client.read_for(0.6)
    assert not [m for m in silent if isinstance(m, PoseMessage)]
    alive = [m for m in silent if isinstance(m, StatusMessage)]
    assert 1 <= len(alive) <= 4  # every 0.25 s
    assert all(m.code == 1 for m in alive)
    client.close()


def test_header_version_two_is_spoken_to_those_who_speak_it(tracker: RoomProcesses) -> None:
    old, new = Client(tracker.ports["tracker"]), Client(tracker.ports["tracker"])
    new.read_for(0.2)
    new.sock.sendall(encode_status("Test", version=2))
    new.read_for(0.3)
    fresh = new.read_for(0.3)
    assert new.versions[0] == 1
    assert set(new.versions[-len(fresh) :]) == {2}
    assert poses(fresh, "NeedleToTracker")[0].metadata["TransformStatus"] == "OK"
    old.read_for(0.2)
    assert set(old.versions) == {1}
    old.close()
    new.close()


def test_killed_frozen_and_brought_back(tracker: RoomProcesses) -> None:
    client = Client(tracker.ports["tracker"])
    truth = tracker.begin(20.0)
    client.read_for(0.2)
    tracker.suspend("tracker")
    client.read_for(0.2)  # what was on its way
    assert client.read_for(0.5) == []
    tracker.resume("tracker")
    assert poses(client.read_for(0.5), "NeedleToTracker")
    tracker.kill("tracker")
    assert tracker.alive() == {"tracker": False}
    assert tracker.problems()
    with pytest.raises((ConnectionError, OSError)):
        client.read_for(1.0)
    client.close()
    port = tracker.ports["tracker"]
    tracker.restart("tracker")
    assert tracker.ports["tracker"] == port
    again = Client(port)
    messages = poses(again.read_for(0.5), "StylusToTracker")
    again.close()
    # The same procedure goes on where it is by now.
    geometry = tracker.patient.geometry
    stamp = messages[-1].sender_ns
    matrix = messages[-1].tools[0].matrix
    assert stamp is not None
    assert matrix is not None
    tip = (geometry.ras_from_tracker @ matrix @ tracker.setup.stylus_from_tip)[:3, 3]
    true = truth.script.stylus_tip(np.array([truth.script_s(stamp - truth.clock_offset_ns)]))[0, :3, 3]
    assert np.linalg.norm(tip - true) < 2.0


def test_all_devices_share_one_time_and_little_of_the_computer(
    room_config: RoomConfig, room_patient: PatientModel
) -> None:
    with start_room(room_config, patient=room_patient, automatic_ports=True) as room:
        clients = {name: Client(port) for name, port in room.ports.items()}
        assert {s.port for s in room.room.sources} == set(room.ports.values())
        truth = room.begin(8.0)
        for client in clients.values():
            client.read_for(0.2)
        before, start = room.cpu_seconds(), time.monotonic()
        images: dict[str, list[ImageMessage]] = {"ultrasound": [], "fluoro": []}
        while time.monotonic() < start + 3.0:
            for name, client in clients.items():
                got = client.read_for(0.02)
                if name in images:
                    images[name] += [m for m in got if isinstance(m, ImageMessage)]
        cores = (room.cpu_seconds() - before) / (time.monotonic() - start)
        for client in clients.values():
            client.close()
        assert not room.problems()
    assert cores < 0.6
    for name, rate in (("ultrasound", 30.0), ("fluoro", 6.0)):
        got = images[name]
        assert 0.7 * 3.0 * rate < len(got) < 1.2 * 3.2 * rate + 2
        stamps = np.array([m.sender_ns or 0 for m in got])
        assert np.median(np.diff(stamps)) == pytest.approx(1e9 / rate, rel=0.01)
        latency_ms = (np.array([m.arrival_ns for m in got]) - (stamps - truth.clock_offset_ns)) / 1e6
        assert latency_ms.min() >= 20.0
    assert images["ultrasound"][0].array.shape == (1, 512, 512)
    assert images["ultrasound"][0].array.dtype == np.uint8
    slice_ = images["fluoro"][-1]
    assert slice_.array.shape == (1, 512, 512)
    assert slice_.array.dtype == np.int16
    assert slice_.mm_from_index[2, 3] == round(room_patient.geometry.target[2])
    assert np.median(np.asarray(slice_.array)[0, 200:300, 140:200]) > 0  # tissue in the middle


def test_no_process_outlives_the_room(room_config: RoomConfig, room_patient: PatientModel) -> None:
    room = start_room(only(room_config, "tracker"), patient=room_patient, automatic_ports=True)
    pids = [child.process.pid for child in room._children.values()]
    room.stop()
    room.stop()
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_mistakes_are_named(room_config: RoomConfig, room_patient: PatientModel, tracker: RoomProcesses) -> None:
    with pytest.raises(RoomError, match=r"no \[simulation\] table"):
        start_room(room_config.model_copy(update={"simulation": None}), patient=room_patient)
    with pytest.raises(RoomError, match=r"needs a .* entry named StylusTipToStylus"):
        start_room(
            room_config.model_copy(
                update={"calibrations": tuple(c for c in room_config.calibrations if c.name != "StylusTipToStylus")}
            ),
            patient=room_patient,
        )
    with pytest.raises(RoomError, match="no such tool: Scalpel"):
        tracker.lose(("Scalpel",))
    with pytest.raises(RoomError, match="no simulated device is named 'x-ray'"):
        tracker.kill("x-ray")
    taken = only(room_config, "tracker").sources[0].model_copy(update={"port": tracker.ports["tracker"]})
    with pytest.raises(RoomError, match="cannot listen on"):
        start_room(room_config.model_copy(update={"sources": (taken,)}), patient=room_patient)
    tracker.begin(8.0)
    with pytest.raises(RoomError, match="begun already"):
        tracker.begin(8.0)
