"""Exchange with the programs of the OpenIGTLink C++ library (Debian's openigtlink-examples, header version 1)."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from openigtlink_examples import IMAGES, build, free_port, running, wait_for_text
from openigtlink_tools import Collector

from drivers.openigtlink.codec import decode, encode_string
from drivers.openigtlink.contents import TrackedTool
from drivers.openigtlink.framing import Framer
from drivers.openigtlink.sink import ClientInfo, IgtlServer
from drivers.openigtlink.source import make_source
from drivers.openigtlink.wire import pack_message, parse_message
from nav.config.load import load_toml, shipped_config
from nav.config.room import RoomConfig, SourceConfig
from nav.geometry.poses import PoseStatus
from nav.geometry.rigid import Rigid
from nav.runtime.messages import (
    ImageMessage,
    LinkState,
    PoseMessage,
    StatusMessage,
    TextMessage,
    UnusedMessage,
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("openigtlink-examples")


# ------------------------------------------------------------------------------------------- their server, our source


def received(program: Path, *arguments: object, until: Callable[[Collector], bool]) -> Collector:
    sink, port = Collector(), free_port()
    source = make_source(SourceConfig(name="example", port=port))
    with running(program, port, *arguments):
        source.start(sink)
        try:
            sink.wait_for(until, 8.0)
        finally:
            source.stop()
    assert LinkState.FAILED not in sink.links()[2:], "no framing error once connected"
    return sink


def test_tracker_server(folder: Path) -> None:
    sink = received(build("TrackerServer", folder), 200, until=lambda c: len(c.of(PoseMessage)) >= 50)
    for n, message in enumerate(sink.of(PoseMessage)[:50]):
        (tool,) = message.tools
        assert (message.device, message.sender_ns, tool.status) == ("Tracker", None, PoseStatus.OK)
        assert tool.matrix is not None
        phi = 0.2 * n  # GetRandomTestMatrix of the example
        np.testing.assert_allclose(
            tool.matrix[:3, 3], 50 * np.array([np.cos(phi), np.sin(phi), np.cos(phi)]), atol=1e-3
        )
        Rigid.from_matrix(tool.matrix, "NeedleToReference")


def test_tracker_server_pauses_and_closes_and_is_found_again(folder: Path) -> None:
    sink = received(build("TrackerServer", folder), 500, until=lambda c: len(c.of(PoseMessage)) > 100)
    assert sink.links().count(LinkState.CONNECTED) == 2
    assert sink.links().count(LinkState.CLOSED) == 1
    arrivals = [m.arrival_ns for m in sink.of(PoseMessage)]
    assert arrivals[100] - arrivals[99] < 2.5e9


def test_tracker_server_with_its_shipped_room(folder: Path) -> None:
    room = load_toml(shipped_config("rooms", "openigtlink_tracker_server.toml"), RoomConfig)
    sink, port = Collector(), free_port()
    source = make_source(room.sources[0].model_copy(update={"port": port}))
    with running(build("TrackerServer", folder), port, 20):
        source.start(sink)
        sink.wait_for(lambda c: len(c.of(PoseMessage)) >= 5)
        source.stop()
    assert {m.tools[0].name for m in sink.of(PoseMessage)} == {"NeedleToReference"}
    by_name = {c.name: c for c in room.calibrations}
    assert by_name["ReferenceToRas"].provenance == "assumed"
    tip = by_name["ReferenceToRas"].rigid() @ Rigid.from_matrix(
        sink.of(PoseMessage)[0].tools[0].matrix, "NeedleToReference"
    )
    tip = tip @ by_name["NeedleTipToNeedle"].rigid()
    assert tip.name.wire == "NeedleTipToRas"


def test_position_server(folder: Path) -> None:
    sink = received(build("TrackerServer2", folder), 200, until=lambda c: len(c.of(PoseMessage)) >= 20)
    for n, message in enumerate(sink.of(PoseMessage)[:20]):
        (tool,) = message.tools
        assert tool.status is PoseStatus.OK, tool.problem
        assert tool.matrix is not None
        phi = 0.2 * n
        np.testing.assert_allclose(
            tool.matrix[:3, 3], 50 * np.array([np.cos(phi), np.sin(phi), np.cos(phi)]), atol=1e-3
        )
        assert np.linalg.det(tool.matrix[:3, :3]) == pytest.approx(1, abs=1e-5)


def test_imager_server(folder: Path) -> None:
    sink = received(build("ImagerServer", folder), 100, IMAGES, until=lambda c: len(c.of(ImageMessage)) >= 10)
    for n, message in enumerate(sink.of(ImageMessage)[:10]):
        pixels = (IMAGES / f"igtlTestImage{n % 5 + 1}.raw").read_bytes()
        assert message.array.shape == (1, 256, 256)
        assert message.array.tobytes() == pixels[: 256 * 256]
        # SetMatrix with the second axis turned round, centre at 0, spacing 1, 1, 5
        wanted = np.diag([1.0, -1.0, 5.0, 1.0])
        wanted[:3, 3] = (-127.5, 127.5, 0)
        np.testing.assert_allclose(message.mm_from_index, wanted, atol=1e-4)


def test_status_server(folder: Path) -> None:
    sink = received(build("StatusServer", folder), until=lambda c: bool(c.of(StatusMessage)))
    message = sink.of(StatusMessage)[0]
    assert (message.device, message.code, message.subcode, message.error_name, message.text) == (
        "Device", 1, 128, "OK!", "This is a test to send status message.",
    )  # fmt: skip


def test_string_server(folder: Path) -> None:
    sink = received(build("StringServer", folder), 100, until=lambda c: len(c.of(TextMessage)) >= 5)
    assert [m.text for m in sink.of(TextMessage)[:5]] == [
        "OpenIGTLink", "Network", "Communication", "Protocol", "Image Guided Therapy",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "type_name"), [("PointServer", "POINT"), ("TrajectoryServer", "TRAJ"), ("CapabilityServer", "CAPABILITY")]
)
def test_types_not_used_are_kept_whole(folder: Path, name: str, type_name: str) -> None:
    sink = received(build(name, folder), until=lambda c: bool(c.of(UnusedMessage)))
    message = sink.of(UnusedMessage)[0]
    assert (message.type_name, message.problem) == (type_name, "")


def test_tracking_data_server(folder: Path) -> None:
    port = free_port()
    with running(build("TrackingDataServer", folder), port):
        sock = None
        for _ in range(100):
            try:
                sock = socket.create_connection(("127.0.0.1", port), timeout=5)
                break
            except ConnectionRefusedError:
                time.sleep(0.02)
        assert sock is not None
        with sock:
            sock.sendall(pack_message("STT_TDATA", "client", struct.pack(">i32s", 20, b"patient")))
            framer, raws = Framer(), []
            while len(raws) < 5:
                raws += framer.feed(sock.recv(4096))
            sock.sendall(pack_message("STP_TDATA", "client", b""))
    for n, raw in enumerate(raws):
        message = decode(raw, source="", sequence=n, arrival_ns=0)
        assert isinstance(message, PoseMessage)
        assert [t.name for t in message.tools] == ["Channel 0", "Channel 1", "Channel 2"]
        assert all(t.status is PoseStatus.OK for t in message.tools)


# -------------------------------------------------------------------------------------------- our server, their client


def test_receive_client_understands_what_we_send(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    place = np.diag([0.5, 0.25, 2.0, 1.0])
    pose = np.array([[0.0, -1.0, 0.0, 11.0], [1.0, 0.0, 0.0, 22.0], [0.0, 0.0, 1.0, 33.0], [0.0, 0.0, 0.0, 1.0]])
    with (
        IgtlServer(keep_alive_s=None) as server,
        running(build("ReceiveClient", folder), "127.0.0.1", server.port, log=log),
    ):
        assert server.wait_for_clients()
        server.publish_transform("NeedleToTracker", pose, sender_ns=1_700_000_000_500_000_000)
        text = wait_for_text(log, "33")
        assert "Time stamp: 1700000000.500000000" in text
        rows = [line for line in text.splitlines() if "11" in line or "22" in line or "33" in line]
        assert [row.replace(" ", "") for row in rows] == ["0,-1,0,11", "1,0,0,22", "0,0,1,33"]
        server.publish_position("Stylus", (1, 2, 3), (0, 0, 0.5, 0.75))
        assert "(0, 0, 0.5, 0.75)" in wait_for_text(log, "position   = (1, 2, 3)")
        server.publish_image("Image", np.zeros((3, 4, 5), np.int16), place)
        text = wait_for_text(log, "Sub-Volume offset")
        assert "Dimensions            : (5, 4, 3)" in text
        assert "Spacing               : (0.5, 0.25, 2)" in text
        assert "Scalar Type           : 4" in text
        server.publish_status("Server", 7, -5, "TIMEOUT", "the link is lost")
        text = wait_for_text(log, "the link is lost")
        assert "Code      : 7" in text
        assert "SubCode   : -5" in text
        assert "Error Name: TIMEOUT" in text
        server.publish_string("Text", "Image Guided Therapy")
        wait_for_text(log, "Image Guided Therapy")
        server.publish_tdata("Tracker", [TrackedTool("NeedleToTracker", pose, 2)])
        text = wait_for_text(log, " Name       : NeedleToTracker")
        assert "Type       : 2" in text


def test_receive_client_keeps_step_over_a_thousand_messages(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        IgtlServer(keep_alive_s=None) as server,
        running(build("ReceiveClient", folder), "127.0.0.1", server.port, log=log),
    ):
        assert server.wait_for_clients()
        for n in range(500):
            server.publish("T", lambda v, n=n: pack(v, n), kind="reliable")  # type: ignore[misc]
            server.publish_image("Image", np.zeros((100, 100), np.uint8), np.eye(4), depth=1000)
        text = wait_for_text(log, "last one")
    assert text.count("Receiving STRING data type.") == 500
    assert text.count("Receiving IMAGE data type.") >= 499
    assert "Receiving : " not in text, "no message was taken for another type"


def pack(version: int, n: int) -> bytes:
    return encode_string("T", "last one" if n == 499 else str(n), version=version)


def test_tracking_data_client(folder: Path, tmp_path: Path) -> None:
    """It asks for tracking data at an interval, gets some, and asks to stop."""
    log, heard = tmp_path / "log", []

    def on_message(_: ClientInfo, raw: bytes) -> None:
        heard.append(parse_message(raw))

    with (
        IgtlServer(keep_alive_s=None, on_message=on_message) as server,
        running(build("TrackingDataClient", folder), "127.0.0.1", server.port, 20, log=log),
    ):
        assert server.wait_for_clients()
        deadline = time.monotonic() + 5
        while not heard and time.monotonic() < deadline:
            time.sleep(0.01)
        assert heard[0].type_name == "STT_TDATA"
        assert struct.unpack(">i", heard[0].content[:4]) == (50,)  # the example asks for 50 ms, whatever it is told
        pose = np.eye(4)
        for k in range(5):
            pose[0, 3] = 100 + k
            server.publish_tdata("Tracker", [TrackedTool("Channel 0", pose, 1), TrackedTool("Channel 1", pose, 3)])
        text = wait_for_text(log, "104")
    assert text.count("Name       : Channel 0") >= 5


# ---------------------------------------------------------------------------------------------- their client, our ears


@pytest.mark.parametrize(
    ("name", "arguments", "kind"),
    [
        ("TrackerClient", (50,), PoseMessage),
        ("TrackerClient2", (50,), PoseMessage),
        ("TrackerClient3", (50, "NeedleToTracker", "ProbeToTracker"), PoseMessage),
        ("ImagerClient", (50, IMAGES), ImageMessage),
        ("StatusClient", (), StatusMessage),
        ("StringClient", (50,), TextMessage),
    ],
)
def test_sending_clients(folder: Path, name: str, arguments: tuple[object, ...], kind: type) -> None:
    heard: list[bytes] = []
    enough = threading.Event()

    def on_message(_: ClientInfo, raw: bytes) -> None:
        heard.append(raw)
        if len(heard) >= (2 if name == "StatusClient" else 6):
            enough.set()

    with (
        IgtlServer(on_message=on_message) as server,
        running(build(name, folder), "127.0.0.1", server.port, *arguments),
    ):
        assert enough.wait(8), f"{len(heard)} messages"
        assert [c.version for c in server.clients] == [1]
    messages = [decode(raw, source="", sequence=n, arrival_ns=0) for n, raw in enumerate(heard)]
    assert {type(m) for m in messages} == {kind}
    if name == "TrackerClient3":
        stamped = [m for m in messages if isinstance(m, PoseMessage)]
        assert {m.tools[0].name for m in stamped} == {"NeedleToTracker", "ProbeToTracker"}
        assert all(m.sender_ns is not None and abs(m.sender_ns - time.time_ns()) < 60e9 for m in stamped)
