"""The publisher over real sockets, fed with real snapshots: what clients get, unasked and asked."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from openigtlink_tools import threads_end

from drivers.openigtlink.codec import encode_content, encode_status, encode_string
from drivers.openigtlink.contents import (
    CapabilityContent,
    CommandContent,
    CommandReplyContent,
    Content,
    ImageContent,
    PolyDataContent,
    QuaternionTrackingContent,
    QueryContent,
    ReplyContent,
    StartTrackingContent,
    StatusContent,
    StringContent,
    TrackingContent,
    TransformContent,
    unpack_content,
)
from drivers.openigtlink.framing import Framer
from drivers.openigtlink.publisher import SERVED, NavigationPublisher
from drivers.openigtlink.wire import WireMessage, parse_message
from drivers.room.geometry import RoomSetup
from drivers.room.operator import Script
from drivers.room.patient import PatientModel, patient_case
from nav.cli.live import LiveStreams
from nav.config.room import PublishConfig
from nav.guidance.numbers import GateState
from nav.runtime.clock import ManualClock, SystemClock
from nav.runtime.core import NavigationCore
from nav.runtime.essentials import CaseEssentials
from nav.runtime.recording import Recording
from nav.runtime.snapshot import NavigationSnapshot
from tests.virtual_room import START_NS, play, room_messages, simulated_room

ROOM = simulated_room()
UTC_NS = 1_700_000_000_000_000_000


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    with threads_end():
        yield


@pytest.fixture(scope="module")
def snapshots(room_patient: PatientModel) -> list[NavigationSnapshot]:
    script = Script.build(room_patient.geometry, RoomSetup.from_room(ROOM), 10.0)
    core = NavigationCore(ROOM, CaseEssentials.of(patient_case(room_patient), margin_mm=5.0))
    return list(play(core, room_messages(script, 7.0), until_ns=START_NS + 6_500_000_000, tick_ns=20_000_000))


@pytest.fixture(scope="module")
def guided(snapshots: list[NavigationSnapshot]) -> NavigationSnapshot:
    assert snapshots[-1].zone is not None
    assert snapshots[-1].margin is not None
    return snapshots[-1]


@pytest.fixture(scope="module")
def blank(snapshots: list[NavigationSnapshot]) -> NavigationSnapshot:
    """Before the registration."""
    return next(s for s in snapshots if s.gate.state is GateState.BLANK and s.registration is None)


class Control:
    """A session that only says what was asked of it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.recording = "recording.mcap"

    def start_recording(self, name: str = "") -> str:
        self.calls.append(("start", name))
        return "recording-2.mcap"

    def stop_recording(self) -> str:
        self.calls.append(("stop", ""))
        return "recording.mcap"

    def reconnect(self, name: str) -> None:
        raise LookupError(f"source {name!r}: there is none")


class Client:
    """A plain client that keeps every message as (wire message, content)."""

    def __init__(self, port: int, version: int = 1) -> None:
        self.version = version
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.framer = Framer()
        self.got: list[tuple[WireMessage, Content | None]] = []
        if version == 2:
            self.sock.sendall(encode_status("me", version=2))

    def ask(self, type_name: str, device: str = "", content: Content | None = None) -> None:
        body = QueryContent() if content is None else content
        self.sock.sendall(encode_content(device, body, type_name=type_name, version=self.version))

    def _read(self, timeout_s: float) -> None:
        self.sock.settimeout(timeout_s)
        with contextlib.suppress(TimeoutError):
            for raw in self.framer.feed(self.sock.recv(1 << 16)):
                message = parse_message(raw)
                self.got.append((message, unpack_content(message.type_name, message.content)))

    def until(
        self, what: Callable[[WireMessage, Content | None], bool], timeout_s: float = 10.0
    ) -> tuple[WireMessage, Content | None]:
        """The first message from now on for which ``what`` holds; all before it are taken away."""
        end = time.monotonic() + timeout_s
        while True:
            for n, item in enumerate(self.got):
                if what(*item):
                    del self.got[: n + 1]
                    return item
            if time.monotonic() > end:
                seen = [(m.type_name, m.device) for m, _ in self.got]
                raise AssertionError(f"not received within {timeout_s} s; received: {seen}")
            self._read(0.05)

    def of(self, type_name: str, device: str | None = None) -> tuple[WireMessage, Content | None]:
        return self.until(lambda m, _: m.type_name == type_name and device in (None, m.device))

    def drain(self) -> list[tuple[WireMessage, Content | None]]:
        """Everything up to the answer to a query that is sent now."""
        self.ask("GET_CAPABIL", "fence")
        taken: list[tuple[WireMessage, Content | None]] = []
        while not any(m.device == "fence" for m, _ in taken):
            self._read(0.05)
            taken, self.got = taken + self.got, []
        return taken[:-1]

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()


