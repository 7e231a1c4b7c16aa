"""Exchange with pyigtl, which runs in a process of its own (its server needs the main thread and its signals)."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from openigtlink_examples import free_port
from openigtlink_tools import Collector

from drivers.openigtlink.codec import decode
from drivers.openigtlink.sink import ClientInfo, IgtlServer
from drivers.openigtlink.source import make_source
from nav.config.room import SourceConfig
from nav.runtime.messages import ImageMessage, LinkState, Message, PoseMessage, TextMessage

pytest.importorskip("pyigtl")

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
