"""Exchange with pyigtl, which runs in a process of its own (its server needs the main thread and its signals)."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from openigtlink_examples import free_port
from openigtlink_tools import Collector

from drivers.openigtlink.codec import decode
from drivers.openigtlink.contents import StatusContent, TrackedTool, unpack_message
from drivers.openigtlink.sink import ClientInfo, IgtlServer
from drivers.openigtlink.source import make_source
from drivers.openigtlink.wire import pack_message, parse_message
from nav.config.room import SourceConfig
from nav.runtime.messages import ImageMessage, LinkState, Message, PoseMessage, TextMessage
from tests.fuzz.seeds import seeds

pytest.importorskip("pyigtl")

from drivers.openigtlink.pyigtl_messages import message_types

SERVER = """
import sys, time, numpy as np, pyigtl
server = pyigtl.OpenIGTLinkServer(port=int(sys.argv[1]))
while not server.is_connected():
    time.sleep(0.01)
pose = np.eye(4); pose[:3, 3] = (1, 2, 3)
for k in range(1000):
    server.send_message(pyigtl.TransformMessage(pose, device_name="NeedleToTracker", timestamp=1000.5 + k), wait=True)
    image = np.full((1, 20, 30), k % 200, np.uint8)
    server.send_message(pyigtl.ImageMessage(image, device_name="Image", world_coordinate_system="ras"), wait=True)
    server.send_message(pyigtl.StringMessage(f"text {k}", device_name="Text"), wait=True)
    time.sleep(0.02)
"""

CLIENT = """
import json, sys, time, numpy as np, pyigtl
client = pyigtl.OpenIGTLinkClient("127.0.0.1", int(sys.argv[1]))
if sys.argv[2] == "2":
    message = pyigtl.StringMessage("hello", device_name="CMD_1"); message.header_version = 2
    message.metadata = {"Who": "pyigtl"}
    client.send_message(message, wait=True)
out = {}
for device in ("NeedleToTracker", "Image", "Text"):
    m = client.wait_for_message(device, timeout=8)
    out[device] = None if m is None else {
        "version": m.header_version, "timestamp": m.timestamp, "metadata": m.metadata,
        "matrix": getattr(m, "matrix", getattr(m, "ijk_to_world_matrix", np.zeros(1))).tolist(),
        "sum": int(np.sum(getattr(m, "image", 0))), "text": getattr(m, "string", "")}
print(json.dumps(out), flush=True)
client.stop()
"""


#: Sends back every message that it receives.
ECHO = """
import sys, time, pyigtl
from drivers.openigtlink import pyigtl_messages
pyigtl_messages.register(replace=pyigtl_messages.PYIGTL_OWN)
port = int(sys.argv[2])
peer = pyigtl.OpenIGTLinkServer(port=port) if sys.argv[1] == "server" else pyigtl.OpenIGTLinkClient("127.0.0.1", port)
while True:
    for message in peer.get_latest_messages():
        assert isinstance(message, pyigtl_messages.ContentMessage)
        peer.send_message(message, wait=True)
    time.sleep(0.002)