class Stage:
    """A publisher on a clock that moves by hand."""

    def __init__(self, **config: object) -> None:
        self.clock = ManualClock(START_NS, UTC_NS)
        self.control = Control()
        settings = PublishConfig.model_validate({"port": 0, **config})
        self.publisher = NavigationPublisher(ROOM, settings, self.clock, self.control)
        self._stack = contextlib.ExitStack()

    def show(self, snapshot: NavigationSnapshot) -> None:
        self.clock.set(max(snapshot.now_ns, self.clock.now_ns()))
        self.publisher.offer(snapshot)

    def client(self, version: int = 1) -> Client:
        return self._stack.enter_context(Client(self.publisher.server.port, version))

    def __enter__(self) -> Stage:
        self._stack.enter_context(self.publisher)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()


def gate_of(content: Content | None) -> str:
    assert isinstance(content, StringContent)
    return str(json.loads(content.text)["gate"])


def test_every_client_gets_tip_registration_zone_and_margin(guided: NavigationSnapshot) -> None:
    assert guided.needle.pose is not None
    assert guided.registration is not None
    assert guided.registration.transform is not None
    assert guided.margin is not None
    with Stage() as stage:
        a, b = stage.client(1), stage.client(2)
        assert stage.publisher.server.wait_for_clients(2)
        stage.show(guided)
        for client in (a, b):
            message, tip = client.of("TRANSFORM", "NeedleTipToRas")
            assert isinstance(tip, TransformContent)
            assert np.allclose(tip.matrix, guided.needle.pose.matrix, atol=1e-4)
            assert message.sender_ns == UTC_NS + guided.needle.acquired_ns - START_NS
        with Client(stage.publisher.server.port) as late:
            for _ in range(3):  # without any new snapshot
                late.until(lambda m, _: m.device in ("ReferenceToRas", "Zone", "Margin"))
        _, registration = b.of("TRANSFORM", "ReferenceToRas")
        assert isinstance(registration, TransformContent)
        assert np.allclose(registration.matrix, guided.registration.transform.matrix, atol=1e-4)
        stage.clock.advance(100_000_000)
        message, zone = a.of("POLYDATA", "Zone")
        assert isinstance(zone, PolyDataContent)
        assert guided.zone is not None
        points = np.asarray(zone.points)
        assert len(points) == 258
        assert np.abs(points.mean(axis=0) - guided.zone.centre_ras).max() < 0.1
        message, margin = a.of("STRING", "Margin")
        assert isinstance(margin, StringContent)
        assert json.loads(margin.text)["margin"]["min_margin_mm"] == guided.margin.min_margin_mm


def test_what_the_gate_withholds_is_withheld_on_the_wire(guided: NavigationSnapshot, blank: NavigationSnapshot) -> None:
    with Stage() as stage:
        old, new = stage.client(1), stage.client(2)
        assert stage.publisher.server.wait_for_clients(2)
        stage.show(guided)
        for client in (old, new):
            client.until(lambda m, c: m.device == "Margin" and gate_of(c) == "OK")
        stage.show(replace(blank, now_ns=guided.now_ns + 1_000_000))
        message, tip = new.until(lambda m, _: m.metadata.get("TransformStatus", "OK") != "OK")
        assert message.device == "NeedleTipToRas"
        assert message.metadata["TransformStatus"] in ("INVALID", "MISSING")
        assert isinstance(tip, TransformContent)
        assert np.array_equal(tip.matrix, np.eye(4))
        for client in (old, new):
            client.until(lambda _, c: isinstance(c, PolyDataContent) and not len(c.points))
            client.until(lambda m, c: m.device == "Margin" and gate_of(c) == "BLANK")
        # Many rounds later nothing with a pose or a number has come, and version 1 has not heard of the tip at all.
        old.drain()
        new.drain()
        for _ in range(10):
            stage.clock.advance(20_000_000)
            time.sleep(0.03)
        assert not [m for m, _ in old.drain() if m.type_name == "TRANSFORM"]
        later = new.drain()
        assert {m.metadata["TransformStatus"] for m, _ in later if m.device == "NeedleTipToRas"} <= {
            "INVALID",
            "MISSING",
        }
        assert all(gate_of(c) == "BLANK" for m, c in later if m.device == "Margin")
        assert all(not len(c.points) for m, c in later if isinstance(c, PolyDataContent))


