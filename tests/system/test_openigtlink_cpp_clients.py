"""Every client among the example programs of the OpenIGTLink C++ library (1.11, header version 1), with our server.

Those that send are checked by the values in their sources, those that receive by what they print. Where a program does
something else than its name or the protocol says, the test does too.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivers.openigtlink.codec import encode_content, encode_string, encode_transform
from drivers.openigtlink.contents import (
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
    PositionContent,
    QuaternionTool,
    QuaternionTrackingContent,
    QueryContent,
    StartTrackingContent,
    StatusContent,
    StringContent,
    TrackedTool,
    TrackingContent,
    Trajectory,
    TrajectoryContent,
    TransformContent,
    cell_array,
    unpack_message,
)
from drivers.openigtlink.wire import WireMessage
from tests.system.openigtlink_examples import (
    IMAGES,
    OurServer,
    build,
    pose,
    position,
    quaternion,
    wait_for_lines,
    wait_for_text,
)

RED, GREEN, BLUE = (255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 255, 255)
MATRIX = np.array([[0.0, -1.0, 0.0, 11.0], [1.0, 0.0, 0.0, 22.0], [0.0, 0.0, 1.0, 33.0], [0.0, 0.0, 0.0, 1.0]])
CUBE = [[0, 3, 2, 1], [4, 5, 6, 7], [0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7]]


# ------------------------------------------------------------------------------------------------- clients that send


def heard(program: Path, *arguments: object, count: int) -> list[tuple[str, Any]]:
    """Device and content of the first ``count`` messages of a client."""
    peer = OurServer()
    with peer.client(program, *arguments) as server:
        messages = peer.wait_for(count)
        assert {c.version for c in server.clients} <= {1}
    return [(message.device, unpack_message(message)) for message in messages]


def stamped_now(message: WireMessage) -> bool:
    return message.sender_ns is not None and abs(message.sender_ns - time.time_ns()) < 60e9


def test_tracker_client(examples: Path) -> None:
    peer = OurServer()
    with peer.client(build("TrackerClient", examples), 100):
        messages = peer.wait_for(10)
    for n, message in enumerate(messages):
        content = unpack_message(message)
        assert isinstance(content, TransformContent)
        assert message.device == "Tracker"
        assert stamped_now(message)
        np.testing.assert_allclose(content.matrix, pose(0.2 * n, 0.1 * n), atol=1e-3)


def test_tracker_client_2(examples: Path) -> None:
    for n, (device, content) in enumerate(heard(build("TrackerClient2", examples), 100, count=10)):
        assert isinstance(content, PositionContent)
        assert device == "Tracker"
        np.testing.assert_allclose(content.position, position(0.2 * n), atol=1e-3)
        np.testing.assert_allclose(content.quaternion, quaternion(0.1 * n), atol=1e-5)


def test_tracker_client_3(examples: Path) -> None:
    """Several tools in turn, each with a path of its own."""
    names = ("NeedleToTracker", "ProbeToTracker", "ReferenceToTracker")
    peer = OurServer()
    with peer.client(build("TrackerClient3", examples), 100, *names):
        messages = peer.wait_for(9)
    for n, message in enumerate(messages):
        tool, step = n % 3, 0.5 * (n % 3 + 1) * (n // 3)
        content = unpack_message(message)
        assert isinstance(content, TransformContent)
        assert message.device == names[tool]
        assert stamped_now(message)
        np.testing.assert_allclose(content.matrix, pose(0.3 * tool + 0.2 * step, 0.2 * tool + 0.1 * step), atol=1e-3)


@pytest.mark.parametrize("program", ["ImagerClient", "ImagerClient2"])
def test_imager_clients(examples: Path, program: str) -> None:
    """The second sends each image in fragments. Both say big-endian, as the library does unless told otherwise."""
    for n, (device, content) in enumerate(heard(build(program, examples), 100, IMAGES, count=6)):
        assert isinstance(content, ImageContent)
        assert device == "ImagerClient"
        assert (content.size, content.part, content.offset, content.scalar) == (
            (256, 256, 1),
            (256, 256, 1),
            (0,) * 3,
            3,
        )
        assert content.endian == 1
        np.testing.assert_array_equal(content.axes, np.diag([1, -1, 5]))
        np.testing.assert_array_equal(content.position, (0, 0, 0))
        assert bytes(content.pixels) == (IMAGES / f"igtlTestImage{n % 5 + 1}.raw").read_bytes()[: 256 * 256]


def test_point_client(examples: Path) -> None:
    points = tuple(
        Point(f"POINT_{n}", (10.0 + 30 * n, 20.0 + 30 * n, 30.0 + 30 * n), "GROUP_0", rgba, 15.0 + 30 * n, "IMAGE_0")
        for n, rgba in enumerate((RED, GREEN, BLUE))
    )
    assert heard(build("PointClient", examples), count=1) == [("PointSender", PointContent(points))]


def test_trajectory_client(examples: Path) -> None:
    """It gives the last target to the second trajectory, and the third none; and calls all of them "target only"."""
    rows = (
        ((10.0, 20.0, 30.0), (20.0, 20.0, 40.0), RED, 15.0),
        ((40.0, 50.0, 60.0), (10.0, 40.0, 20.0), GREEN, 45.0),
        ((70.0, 80.0, 90.0), (0.0, 0.0, 0.0), BLUE, 75.0),
    )
    wanted = tuple(
        Trajectory(f"TRAJECTORY_{n}", entry, target, "GROUP_0", 2, rgba, diameter, "IMAGE_0")
        for n, (entry, target, rgba, diameter) in enumerate(rows)
    )
    assert heard(build("TrajectoryClient", examples), count=1) == [("TrajectorySender", TrajectoryContent(wanted))]


def test_capability_client(examples: Path) -> None:
    wanted = CapabilityContent(("TRANSFORM", "GET_IMAGE", "GET_LBMETA"))
    assert heard(build("CapabilityClient", examples), count=1) == [("Device", wanted)]


def test_status_client(examples: Path) -> None:
    wanted = StatusContent(1, 128, "OK!", "This is a test to send status message.")
    assert heard(build("StatusClient", examples), count=1) == [("Device", wanted)]


def test_string_client(examples: Path) -> None:
    texts = ("OpenIGTLink", "Network", "Communication", "Protocol", "Image Guided Therapy", "OpenIGTLink")
    got = heard(build("StringClient", examples), 100, count=len(texts))
    assert got == [("StringMessage", StringContent(text, 3)) for text in texts]


def test_bind_client(examples: Path) -> None:
    """It sends the first of its five texts again and again."""
    for n, (device, content) in enumerate(heard(build("BindClient", examples), 100, count=5)):
        assert isinstance(content, BindContent)
        assert device == "BindMessage"
        text, matrix = content.children
        assert [(c.type_name, c.name) for c in (text, matrix)] == [
            ("STRING", "StringMessage"),
            ("TRANSFORM", "Tracker"),
        ]
        assert StringContent.unpack(text.content) == StringContent("OpenIGTLink", 3)
        np.testing.assert_allclose(TransformContent.unpack(matrix.content).matrix, pose(0.2 * n, 0.1 * n), atol=1e-3)


# -------------------------------------------------------------------------------------------------- clients that ask


@pytest.mark.parametrize(
    ("program", "asked", "answer", "wanted"),
    [
        (
            "ImageMetaClient",
            "GET_IMGMETA",
            ImageMetaContent((ImageMeta("Liver", "CT_1", "CT", "Nobody", "ID7", (1000, 1 << 31), (64, 32, 16), 5),)),
            (
                "Name       : Liver", "DeviceName : CT_1", "Modality   : CT", "PatientName: Nobody", "PatientID  : ID7",
                "TimeStamp  : 1000.500000", "Size       : ( 64, 32, 16)", "ScalarType : 5",
            ),
        ),
        (
            "LabelMetaClient",
            "GET_LBMETA",
            LabelMetaContent((LabelMeta("Tumour", "L_1", 3, (9, 8, 7, 255), (64, 32, 16), "CT_1"),)),
            (
                "Name       : Tumour", "DeviceName : L_1", "Label      : 3", "RGBA       : ( 9, 8, 7, 255 )",
                "Size       : ( 64, 32, 16)", "Owner      : CT_1",
            ),
        ),
        (
            "PolyDataClient",
            "GET_POLYDATA",
            PolyDataContent(
                7 * np.array(
                    [(x, y, z) for z in (0, 1) for x, y in ((0, 0), (1, 0), (1, 1), (0, 1))], np.float32
                ),
                vertices=cell_array([[0], [6]]),
                lines=cell_array([[0, 6]]),
                polygons=cell_array(CUBE),
                strips=cell_array([[0, 1, 2, 3]]),
                attributes=(
                    PolyAttribute(0, "depth", np.arange(8, dtype=np.float32).reshape(8, 1)),
                    PolyAttribute(2, "normal", np.tile(np.float32([0, 0.6, 0.8]), (8, 1))),
                ),
            ),
            (
                "point[6] = (7, 7, 7)", "Vertices", "cell[1] = (6", "Lines", "cell[0] = (0, 0, 6)", "Polygons",
                "cell[5] = (3, 3, 0, 4, 7)", "TriangleStrips", "cell[0] = (0, 0, 1, 2, 3)", "Name = depth",
                "POINT_SCALAR", "data[7] = (7)", "Name = normal", "POINT_NORMAL", "data[7] = (0, 0.6, 0.8)",
            ),
        ),
    ],
)  # fmt: skip
def test_clients_that_ask_understand_our_answers(
    examples: Path, tmp_path: Path, program: str, asked: str, answer: Content, wanted: tuple[str, ...]
) -> None:
    """PolyDataClient prints the first point of every cell twice."""
    reply = encode_content("Us", answer)
    peer, log = OurServer(lambda message: reply if message.type_name == asked else None), tmp_path / "log"
    with peer.client(build(program, examples), log=log):
        (question,) = peer.wait_for(1)
        wait_for_lines(log, *wanted)
    assert (question.type_name, question.device, unpack_message(question)) == (asked, "Client", QueryContent())


@pytest.mark.parametrize("kind", ["TDATA", "QTDATA"])
def test_tracking_data_clients(examples: Path, tmp_path: Path, kind: str) -> None:
    """They ask for an interval of 50 ms whatever they are told, and to stop after ten messages."""
    log, program = tmp_path / "log", "TrackingDataClient" if kind == "TDATA" else "QuaternionTrackingDataClient"
    moved = MATRIX.copy()
    moved[0, 3] = 41.5
    content: Content = TrackingContent((TrackedTool("Channel 0", MATRIX, 1), TrackedTool("Channel 1", moved, 3)))
    printed = [
        "Name       : Channel 0",
        "Type       : 1",
        "0, -1, 0, 11",
        "Channel 1",
        "Type       : 3",
        "0, -1, 0, 41.5",
    ]
    if kind == "QTDATA":
        content = QuaternionTrackingContent(
            (
                QuaternionTool("Channel 0", (1, 2, 3), (0, 0, 0, 1), 1),
                QuaternionTool("Channel 1", (41.5, 5, 6), (0, 0.5, 0, 0.75), 2),
            )
        )
        printed[2:] = ["1, 2, 3", "0, 0, 0, 1", "Channel 1", "Type       : 2", "41.5, 5, 6", "0, 0.5, 0, 0.75"]
    peer = OurServer()
    with peer.client(build(program, examples), 20, log=log):
        (question,) = peer.wait_for(1)
        assert question.type_name == f"STT_{kind}"
        assert unpack_message(question) == StartTrackingContent(50, "Patient")
        for _ in range(10):
            peer.send(encode_content("Tracker", content))
        stop = peer.wait_for(2)[1]
        text = wait_for_lines(log, f"Sending STP_{kind}", *printed)
    assert (stop.type_name, unpack_message(stop)) == (f"STP_{kind}", QueryContent())
    assert text.count("Name       : Channel 1") == 10


# ---------------------------------------------------------------------------------------------- a client that listens


def test_receive_client_understands_what_we_send(examples: Path, tmp_path: Path) -> None:
    """All ten types that it knows, and one that it does not."""
    log, peer = tmp_path / "log", OurServer()
    with peer.client(build("ReceiveClient", examples), log=log) as server:
        assert server.wait_for_clients(timeout_s=8.0)
        peer.send(encode_content("Bound", BindContent(())))
        server.publish_transform("NeedleToTracker", MATRIX, sender_ns=1_700_000_000_500_000_000)
        matrix = ("0, -1, 0, 11", "1, 0, 0, 22", "0, 0, 1, 33")
        wait_for_lines(log, "Receiving : BIND", "Time stamp: 1700000000.500000000", *matrix)
        server.publish_position("Stylus", (1, 2, 3), (0, 0, 0.5, 0.75))
        wait_for_lines(log, "position   = (1, 2, 3)", "quaternion = (0, 0, 0.5, 0.75)")
        server.publish_image("Image", np.zeros((3, 4, 5), np.int16), np.diag([0.5, 0.25, 2.0, 1.0]))
        wait_for_lines(log, "Dimensions            : (5, 4, 3)", "Spacing               : (0.5, 0.25, 2)")
        wait_for_lines(log, "Scalar Type           : 4", "Sub-Volume dimensions : (5, 4, 3)")
        server.publish_status("Server", 7, -5, "TIMEOUT", "the link is lost")
        wait_for_lines(log, "Code      : 7", "SubCode   : -5", "Error Name: TIMEOUT", "Status    : the link is lost")
        server.publish_string("Text", "Image Guided Therapy")
        wait_for_text(log, "Encoding: 3; String: Image Guided Therapy")
        server.publish_tdata("Tracker", [TrackedTool("NeedleToTracker", MATRIX, 2)])
        wait_for_lines(log, " Name       : NeedleToTracker", "Type       : 2")
        wait_for_text(log, "0, 0, 1, 33", 2)
        probe = QuaternionTool("Probe", (41.5, 5, 6), (0, 0, 0.5, 0.75), 3)
        peer.send(encode_content("Tracker", QuaternionTrackingContent((probe,))))
        wait_for_lines(log, "Name       : Probe", "Type       : 3", "41.5, 5, 6", "0, 0, 0.5, 0.75")
        group = ("GroupName : group", "RGBA      : ( 9, 8, 7, 6 )", "Radius    : 4.0", "Owner     : CT")
        peer.send(encode_content("Pts", PointContent((Point("tip", (1, 2, 3), "group", (9, 8, 7, 6), 4.0, "CT"),))))
        wait_for_lines(log, "Name      : tip", "Position  : ( 1.000000, 2.000000, 3.000000 )", *group)
        path = Trajectory("path", (1, 2, 3), (4, 5, 6), "group", 3, (9, 8, 7, 6), 4.0, "CT")
        peer.send(encode_content("Trj", TrajectoryContent((path,))))
        ends = ("Entry Pt  : ( 1.000000, 2.000000, 3.000000 )", "Target Pt : ( 4.000000, 5.000000, 6.000000 )")
        wait_for_lines(log, "Name      : path", *ends)
        for line in group:
            wait_for_text(log, line, 2)
        peer.send(encode_content("Cap", CapabilityContent(("TRANSFORM", "GET_IMAGE"))))
        wait_for_lines(log, "Typename #0: TRANSFORM", "Typename #1: GET_IMAGE")


def test_receive_client_keeps_step_over_a_thousand_messages(examples: Path, tmp_path: Path) -> None:
    log, peer = tmp_path / "log", OurServer()
    with peer.client(build("ReceiveClient", examples), log=log) as server:
        assert server.wait_for_clients(timeout_s=8.0)
        for n in range(500):
            peer.send(encode_string("T", "last one" if n == 499 else str(n)))
            server.publish_image("Image", np.zeros((100, 100), np.uint8), np.eye(4), depth=1000)
        text = wait_for_text(log, "last one")
    assert text.count("Receiving STRING data type.") == 500
    assert text.count("Receiving IMAGE data type.") >= 499
    assert "Receiving : " not in text, "no message was taken for another type"


def test_receive_client_loses_its_framing_over_version_2(examples: Path, tmp_path: Path) -> None:
    """It does not know how long such a message is, and reads on in the middle: why our server waits to hear version 2.

    Bytes may be sent to it all the same; the server's own messages never are (the tests above, with metadata too).
    """
    log, peer = tmp_path / "log", OurServer()
    with peer.client(build("ReceiveClient", examples), log=log) as server:
        assert server.wait_for_clients(timeout_s=8.0)
        server.publish_transform("NeedleToTracker", MATRIX, metadata={"TransformStatus": "OK"})
        wait_for_text(log, "0, 0, 1, 33")
        peer.send(encode_transform("T", MATRIX, version=2, metadata={"TransformStatus": "OK"}))
        for n in range(3):
            peer.send(encode_string("Text", f"text {n}"))
        wait_for_text(log, "Receiving : \n", 3)
    text = log.read_text(errors="replace")
    assert text.count("Receiving TRANSFORM data type.") == 1
    assert "text 0" not in text