"""


def run(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate(timeout=5)


def test_pyigtl_server_to_our_source() -> None:
    sink, port = Collector(), free_port()
    source = make_source(SourceConfig(name="pyigtl", port=port))
    process = run(SERVER, port)
    try:
        source.start(sink)
        sink.wait_for(lambda c: len(c.of(TextMessage)) >= 20, 10.0)
    finally:
        source.stop()
        end(process)
    poses, images, texts = sink.of(PoseMessage), sink.of(ImageMessage), sink.of(TextMessage)
    for k in range(20):
        assert poses[k].sender_ns == 1_000_500_000_000 + k * 10**9
        matrix = poses[k].tools[0].matrix
        assert matrix is not None
        np.testing.assert_array_equal(matrix[:3, 3], (1, 2, 3))
        assert images[k].array.shape == (1, 20, 30)
        assert (images[k].array == k % 200).all()
        assert texts[k].text == f"text {k}"
    assert sink.links().count(LinkState.CONNECTED) == 1


@pytest.mark.parametrize("version", [1, 2])
def test_our_server_to_pyigtl_client_and_back(version: int) -> None:
    heard: list[Message] = []

    def on_message(_: ClientInfo, raw: bytes) -> None:
        heard.append(decode(raw, source="", sequence=0, arrival_ns=0))

    place = np.diag([0.5, 0.25, 2.0, 1.0])
    with IgtlServer(on_message=on_message) as server:
        process = run(CLIENT, server.port, version)
        try:
            assert server.wait_for_clients(timeout_s=10)
            if version == 2:
                deadline = time.monotonic() + 5
                while not heard and time.monotonic() < deadline:
                    time.sleep(0.01)
            pose = np.eye(4)
            pose[:3, 3] = (4, 5, 6)
            while process.poll() is None:
                server.publish_transform(
                    "NeedleToTracker", pose, sender_ns=1_500_000_000, metadata={"TransformStatus": "OK"}
                )
                server.publish_image("Image", np.full((1, 40, 50), 3, np.uint8), place)
                server.publish_string("Text", "from us")
                time.sleep(0.02)
            output, _ = process.communicate(timeout=5)
        finally:
            end(process)
    got = json.loads(output)
    assert {m["version"] for m in got.values()} == {version}
    needle = got["NeedleToTracker"]
    assert [row[3] for row in needle["matrix"]] == [4, 5, 6, 1]
    assert needle["timestamp"] == 1.5
    assert needle["metadata"] == ({"TransformStatus": "OK"} if version == 2 else {})
    assert got["Image"]["sum"] == 3 * 40 * 50
    np.testing.assert_allclose(got["Image"]["matrix"], place)
    assert got["Text"]["text"] == "from us"
    if version == 2:
        (command,) = heard
        assert isinstance(command, TextMessage)
        assert (command.device, command.text, command.metadata) == ("CMD_1", "hello", {"Who": "pyigtl"})


def every_type() -> list[bytes]:
    """One message of every type in header versions 1 and 2, each of a device of its own, as pyigtl keeps one a device.

    Small enough for the 10 ms that pyigtl gives a message to be sent in.
    """
    chosen: dict[str, bytes] = {}
    for seed in seeds():
        message = parse_message(seed.raw)
        if seed.version == 1 and len(seed.raw) < 50_000 and message.type_name in message_types():
            chosen.setdefault(message.type_name, bytes(message.content))
    found = []
    for n, (type_name, content) in enumerate(chosen.items()):
        found.append(pack_message(type_name, f"D{n}", content, sender_ns=10**18))
        metadata = {"Number": str(n), "Unit": "mm"}
        found.append(
            pack_message(type_name, f"E{n}", content, sender_ns=10**18, version=2, metadata=metadata, message_id=n)
        )
    return found


def same(got: list[bytes], sent: list[bytes]) -> None:
    """Every message came back, in any order, byte for byte."""
    by_device = {parse_message(raw).device: raw for raw in got}
    assert len(got) == len(sent)
    for raw in sent:
        expected = parse_message(raw)
        assert by_device[expected.device] == raw, expected.type_name


def test_every_type_from_our_source_to_a_pyigtl_server_and_back() -> None:
    sent = every_type()
    assert len(sent) > 160
    sink, port = Collector(), free_port()
    source = make_source(SourceConfig(name="pyigtl", port=port))
    process = run(ECHO, "server", port)
    try:
        source.start(sink)
        sink.wait_for_link(LinkState.CONNECTED, timeout_s=15.0)
        for raw in sent:
            source.send(raw)
        sink.wait_for(lambda c: sum(raw is not None for _, _, raw in c.items()) >= len(sent), 25.0)
    finally:
        source.stop()
        end(process)
    same([raw for _, _, raw in sink.items() if raw is not None], sent)


def test_every_type_from_our_server_to_a_pyigtl_client_and_back() -> None:
    sent, heard = every_type(), list[bytes]()
    with IgtlServer(keep_alive_s=None, on_message=lambda _, raw: heard.append(raw)) as server:
        process = run(ECHO, "client", server.port)
        try:
            assert server.wait_for_clients(timeout_s=15)
            for raw in sent:
                server.publish("all", lambda _, raw=raw: raw, kind="reliable")  # type: ignore[misc]
            deadline = time.monotonic() + 25
            while len(heard) < len(sent) and time.monotonic() < deadline:
                time.sleep(0.02)
        finally:
            end(process)
    same(heard, sent)


def test_the_example_of_the_page() -> None:
    """The page's program, run as it stands (but for the port) against our server."""
    page = Path(__file__).parents[2] / "docs" / "openigtlink-interoperability.md"
    program = page.read_text().split("```python\n")[1].split("```")[0]
    assert "18944" in program
    heard: list[bytes] = []
    with IgtlServer(keep_alive_s=None, on_message=lambda _, raw: heard.append(raw)) as server:
        process = run(
            program.replace("18944", str(server.port)) + "\nprint(message.content, flush=True)\nclient.stop()\n"
        )
        try:
            assert server.wait_for_clients(timeout_s=15)
            while process.poll() is None:
                server.publish_tdata("Tracker", [TrackedTool("NeedleToTracker", np.eye(4), 2)])
                time.sleep(0.02)
            output, _ = process.communicate(timeout=5)
        finally:
            end(process)
    assert "TrackingContent" in output
    assert "NeedleToTracker" in output
    (message,) = [parse_message(raw) for raw in heard]
    assert (message.device, unpack_message(message)) == ("Us", StatusContent(1))