def test_a_computation_that_has_stopped_blanks_the_wire(guided: NavigationSnapshot) -> None:
    with Stage() as stage:
        client = stage.client(2)
        assert stage.publisher.server.wait_for_clients()
        stage.show(guided)
        client.until(lambda m, c: m.device == "Margin" and gate_of(c) == "OK")
        stage.clock.advance(249_000_000)
        assert all(gate_of(c) == "OK" for m, c in client.drain() if m.device == "Margin")
        stage.clock.advance(2_000_000)
        client.until(lambda m, _: m.metadata.get("TransformStatus") == "INVALID")
        client.until(lambda _, c: isinstance(c, PolyDataContent) and not len(c.points))
        _, margin = client.until(lambda m, c: m.device == "Margin" and gate_of(c) == "BLANK")
        assert isinstance(margin, StringContent)
        assert json.loads(margin.text)["reasons"][0]["code"] == "compute_stopped"
        client.ask("GET_IMAGE")
        client.of("RTS_IMAGE")


def test_queries_are_answered_and_unknown_ones_refused(guided: NavigationSnapshot) -> None:
    with Stage() as stage:
        client = stage.client(1)
        assert stage.publisher.server.wait_for_clients()
        client.ask("GET_STATUS", "Q")
        _, status = client.of("STATUS", "Q")
        assert isinstance(status, StatusContent)
        assert (status.code, status.text) == (13, "nothing has been computed yet")
        client.ask("GET_TRANS", "NeedleTipToRas")
        _, refused = client.of("RTS_TRANS", "NeedleTipToRas")
        assert isinstance(refused, ReplyContent)
        assert refused.status == 1
        stage.show(guided)
        client.of("TRANSFORM", "NeedleTipToRas")
        # The clock stands, so nothing below comes by itself.
        client.of("STRING", "Margin")
        client.drain()
        for kind, answer in (("GET_TRANS", "TRANSFORM"), ("GET_TRANSFOR", "TRANSFORM"), ("GET_POLYDATA", "POLYDATA"),
                             ("GET_STRING", "STRING"), ("GET_IMAGE", "IMAGE"), ("GET_STATUS", "STATUS")):  # fmt: skip
            client.ask(kind)
            client.of(answer)
        client.ask("GET_CAPABIL")
        _, capability = client.of("CAPABILITY")
        assert isinstance(capability, CapabilityContent)
        assert capability.types == SERVED
        client.ask("GET_IMAGE", "ZoneMap")
        _, image = client.of("IMAGE", "ZoneMap")
        assert isinstance(image, ImageContent)
        assert (image.coordinate, image.components, image.scalar) == (1, 1, 3)
        assert guided.zone is not None
        assert np.abs(image.position - guided.zone.centre_ras).max() < 1.0, "the centre, as the protocol says"
        for kind, device in (("GET_TRANS", "ProbeToRas"), ("GET_POLYDATA", "Liver"), ("GET_SENSOR", ""),
                             ("STT_POINT", ""), ("STP_BIND", "x"), ("GET_IMGMETA", "")):  # fmt: skip
            client.ask(kind, device)
            _, refused = client.of(f"RTS_{kind[4:]}", device)
            assert isinstance(refused, ReplyContent)
            assert refused.status == 1


