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


#: Sends every message of a file, as pyigtl messages.
SEND_ALL = """
import sys, time, pyigtl
from pathlib import Path
from drivers.openigtlink import pyigtl_messages
from drivers.openigtlink.framing import Framer
pyigtl_messages.register(replace=pyigtl_messages.PYIGTL_OWN)
server = pyigtl.OpenIGTLinkServer(port=int(sys.argv[1]))
while not server.is_connected():
    time.sleep(0.01)
base = pyigtl.messages.MessageBase
for raw in Framer().feed(Path(sys.argv[2]).read_bytes()):
    fields = base.parse_header(raw[:58])
    message = base.create_message(fields["message_type"])
    message.unpack(fields, raw[58:])
    server.send_message(message, wait=True)
time.sleep(2)
"""

#: Receives the devices named and prints type and content of each.
RECEIVE_ALL = """
import json, sys, time, pyigtl
from drivers.openigtlink import pyigtl_messages
pyigtl_messages.register(replace=pyigtl_messages.PYIGTL_OWN)
client = pyigtl.OpenIGTLinkClient("127.0.0.1", int(sys.argv[1]))
wanted, out, end = int(sys.argv[2]), {}, time.monotonic() + 15
while len(out) < wanted and time.monotonic() < end:
    for name, m in list(client.incoming_messages.items()):
        out[name] = [m.message_type, m.content.pack().hex()]
    time.sleep(0.01)
print(json.dumps(out), flush=True)
client.stop()
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
    """One message of every type, each of a device of its own, small enough for pyigtl's 10 ms."""
    chosen: dict[str, bytes] = {}
    for seed in seeds():
        message = parse_message(seed.raw)
        if seed.version == 1 and len(seed.raw) < 50_000 and message.type_name in message_types():
            raw = pack_message(message.type_name, f"D{len(chosen)}", bytes(message.content), sender_ns=10**18)
            chosen.setdefault(message.type_name, raw)
    return list(chosen.values())


def test_every_type_from_a_pyigtl_server_to_our_source(tmp_path: Path) -> None:
    sent = every_type()
    assert len(sent) > 80
    (tmp_path / "all.bin").write_bytes(b"".join(sent))
    sink, port = Collector(), free_port()
    source = make_source(SourceConfig(name="pyigtl", port=port, reconnect=False))
    process = run(SEND_ALL, port, tmp_path / "all.bin")
    try:
        source.start(sink)
        sink.wait_for(lambda c: sum(raw is not None for _, _, raw in c.items()) >= len(sent), 25.0)
    finally:
        source.stop()
        end(process)
    got = [parse_message(raw) for _, _, raw in sink.items() if raw is not None]
    for ours, theirs in zip(sent, got, strict=True):
        expected = parse_message(ours)
        assert (theirs.type_name, theirs.device, bytes(theirs.content), theirs.sender_ns) == (
            expected.type_name, expected.device, bytes(expected.content), expected.sender_ns,
        )  # fmt: skip


def test_every_type_from_our_server_to_a_pyigtl_client() -> None:
    sent = every_type()
    with IgtlServer(keep_alive_s=None) as server:
        process = run(RECEIVE_ALL, server.port, len(sent))
        try:
            assert server.wait_for_clients(timeout_s=10)
            for raw in sent:
                server.publish("all", lambda _, raw=raw: raw, kind="reliable")  # type: ignore[misc]
            output, _ = process.communicate(timeout=25)
        finally:
            end(process)
    got = json.loads(output)
    for raw in sent:
        expected = parse_message(raw)
        assert got[expected.device] == [expected.type_name, bytes(expected.content).hex()]
