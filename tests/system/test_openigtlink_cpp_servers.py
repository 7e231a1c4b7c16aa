"""Every server among the example programs of the OpenIGTLink C++ library (1.11, header version 1), with our source.

Values are those that the programs' sources send. Where a program does something else than its name or the protocol
says, the test does too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from drivers.openigtlink.codec import (
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
    ImageContent,
    ImageMetaContent,
    LabelMeta,
    LabelMetaContent,
    Point,
    PointContent,
    PolyDataContent,
    PositionContent,
    QuaternionTrackingContent,
    QueryContent,
    StatusContent,
    StringContent,
    TrackedTool,
    TrackingContent,
    Trajectory,
    TrajectoryContent,
    split_cells,
)
from nav.config.load import load_toml, shipped_config
from nav.config.room import RoomConfig
from nav.geometry.poses import PoseStatus
from nav.geometry.rigid import Rigid
from nav.runtime.messages import ImageMessage, LinkState, PoseMessage, StatusMessage, TextMessage, UnusedMessage
from tests.system.openigtlink_examples import (
    IMAGES,
    build,
    contents,
    our_source,
    pose,
    position,
    quaternion,
    wait_for_lines,
)

RED, GREEN, BLUE = (255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 255, 255)
POINTS = tuple(
    Point(f"POINT_{n}", (10.0 + 30 * n, 20.0 + 30 * n, 30.0 + 30 * n), "GROUP_0", rgba, 15.0 + 30 * n, "IMAGE_0")
    for n, rgba in enumerate((RED, GREEN, BLUE))
)
CUBE = [[0, 3, 2, 1], [4, 5, 6, 7], [0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7]]


def query(type_name: str, device: str) -> bytes:
    return encode_content(device, QueryContent(), type_name=type_name)


def picture(number: int) -> bytes:
    """The 256 x 256 pixels of a file of the package."""
    return (IMAGES / f"igtlTestImage{number}.raw").read_bytes()[: 256 * 256]


# --------------------------------------------------------------------------------------------------------------- poses


def test_tracker_server(examples: Path) -> None:
    with our_source(build("TrackerServer", examples), 200) as (sink, _):
        sink.wait_for(lambda c: len(c.of(PoseMessage)) >= 50)
    for n, message in enumerate(sink.of(PoseMessage)[:50]):
        (tool,) = message.tools
        assert (message.device, message.sender_ns, tool.status) == ("Tracker", None, PoseStatus.OK)
        np.testing.assert_allclose(tool.matrix, pose(0.2 * n, 0.1 * n), atol=1e-3)


def test_tracker_server_pauses_and_closes_and_is_found_again(examples: Path) -> None:
    with our_source(build("TrackerServer", examples), 500) as (sink, _):
        sink.wait_for(lambda c: len(c.of(PoseMessage)) > 100, 8.0)
    assert sink.links().count(LinkState.CONNECTED) == 2
    assert sink.links().count(LinkState.CLOSED) == 1
    arrivals = [m.arrival_ns for m in sink.of(PoseMessage)]
    assert arrivals[100] - arrivals[99] < 2.5e9


def test_tracker_server_with_its_shipped_room(examples: Path) -> None:
    room = load_toml(shipped_config("rooms", "openigtlink_tracker_server.toml"), RoomConfig)
    options = room.sources[0].model_dump(exclude={"port", "name"})
    with our_source(build("TrackerServer", examples), 20, **options) as (sink, _):
        sink.wait_for(lambda c: len(c.of(PoseMessage)) >= 5)
    assert {m.tools[0].name for m in sink.of(PoseMessage)} == {"NeedleToReference"}
    by_name = {c.name: c for c in room.calibrations}
    assert by_name["ReferenceToRas"].provenance == "assumed"
    tip = by_name["ReferenceToRas"].rigid() @ Rigid.from_matrix(
        sink.of(PoseMessage)[0].tools[0].matrix, "NeedleToReference"
    )
    tip = tip @ by_name["NeedleTipToNeedle"].rigid()
    assert tip.name.wire == "NeedleTipToRas"


def test_position_server(examples: Path) -> None:
    """Its quaternions have length 0.88: kept in the content, taken out of the pose."""
    with our_source(build("TrackerServer2", examples), 200) as (sink, _):
        sink.wait_for(lambda c: len(c.of(PoseMessage)) >= 20)
    for n, (_, content) in enumerate(contents(sink, PositionContent)[:20]):
        np.testing.assert_allclose(content.position, position(0.2 * n), atol=1e-3)
        np.testing.assert_allclose(content.quaternion, quaternion(0.1 * n), atol=1e-5)
    for n, message in enumerate(sink.of(PoseMessage)[:20]):
        (tool,) = message.tools
        assert tool.status is PoseStatus.OK, tool.problem
        np.testing.assert_allclose(tool.matrix, pose(0.2 * n, 0.1 * n), atol=1e-3)


@pytest.mark.parametrize("kind", ["tdata", "qtdata"])
def test_tracking_data_servers(examples: Path, kind: str) -> None:
    """Asked for by the configuration of the source, in any coordinates; told to stop, they close the connection."""
    content_class = {"tdata": TrackingContent, "qtdata": QuaternionTrackingContent}[kind]
    program = {"tdata": "TrackingDataServer", "qtdata": "QuaternionTrackingDataServer"}[kind]
    subscribe = [{"kind": kind, "interval_ms": 20, "coordinates": "Patient"}]
    with our_source(build(program, examples), reconnect=False, subscribe=subscribe) as (sink, send):
        sink.wait_for(lambda c: len(c.of(PoseMessage)) >= 8)
        send(query(f"STP_{kind.upper()}", "Us"))
        sink.wait_for_link(LinkState.CLOSED)
    assert {(device, tuple((t.name, t.kind) for t in c.tools)) for device, c in contents(sink, content_class)} == {
        ("Tracker", (("Channel 0", 1), ("Channel 1", 2), ("Channel 2", 4)))
    }
    for n, message in enumerate(sink.of(PoseMessage)[:8]):
        assert [t.name for t in message.tools] == ["Channel 0", "Channel 1", "Channel 2"]
        for tool, phi, theta in zip(message.tools, (0.1, 0.2, 0.3), (0.2, 0.1, 0.05), strict=True):
            assert tool.status is PoseStatus.OK, tool.problem
            np.testing.assert_allclose(tool.matrix, pose(phi * n, theta * n), atol=1e-3)


def test_bind_server(examples: Path) -> None:
    """In spite of its name it sends plain TRANSFORMs."""
    with our_source(build("BindServer", examples), 50) as (sink, _):
        sink.wait_for(lambda c: len(c.of(PoseMessage)) >= 5)
    for n, message in enumerate(sink.of(PoseMessage)[:5]):
        np.testing.assert_allclose(message.tools[0].matrix, pose(0.2 * n, 0.1 * n), atol=1e-3)


# -------------------------------------------------------------------------------------------------------------- images


def test_imager_server(examples: Path) -> None:
    with our_source(build("ImagerServer", examples), 100, IMAGES) as (sink, _):
        sink.wait_for(lambda c: len(c.of(ImageMessage)) >= 10)
    for n, message in enumerate(sink.of(ImageMessage)[:10]):
        assert contents(sink, ImageContent)[n][1].endian == 1  # the library's default, whatever the machine's order
        assert message.array.shape == (1, 256, 256)
        assert message.array.tobytes() == picture(n % 5 + 1)
        # SetMatrix with the second axis turned round, centre at 0, spacing 1, 1, 5
        wanted = np.diag([1.0, -1.0, 5.0, 1.0])
        wanted[:3, 3] = (-127.5, 127.5, 0)
        np.testing.assert_allclose(message.mm_from_index, wanted, atol=1e-4)


def test_image_database_server(examples: Path) -> None:
    """Images and labels, each asked for by its name, over one connection. A name it does not have gets no answer.

    Of LABEL_2 it lacks the file (igtlTestImage7.raw): it sends what happens to be in its memory.
    """
    files = {"IMAGE_0": 2, "IMAGE_1": 3, "IMAGE_2": 4, "LABEL_0": 5, "LABEL_1": 6, "LABEL_2": None}
    with our_source(build("ImageDatabaseServer", examples), IMAGES) as (sink, send):
        send(query("GET_LBMETA", "Any"))
        for name in ("NOTHING", *files):
            send(query("GET_IMAGE", name))
        sink.wait_for(lambda c: len(c.of(ImageMessage)) >= len(files))
    ((device, labels),) = contents(sink, LabelMetaContent)
    assert device == "Any"
    assert labels.labels == tuple(
        LabelMeta(f"LABEL_DESCRIPTION_{n}", f"LABEL_{n}", 0, (0, 0, 0, 0), size, f"IMAGE_{n}")
        for n, size in enumerate(((512, 512, 64), (256, 128, 32), (256, 256, 32)))
    )
    images = contents(sink, ImageContent)
    assert [device for device, _ in images] == list(files)
    for (_, image), number in zip(images, files.values(), strict=True):
        assert (image.size, image.part, image.offset, image.scalar) == ((256, 256, 1), (256, 256, 1), (0, 0, 0), 3)
        np.testing.assert_array_equal(image.axes, np.diag([1, 1, 5]))
        assert number is None or bytes(image.pixels) == picture(number)


@pytest.mark.parametrize("program", ["ImageMetaServer", "ImageDatabaseServer"])
def test_image_descriptions(examples: Path, program: str) -> None:
    arguments = (IMAGES,) if program == "ImageDatabaseServer" else ()
    with our_source(build(program, examples), *arguments) as (sink, send):
        send(query("GET_IMGMETA", "Scanner"))
        sink.wait_for(lambda c: bool(contents(c, ImageMetaContent)))
    ((device, content),) = contents(sink, ImageMetaContent)
    assert device == "Scanner"
    assert [(i.name, i.device, i.modality, i.patient_name, i.patient_id, i.size, i.scalar) for i in content.images] == [
        (f"IMAGE_DESCRIPTION_{n}", f"IMAGE_{n}", modality, f"PATIENT_{n}", f"PATIENT_ID_{n}", size, 5)
        for n, (modality, size) in enumerate((("CT", (512, 512, 64)), ("MRI", (256, 128, 32)), ("PET", (256, 256, 32))))
    ]
    times = (1.2345, 2.3456, 3.4567)
    if program == "ImageDatabaseServer":
        times = (1291739370.2345, 1291739380.3456, 1291739390.4567)
    for image, wanted in zip(content.images, times, strict=True):
        seconds, fraction = image.stamp
        assert seconds + fraction / 2**32 == pytest.approx(wanted, abs=1e-6)


def test_label_descriptions(examples: Path) -> None:
    with our_source(build("LabelMetaServer", examples)) as (sink, send):
        send(query("GET_LBMETA", "Scanner"))
        sink.wait_for(lambda c: bool(contents(c, LabelMetaContent)))
    ((device, content),) = contents(sink, LabelMetaContent)
    assert device == "MetaServer"
    assert content.labels == tuple(
        LabelMeta(f"LABEL_DESCRIPTION_{n}", f"LABEL_{n}", n + 1, rgba, size, f"IMAGE_{n}")
        for n, (rgba, size) in enumerate(((RED, (512, 512, 64)), (GREEN, (256, 128, 32)), (BLUE, (256, 256, 32))))
    )


# -------------------------------------------------------------------------------------------------------------- shapes


def test_point_server(examples: Path) -> None:
    with our_source(build("PointServer", examples)) as (sink, _):
        sink.wait_for(lambda c: bool(c.of(UnusedMessage)))
    assert contents(sink, PointContent)[0] == ("PointSender", PointContent(POINTS))
    message = sink.of(UnusedMessage)[0]
    assert (message.type_name, message.problem) == ("POINT", "")


def test_point_list_server(examples: Path, tmp_path: Path) -> None:
    """Its own list, and one that it reads from a file; asked twice over one connection."""
    (tmp_path / "points.txt").write_text("1 2 3\n-4.5 5 6\n")
    for arguments, wanted in (
        ((), ((10.0, 20.0, 30.0), (40.0, 50.0, 60.0), (70.0, 80.0, 90.0))),
        ((tmp_path / "points.txt",), ((1.0, 2.0, 3.0), (-4.5, 5.0, 6.0))),
    ):
        with our_source(build("PointListServer", examples), *arguments) as (sink, send):
            for _ in range(2):
                send(query("GET_POINT", "Any"))
            sink.wait_for(lambda c: len(contents(c, PointContent)) >= 2)
        content = PointContent(
            tuple(Point(f"POINT_{n}", xyz, "GROUP_0", BLUE, 75.0, "IMAGE_0") for n, xyz in enumerate(wanted))
        )
        assert contents(sink, PointContent) == [("PointSender", content)] * 2


def test_trajectory_server(examples: Path) -> None:
    """It says of each that it has a target only (the library's default), and gives an entry too."""
    with our_source(build("TrajectoryServer", examples)) as (sink, _):
        sink.wait_for(lambda c: bool(contents(c, TrajectoryContent)))
    rows = (
        ((10.0, 20.0, 30.0), (20.0, 20.0, 40.0), RED, 15.0),
        ((40.0, 50.0, 60.0), (20.0, 30.0, 10.0), GREEN, 45.0),
        ((70.0, 80.0, 90.0), (10.0, 40.0, 20.0), BLUE, 75.0),
    )
    wanted = TrajectoryContent(
        tuple(
            Trajectory(f"TRAJECTORY_{n}", entry, target, "GROUP_0", 2, rgba, diameter, "IMAGE_0")
            for n, (entry, target, rgba, diameter) in enumerate(rows)
        )
    )
    assert contents(sink, TrajectoryContent)[0] == ("TrajectorySender", wanted)


def test_polydata_server(examples: Path) -> None:
    with our_source(build("PolyDataServer", examples)) as (sink, send):
        send(query("GET_POLYDATA", "Cube"))
        sink.wait_for(lambda c: bool(contents(c, PolyDataContent)))
    ((device, content),) = contents(sink, PolyDataContent)
    assert device == "Cube"
    square = [(0, 0), (1, 0), (1, 1), (0, 1)]
    np.testing.assert_array_equal(content.points, [(x, y, z) for z in (0, 1) for x, y in square])
    assert [list(cell) for cell in split_cells(content.polygons)] == CUBE
    assert not len(content.vertices)
    assert not len(content.lines)
    assert not len(content.strips)
    ((kind, name, values),) = [(a.kind, a.name, a.values) for a in content.attributes]
    assert (kind & 0xFF, name) == (0, "attr")
    np.testing.assert_array_equal(values.reshape(-1), range(8))


# ----------------------------------------------------------------------------------------------- what is said in words


def test_capability_server(examples: Path) -> None:
    with our_source(build("CapabilityServer", examples)) as (sink, _):
        sink.wait_for(lambda c: bool(contents(c, CapabilityContent)))
    wanted = CapabilityContent(("TRANSFORM", "GET_IMAGE", "GET_LBMETA"))
    assert contents(sink, CapabilityContent)[0] == ("Device", wanted)


def test_status_server(examples: Path) -> None:
    with our_source(build("StatusServer", examples)) as (sink, _):
        sink.wait_for(lambda c: bool(c.of(StatusMessage)))
    text = "This is a test to send status message."
    assert contents(sink, StatusContent)[0] == ("Device", StatusContent(1, 128, "OK!", text))
    message = sink.of(StatusMessage)[0]
    assert (message.device, message.code, message.subcode, message.error_name, message.text) == (
        "Device", 1, 128, "OK!", text,
    )  # fmt: skip


def test_string_server(examples: Path) -> None:
    with our_source(build("StringServer", examples), 100) as (sink, _):
        sink.wait_for(lambda c: len(c.of(TextMessage)) >= 5)
    assert [m.text for m in sink.of(TextMessage)[:5]] == [
        "OpenIGTLink", "Network", "Communication", "Protocol", "Image Guided Therapy",
    ]  # fmt: skip


def test_string_echo_server(examples: Path) -> None:
    texts = ["hello", "a longer text with numbers 1 2 3", "Größe 3 µm"]
    with our_source(build("StringEchoServer", examples)) as (sink, send):
        for text in texts:
            send(encode_string("Us", text))
        sink.wait_for(lambda c: len(contents(c, StringContent)) >= len(texts))
    assert [(device, content.text) for device, content in contents(sink, StringContent)] == [
        ("StringEchoServer", text) for text in texts
    ]


# --------------------------------------------------------------------------------------------- what our source sends


def test_receiving_servers_read_what_our_source_sends(examples: Path, tmp_path: Path) -> None:
    """ReceiveServer takes ten types, SessionManagerServer three; both pass over the others and keep step."""
    matrix = np.array([[0.0, -1.0, 0.0, 12.5], [1.0, 0.0, 0.0, -3.0], [0.0, 0.0, 1.0, 99.0], [0.0, 0.0, 0.0, 1.0]])
    bound = BindContent(
        (
            BindChild("STRING", "Word", StringContent("bound", 3).pack()),
            BindChild("TRANSFORM", "Pose", encode_transform("Pose", matrix)[58:]),
        )
    )
    sent = (
        encode_content("Tracker", TrackingContent((TrackedTool("Needle", matrix, 2),))),
        encode_transform("NeedleToTracker", matrix, sender_ns=1_700_000_000_500_000_000),
        encode_position("P", (1, 2, 3), (0, 0, 0.5, 0.75)),
        encode_image("I", np.zeros((3, 4, 5), np.int16), np.diag([0.5, 0.25, 2, 1])),
        encode_status("S", 13, 7, "NotReady", "warming up"),
        encode_string("Text", "from our source"),
        encode_content("Pts", PointContent((Point("tip", (1, 2, 3), "group", (9, 8, 7, 6), 4.0, "CT"),))),
        encode_content(
            "Trj", TrajectoryContent((Trajectory("path", (1, 2, 3), (4, 5, 6), "group", 3, (9, 8, 7, 6), 4.0, "CT"),))
        ),
        encode_content("Cap", CapabilityContent(("TRANSFORM", "GET_IMAGE"))),
        encode_content("Bound", bound),
        encode_transform("End", np.diag([1, 1, 1, 1]) + np.array([[0, 0, 0, 77.0]] + 3 * [[0] * 4])),
    )
    image = ("Dimensions            : (5, 4, 3)", "Spacing               : (0.5, 0.25, 2)", "Scalar Type           : 4")
    in_full = (
        "Receiving : TDATA", "Time stamp: 1700000000.500000000", "0, -1, 0, 12.5", "1, 0, 0, -3", "0, 0, 1, 99",
        "position   = (1, 2, 3)", "quaternion = (0, 0, 0.5, 0.75)", *image,
        "Code      : 13", "SubCode   : 7", "Error Name: NotReady", "Status    : warming up",
        "Encoding: 3; String: from our source",
        "Name      : tip", "GroupName : group", "RGBA      : ( 9, 8, 7, 6 )",
        "Position  : ( 1.000000, 2.000000, 3.000000",
        "Owner     : CT", "Name      : path", "Entry Pt  : ( 1.000000, 2.000000, 3.000000",
        "Target Pt : ( 4.000000, 5.000000, 6.000000", "Typename #1: GET_IMAGE",
        "Message name: Word", "Encoding: 3; String: bound", "Message name: Pose",
    )  # fmt: skip
    session = (
        "0, -1, 0, 12.5", "Message Type: TRANSFORM", "Device Name: NeedleToTracker", "position   = (1, 2, 3)",
        "Message Type: POSITION", *image, "Message Type: IMAGE", "Device Name: End",
    )  # fmt: skip
    for program, wanted in (("ReceiveServer", in_full), ("SessionManagerServer", session)):
        log = tmp_path / program
        with our_source(build(program, examples), log=log) as (_, send):
            for raw in sent:
                send(raw)
            wait_for_lines(log, *wanted, "1, 0, 0, 77")