def test_tracking_data_at_the_interval_asked_for(guided: NavigationSnapshot) -> None:
    assert guided.needle.pose is not None
    with Stage() as stage:
        client, other = stage.client(), stage.client()
        assert stage.publisher.server.wait_for_clients(2)
        stage.show(guided)
        for interval, coordinates in ((50, "Patient"), (-1, "")):
            client.ask("STT_TDATA", "T", StartTrackingContent(interval, coordinates))
            _, reply = client.of("RTS_TDATA", "T")
            assert isinstance(reply, ReplyContent)
            assert reply.status == 1
        client.ask("STT_TDATA", "T", StartTrackingContent(50, "RAS"))
        _, reply = client.of("RTS_TDATA", "T")
        assert isinstance(reply, ReplyContent)
        assert reply.status == 0
        for _ in range(3):
            _, tracking = client.of("TDATA", "T")
            assert isinstance(tracking, TrackingContent)
            tip = next(tool for tool in tracking.tools if tool.name == "NeedleTipToRas")
            assert np.allclose(tip.matrix, guided.needle.pose.matrix, atol=1e-4)
            stage.clock.advance(49_000_000)
            assert "TDATA" not in [m.type_name for m, _ in client.drain()], "not before its time"
            stage.clock.advance(1_000_000)
        client.of("TDATA", "T")
        client.ask("STT_QTDATA", "Q", StartTrackingContent(0))
        _, quaternions = client.of("QTDATA", "Q")
        assert isinstance(quaternions, QuaternionTrackingContent)
        assert quaternions.tools[0].position == pytest.approx(guided.needle.pose.translation.tolist(), abs=1e-3)
        for kind in ("QTDATA", "TDATA"):
            client.ask(f"STP_{kind}")
            _, reply = client.of(f"RTS_{kind}")
            assert isinstance(reply, ReplyContent)
            assert reply.status == 0
        client.drain()
        stage.clock.advance(100_000_000)
        time.sleep(0.06)
        assert not {"TDATA", "QTDATA"} & {m.type_name for m, _ in client.drain()}
        assert not {"TDATA", "QTDATA"} & {m.type_name for m, _ in other.drain()}


def test_a_client_may_do_without_what_all_get(guided: NavigationSnapshot) -> None:
    with Stage() as stage:
        client, other = stage.client(), stage.client()
        assert stage.publisher.server.wait_for_clients(2)
        client.ask("STP_POLYDATA")
        client.of("RTS_POLYDATA")
        stage.show(guided)
        other.of("POLYDATA", "Zone")
        client.of("TRANSFORM", "NeedleTipToRas")
        client.drain()
        stage.clock.advance(200_000_000)
        other.of("POLYDATA", "Zone")
        assert "POLYDATA" not in [m.type_name for m, _ in client.drain()]
        client.ask("STT_POLYDATA")
        client.of("RTS_POLYDATA")
        client.of("POLYDATA", "Zone")


def test_commands_are_carried_out_and_answered_with_their_number(guided: NavigationSnapshot) -> None:
    with Stage() as stage:
        client = stage.client(2)
        stage.show(guided)

        def command(number: int, name: str, text: str) -> CommandReplyContent:
            client.ask("COMMAND", "Slicer", CommandContent(number, name, text))
            _, reply = client.of("RTS_COMMAND", "Slicer")
            assert isinstance(reply, CommandReplyContent)
            assert reply.command_id == number
            return reply

        started = command(7, "StartRecording", '<Command Name="StartRecording" OutputFilename="x.mha"/>')
        assert started.name == ""
        assert ElementTree.fromstring(started.text).attrib["Filename"] == "recording-2.mcap"
        state = ElementTree.fromstring(command(8, "RequestState", "").text)
        assert state.attrib["Gate"] == "OK"
        assert state.attrib["Recording"] == "recording.mcap"
        assert {row.attrib["Name"] for row in state if row.tag == "Stream"} >= {"NeedleToTracker"}
        refused = command(9, "SetPlan", '<Command Name="SetPlan" Target="0 0 0"/>')
        assert "not known" in refused.name
        assert ElementTree.fromstring(refused.text).attrib["Status"] == "FAIL"
        assert "nobody" in command(10, "", '<Command Name="Reconnect" Source="nobody"/>').name
        assert "'<!'" in command(11, "x", '<!DOCTYPE a [<!ENTITY b "c">]><Command/>').name
        client.sock.sendall(encode_string("CMD_42", '<Command Name="StopRecording"/>', version=2))
        _, reply = client.of("STRING", "ACK_42")
        assert isinstance(reply, StringContent)
        assert ElementTree.fromstring(reply.text).attrib["Status"] == "SUCCESS"
        assert stage.control.calls == [("start", "x.mha"), ("stop", "")]


