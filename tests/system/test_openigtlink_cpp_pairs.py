"""The other example programs of the C++ library: what is asked for and answered, descriptions, shapes, bound messages.

Values are those that the programs' sources send. ``test_openigtlink_cpp`` has trackers, images, status and text.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from openigtlink_examples import IMAGES, build, free_port, running, wait_for_text
from openigtlink_tools import Collector

from drivers.openigtlink.codec import (
    decode,
    encode_content,
    encode_image,
    encode_position,
    encode_status,
    encode_string,
    encode_transform,
)
from drivers.openigtlink.contents import (
    BindChild,
    BindContent,
    CapabilityContent,
    Content,
    ImageContent,
    ImageMeta,
    ImageMetaContent,
    LabelMeta,
    LabelMetaContent,
    Point,
    PointContent,
    PolyAttribute,
    PolyDataContent,
    QuaternionTool,
    QuaternionTrackingContent,
    QueryContent,
    StringContent,
    Trajectory,
    TrajectoryContent,
    TransformContent,
    cell_array,
    split_cells,
    unpack_message,
)
from drivers.openigtlink.sink import ClientInfo, IgtlServer
from drivers.openigtlink.source import make_source
from drivers.openigtlink.wire import parse_message
from nav.config.room import SourceConfig
from nav.runtime.messages import ImageMessage, LinkState, PoseMessage

ContentT = TypeVar("ContentT", bound=Content)

RED, GREEN, BLUE = (255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 255, 255)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("openigtlink-examples")


def contents(sink: Collector, kind: type[ContentT]) -> list[tuple[str, ContentT]]:
    """Device and content of what was received of one kind."""
    found = []
    for _, _, raw in sink.items():
        message = None if raw is None else parse_message(raw)
        content = None if message is None else unpack_message(message)
        if message is not None and isinstance(content, kind):
            found.append((message.device, content))
    return found


def from_server(
    program: Path,
    *arguments: object,
    until: Callable[[Collector], bool],
    send: tuple[bytes, ...] = (),
    **options: object,
) -> Collector:
    """What one of their servers sends to our source, after our source has sent it ``send``."""
    sink, port = Collector(), free_port()
    source = make_source(SourceConfig.model_validate({"name": "example", "port": port, "reconnect": False, **options}))
    with running(program, port, *arguments):
        end = time.monotonic() + 8
        while True:  # the program takes a moment to listen
            source.start(sink)
            sink.wait_for(lambda c: bool({LinkState.CONNECTED, LinkState.FAILED} & set(c.links())), 8.0)
            if LinkState.CONNECTED in sink.links():
                break
            source.stop()
            assert time.monotonic() < end
            sink = Collector()
            time.sleep(0.05)
        try:
            for raw in send:
                source.send(raw)
            sink.wait_for(until, 8.0)
        finally:
            source.stop()
    assert LinkState.FAILED not in sink.links(), "no framing error"
    return sink


def query(type_name: str, device: str) -> bytes:
    return encode_content(device, QueryContent(), type_name=type_name)


# ------------------------------------------------------------------------------------------- their server, our source


def test_point_servers(folder: Path) -> None:
    sink = from_server(build("PointServer", folder), until=lambda c: bool(contents(c, PointContent)))
    ((device, content),) = contents(sink, PointContent)
    assert device == "PointSender"
    assert content.points == tuple(
        Point(f"POINT_{n}", (10.0 + 30 * n, 20.0 + 30 * n, 30.0 + 30 * n), "GROUP_0", rgba, 15.0 + 30 * n, "IMAGE_0")
        for n, rgba in enumerate((RED, GREEN, BLUE))
    )
    asked = (query("GET_POINT", "Any"),)
    sink = from_server(build("PointListServer", folder), until=lambda c: bool(contents(c, PointContent)), send=asked)
    ((_, content),) = contents(sink, PointContent)
    assert [p.position for p in content.points] == [(10, 20, 30), (40, 50, 60), (70, 80, 90)]
    assert {(p.diameter, p.rgba) for p in content.points} == {(75.0, BLUE)}


def test_trajectory_server(folder: Path) -> None:
    sink = from_server(build("TrajectoryServer", folder), until=lambda c: bool(contents(c, TrajectoryContent)))
    ((_, content),) = contents(sink, TrajectoryContent)
    assert [(t.name, t.entry, t.target, t.rgba, t.diameter, t.owner) for t in content.trajectories] == [
        ("TRAJECTORY_0", (10, 20, 30), (20, 20, 40), RED, 15.0, "IMAGE_0"),
        ("TRAJECTORY_1", (40, 50, 60), (20, 30, 10), GREEN, 45.0, "IMAGE_0"),
        ("TRAJECTORY_2", (70, 80, 90), (10, 40, 20), BLUE, 75.0, "IMAGE_0"),
    ]


def test_capability_server(folder: Path) -> None:
    sink = from_server(build("CapabilityServer", folder), until=lambda c: bool(contents(c, CapabilityContent)))
    assert contents(sink, CapabilityContent)[0][1].types == ("TRANSFORM", "GET_IMAGE", "GET_LBMETA")


@pytest.mark.parametrize("program", ["ImageMetaServer", "ImageDatabaseServer"])
def test_image_descriptions(folder: Path, program: str) -> None:
    arguments = (IMAGES,) if program == "ImageDatabaseServer" else ()
    asked = (query("GET_IMGMETA", "Scanner"),)
    sink = from_server(
        build(program, folder), *arguments, until=lambda c: bool(contents(c, ImageMetaContent)), send=asked
    )
    ((device, content),) = contents(sink, ImageMetaContent)
    assert device == "Scanner"
    assert [(i.name, i.device, i.modality, i.patient_name, i.patient_id, i.size, i.scalar) for i in content.images] == [
        (f"IMAGE_DESCRIPTION_{n}", f"IMAGE_{n}", modality, f"PATIENT_{n}", f"PATIENT_ID_{n}", size, 5)
        for n, (modality, size) in enumerate((("CT", (512, 512, 64)), ("MRI", (256, 128, 32)), ("PET", (256, 256, 32))))
    ]
    seconds = [i.stamp[0] for i in content.images]
    assert seconds == ([1, 2, 3] if program == "ImageMetaServer" else [1291739370, 1291739380, 1291739390])


def test_label_descriptions(folder: Path) -> None:
    sink = from_server(
        build("LabelMetaServer", folder),
        until=lambda c: bool(contents(c, LabelMetaContent)),
        send=(query("GET_LBMETA", "Scanner"),),
    )
    ((device, content),) = contents(sink, LabelMetaContent)
    assert device == "MetaServer"
    assert content.labels == tuple(
        LabelMeta(f"LABEL_DESCRIPTION_{n}", f"LABEL_{n}", n + 1, rgba, size, f"IMAGE_{n}")
        for n, (rgba, size) in enumerate(((RED, (512, 512, 64)), (GREEN, (256, 128, 32)), (BLUE, (256, 256, 32))))
    )


def test_image_database_server(folder: Path) -> None:
    """Labels and an image of the database, each asked for by its name, over one connection."""
    asked = (query("GET_LBMETA", "Any"), query("GET_IMAGE", "IMAGE_1"))
    sink = from_server(
        build("ImageDatabaseServer", folder), IMAGES,
        until=lambda c: bool(contents(c, ImageContent)) and bool(contents(c, LabelMetaContent)), send=asked,
    )  # fmt: skip
    assert [label.device for label in contents(sink, LabelMetaContent)[0][1].labels] == [
        "LABEL_0",
        "LABEL_1",
        "LABEL_2",
    ]
    (message,) = sink.of(ImageMessage)
    assert message.array.dtype == np.uint8
    raw = np.fromfile(IMAGES / "igtlTestImage3.raw", np.uint8)  # its index of IMAGE_1, plus one
    np.testing.assert_array_equal(message.array.reshape(-1), raw[: message.array.size])


def test_polydata_server(folder: Path) -> None:
    sink = from_server(
        build("PolyDataServer", folder),
        until=lambda c: bool(contents(c, PolyDataContent)),
        send=(query("GET_POLYDATA", "Cube"),),
    )
    ((device, content),) = contents(sink, PolyDataContent)
    assert device == "Cube"
    square = [(0, 0), (1, 0), (1, 1), (0, 1)]
    np.testing.assert_array_equal(content.points, [(x, y, z) for z in (0, 1) for x, y in square])
    assert [list(cell) for cell in split_cells(content.polygons)] == CUBE
    assert not len(content.vertices)
    assert not len(content.strips)
    ((kind, name, values),) = [(a.kind, a.name, a.values) for a in content.attributes]
    assert (kind & 0xFF, name) == (0, "attr")
    np.testing.assert_array_equal(values.reshape(-1), range(8))


CUBE = [[0, 3, 2, 1], [4, 5, 6, 7], [0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7]]


def test_quaternion_tracking_data_server(folder: Path) -> None:
    """Asked for with STT_QTDATA by the configuration of the source; poses as the program computes them."""
    sink = from_server(
        build("QuaternionTrackingDataServer", folder),
        until=lambda c: len(c.of(PoseMessage)) >= 8,
        subscribe=[{"kind": "qtdata", "interval_ms": 20, "coordinates": "Patient"}],
    )
    for n, (device, content) in enumerate(contents(sink, QuaternionTrackingContent)[:8]):
        assert device == "Tracker"
        assert [(t.name, t.kind) for t in content.tools] == [("Channel 0", 1), ("Channel 1", 2), ("Channel 2", 4)]
        for tool, step in zip(content.tools, (0.1, 0.2, 0.3), strict=True):
            phi = step * n
            np.testing.assert_allclose(tool.position, [50 * np.cos(phi), 50 * np.sin(phi), 50 * np.cos(phi)], atol=1e-3)
    for message in sink.of(PoseMessage)[:8]:
        assert all(tool.matrix is not None for tool in message.tools)


def test_bind_server(folder: Path) -> None:
    """In spite of its name it sends plain TRANSFORMs."""
    sink = from_server(build("BindServer", folder), 50, until=lambda c: len(c.of(PoseMessage)) >= 5)
    matrices = [m.tools[0].matrix for m in sink.of(PoseMessage)[:5]]
    for n, matrix in enumerate(matrices):
        assert matrix is not None
        np.testing.assert_allclose(
            matrix[:3, 3], 50 * np.array([np.cos(0.2 * n), np.sin(0.2 * n), np.cos(0.2 * n)]), atol=1e-3
        )


def test_string_echo_server(folder: Path) -> None:
    texts = ["hello", "a longer text with numbers 1 2 3", "x"]
    sink = from_server(
        build("StringEchoServer", folder),
        until=lambda c: len(contents(c, StringContent)) >= 3,
        send=tuple(encode_string("Us", text) for text in texts),
    )
    assert [(device, content.text) for device, content in contents(sink, StringContent)] == [
        ("StringEchoServer", text) for text in texts
    ]


def test_receiving_servers_read_what_our_source_sends(folder: Path, tmp_path: Path) -> None:
    """ReceiveServer takes every type of its list; SessionManagerServer poses, positions and images."""
    pose = np.eye(4)
    pose[:3, 3] = 12.5, -3.0, 99.0
    child = encode_string("c", "bound")[58:]
    sent = (
        encode_transform("NeedleToTracker", pose),
        encode_position("P", (1, 2, 3), (0, 0, 0, 1)),
        encode_image("I", np.zeros((3, 4, 5), np.int16), np.diag([0.5, 0.25, 2, 1])),
        encode_status("S", 13, 7, "NotReady", "warming up"),
        encode_string("Text", "from our source"),
        encode_content("Pts", PointContent((Point("tip", (1, 2, 3)),))),
        encode_content("Trj", TrajectoryContent((Trajectory("path", (1, 2, 3), (4, 5, 6)),))),
        encode_content("Cap", CapabilityContent(("TRANSFORM", "GET_IMAGE"))),
        encode_content("Bound", BindContent((BindChild("STRING", "c", child),))),
        encode_status("End", 1, 0, "", "the end"),
    )
    for program, wanted in (
        ("ReceiveServer", ("12.5", "warming up", "from our source", "tip", "path", "GET_IMAGE", "the end")),
        ("SessionManagerServer", ("12.5",)),
    ):
        log, port, sink = tmp_path / program, free_port(), Collector()
        source = make_source(SourceConfig(name="example", port=port))
        with running(build(program, folder), port, log=log):
            source.start(sink)
            try:
                sink.wait_for_link(LinkState.CONNECTED, timeout_s=8.0)
                for raw in sent:
                    source.send(raw)
                for text in wanted:
                    wait_for_text(log, text)
            finally:
                source.stop()


# --------------------------------------------------------------------------------------------- their client, our server


class Answering:
    """Our server, and what a client sends to it; ``answer`` gives what goes back."""

    def __init__(self, answer: Callable[[str], bytes | None] = lambda _: None) -> None:
        self.heard: list[bytes] = []
        self._answer = answer
        self.server = IgtlServer(on_message=self._on_message, keep_alive_s=None)

    def _on_message(self, client: ClientInfo, raw: bytes) -> None:
        self.heard.append(raw)
        reply = self._answer(parse_message(raw).type_name)
        if reply is not None:
            self.server.publish("answer", lambda _: reply, kind="reliable", only=client.number)

    def wait_for(self, count: int) -> list[Content | None]:
        end = time.monotonic() + 8
        while len(self.heard) < count:
            assert time.monotonic() < end, f"{len(self.heard)} of {count} messages"
            time.sleep(0.01)
        return [unpack_message(parse_message(raw)) for raw in self.heard]


def test_point_trajectory_and_capability_clients(folder: Path) -> None:
    for program, kind, check in (
        ("PointClient", PointContent, lambda c: c.points[0].position == (10, 20, 30)),
        ("TrajectoryClient", TrajectoryContent, lambda c: c.trajectories[0].entry == (10, 20, 30)),
        ("CapabilityClient", CapabilityContent, lambda c: c.types == ("TRANSFORM", "GET_IMAGE", "GET_LBMETA")),
    ):
        peer = Answering()
        with peer.server as server, running(build(program, folder), "127.0.0.1", server.port):
            (content,) = peer.wait_for(1)
        assert isinstance(content, kind)
        assert check(content), content


def test_bind_client(folder: Path) -> None:
    peer = Answering()
    with peer.server as server, running(build("BindClient", folder), "127.0.0.1", server.port, 50):
        found = peer.wait_for(3)
    for content in found:
        assert isinstance(content, BindContent)
        assert [(c.type_name, c.name) for c in content.children] == [
            ("STRING", "StringMessage"),
            ("TRANSFORM", "Tracker"),
        ]
        assert isinstance(StringContent.unpack(content.children[0].content), StringContent)
        matrix = TransformContent.unpack(content.children[1].content).matrix
        np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-5)


def test_imager_client_2(folder: Path) -> None:
    """It sends each image in fragments."""
    peer = Answering()
    with peer.server as server, running(build("ImagerClient2", folder), "127.0.0.1", server.port, 50, IMAGES):
        peer.wait_for(5)
    for n, raw in enumerate(peer.heard[:5]):
        message = decode(raw, source="", sequence=n, arrival_ns=0)
        assert isinstance(message, ImageMessage)
        np.testing.assert_array_equal(
            message.array.reshape(-1), np.fromfile(IMAGES / f"igtlTestImage{n % 5 + 1}.raw", np.uint8)
        )


def test_clients_that_ask_understand_our_answers(folder: Path, tmp_path: Path) -> None:
    points = np.array([(x, y, z) for z in (0, 1) for x, y in ((0, 0), (1, 0), (1, 1), (0, 1))], np.float32) * 7
    cube = PolyDataContent(
        points,
        polygons=cell_array(CUBE),
        attributes=(PolyAttribute(0, "depth", np.arange(8, dtype=np.float32).reshape(8, 1)),),
    )
    answers = {
        "GET_IMGMETA": ImageMetaContent(
            (ImageMeta("Liver", "CT_1", "CT", "Nobody", "ID7", (1000, 0), (64, 32, 16), 5),)
        ),
        "GET_LBMETA": LabelMetaContent((LabelMeta("Tumour", "L_1", 3, (9, 8, 7, 255), (64, 32, 16), "CT_1"),)),
        "GET_POLYDATA": cube,
    }

    def answer(type_name: str) -> bytes | None:
        content = answers.get(type_name)
        return None if content is None else encode_content("Us", content)

    for program, wanted in (
        ("ImageMetaClient", ("Liver", "CT_1", "Nobody", "ID7", "64, 32, 16", "ScalarType : 5")),
        ("LabelMetaClient", ("Tumour", "L_1", "Label      : 3", "9, 8, 7, 255", "64, 32, 16")),
        ("PolyDataClient", ("point[6] = (7, 7, 7)", "Polygons", "depth", "POINT_SCALAR", "data[7] = (7")),
    ):
        peer, log = Answering(answer), tmp_path / program
        with peer.server as server, running(build(program, folder), "127.0.0.1", server.port, log=log):
            for text in wanted:
                wait_for_text(log, text)


def test_quaternion_tracking_data_client(folder: Path, tmp_path: Path) -> None:
    """It asks with STT_QTDATA, gets some, and asks to stop."""
    peer, log = Answering(), tmp_path / "log"
    with (
        peer.server as server,
        running(build("QuaternionTrackingDataClient", folder), "127.0.0.1", server.port, 50, log=log),
    ):
        peer.wait_for(1)
        asked = parse_message(peer.heard[0])
        assert asked.type_name == "STT_QTDATA"
        end = time.monotonic() + 8
        while b"Channel 1" not in log.read_bytes() or b"41.5" not in log.read_bytes():
            tools = (
                QuaternionTool("Channel 0", (1, 2, 3), (0, 0, 0, 1), 1),
                QuaternionTool("Channel 1", (41.5, 5, 6), (0, 1, 0, 0), 2),
            )
            raw = encode_content("Tracker", QuaternionTrackingContent(tools))
            server.publish("Tracker", lambda _, raw=raw: raw)  # type: ignore[misc]
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.02)