def test_commands_can_be_turned_off() -> None:
    with Stage(commands=False) as stage:
        client = stage.client()
        client.ask("COMMAND", "C", CommandContent(1, "StopRecording"))
        _, reply = client.of("RTS_COMMAND")
        assert isinstance(reply, CommandReplyContent)
        assert "not accepted" in reply.name
        assert not stage.control.calls


def test_more_requests_than_may_wait_are_refused_and_none_is_left_unanswered(guided: NavigationSnapshot) -> None:
    with Stage() as stage:
        client = stage.client()
        assert stage.publisher.server.wait_for_clients()
        stage.show(guided)
        client.of("TRANSFORM", "NeedleTipToRas")
        raw = encode_content("F", QueryContent(), type_name="GET_IMAGE")
        client.sock.sendall(raw * 300)
        answers = [client.until(lambda m, _: m.type_name in ("IMAGE", "RTS_IMAGE"))[0].type_name for _ in range(300)]
        assert "RTS_IMAGE" in answers
        client.ask("GET_IMAGE")
        client.of("IMAGE", "ZoneMap")


def test_a_session_records_what_the_network_tells_it_to(tmp_path: Path) -> None:
    """The real session behind the publisher, without a window."""
    clock = SystemClock()
    publisher: NavigationPublisher

    live = LiveStreams(
        ROOM, (), clock, CaseEssentials(""), out=tmp_path, on_tick=lambda snapshot: publisher.offer(snapshot)
    )
    publisher = NavigationPublisher(ROOM, PublishConfig(port=0), clock, live)
    live.start()
    try:
        with publisher, Client(publisher.server.port) as client:
            for name, file in (("StopRecording", "recording.mcap"), ("StartRecording", "recording-2.mcap")):
                client.ask("COMMAND", "C", CommandContent(1, name))
                _, reply = client.of("RTS_COMMAND")
                assert isinstance(reply, CommandReplyContent)
                assert ElementTree.fromstring(reply.text).attrib["Filename"] == file
            _, margin = client.of("STRING", "Margin")
            assert gate_of(margin) == "BLANK"
    finally:
        live.stop()
    with Recording.open(tmp_path / "recording-2.mcap") as recording:
        assert recording.complete
        assert recording.metadata["begins"] == "middle"


PYIGTL = """
import json, sys, pyigtl
client = pyigtl.OpenIGTLinkClient("127.0.0.1", int(sys.argv[1]))
tip = client.wait_for_message("NeedleTipToRas", timeout=8)
margin = client.wait_for_message("Margin", timeout=8)
print(json.dumps({"matrix": tip.matrix.tolist(), "text": margin.string, "timestamp": tip.timestamp}), flush=True)
client.stop()
"""


def test_pyigtl_receives_what_is_published(guided: NavigationSnapshot) -> None:
    pytest.importorskip("pyigtl")
    assert guided.needle.pose is not None
    with Stage() as stage:
        program = subprocess.Popen(
            [sys.executable, "-c", PYIGTL, str(stage.publisher.server.port)], stdout=subprocess.PIPE, text=True
        )
        assert stage.publisher.server.wait_for_clients(timeout_s=20)
        try:
            stage.show(guided)
            while program.poll() is None:  # a client that is late misses what was sent before: send on
                stage.clock.advance(1_000_000)
                stage.show(guided)
                time.sleep(0.05)
        finally:
            out, _ = program.communicate(timeout=20)
        got = json.loads(out)
        assert np.allclose(got["matrix"], guided.needle.pose.matrix, atol=1e-4)
        assert json.loads(got["text"])["gate"] in ("OK", "BLANK")
        assert got["timestamp"] == pytest.approx((UTC_NS + guided.needle.acquired_ns - START_NS) * 1e-9, abs=1e-3)
