"""Contents without an official sample, written byte by byte after the tables; and contents that are wrong."""

from __future__ import annotations

import struct
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest

from drivers.openigtlink.codec import decode, encode_content, encode_image, encode_transform
from drivers.openigtlink.contents import (
    DATA_TYPES,
    BindChild,
    BindContent,
    CapabilityContent,
    ClientInfoContent,
    ColorTableContent,
    CommandContent,
    CommandReplyContent,
    Content,
    EmptyContent,
    GetBindContent,
    ImageContent,
    ImageMeta,
    ImageMetaContent,
    LabelMeta,
    LabelMetaContent,
    NdarrayContent,
    Point,
    PointContent,
    PolyAttribute,
    PolyDataContent,
    PositionContent,
    QuaternionTool,
    QuaternionTrackingContent,
    QueryContent,
    ReplyContent,
    SensorContent,
    StartBindContent,
    StartTrackingContent,
    StartVideoContent,
    StatusContent,
    StringContent,
    TrackedTool,
    TrackingContent,
    Trajectory,
    TrajectoryContent,
    TransformContent,
    VideoContent,
    VideoMeta,
    VideoMetaContent,
    cell_array,
    query_of,
    query_type,
    split_cells,
    unpack_content,
    unpack_message,
)
from drivers.openigtlink.text import WireText
from drivers.openigtlink.wire import (
    ContentError,
    EncodeError,
    Limits,
    MetadataEntry,
    pack_message,
    parse_header,
    parse_message,
    repack_message,
)
from nav.geometry.poses import PoseStatus
from nav.runtime.messages import ImageMessage, PoseMessage, UnusedMessage


def name(text: str, size: int) -> bytes:
    return text.encode().ljust(size, b"\0")


def same_bytes(type_name: str, raw: bytes) -> Any:
    """The content, after checking that it packs to what it was read from."""
    content = unpack_content(type_name, raw)
    assert content is not None
    assert content.pack() == raw
    return content


# ---------------------------------------------------------------------------------------- after the tables of the spec

#: Needle, turned by a quarter about z; Stylus, turned by a half about x, with something in the reserved byte.
QTDATA = bytes.fromhex(
    "4e6565646c650000000000000000000000000000 02 00 3f800000 40000000 40400000 00000000 00000000 3f3504f3 3f3504f3"
    "5374796c75730000000000000000000000000000 03 07 41200000 41a00000 41f00000 3f800000 00000000 00000000 00000000"
)


def test_qtdata() -> None:
    first, second = same_bytes("QTDATA", QTDATA).tools
    assert (first.name, first.kind, first.reserved, first.position) == ("Needle", 2, 0, (1.0, 2.0, 3.0))
    np.testing.assert_allclose(first.matrix()[:3], [[0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3]], atol=1e-6)
    assert (second.name, second.kind, second.reserved) == ("Stylus", 3, 7)
    assert second.quaternion == (1.0, 0.0, 0.0, 0.0)


def test_qtdata_is_decoded_to_poses_with_their_statuses() -> None:
    raw = pack_message("QTDATA", "Tracker", QTDATA, version=2, metadata={"StylusStatus": "OUT_OF_VIEW"})
    message = decode(raw, source="s", sequence=1, arrival_ns=2)
    assert isinstance(message, PoseMessage)
    assert [(t.name, t.status) for t in message.tools] == [
        ("Needle", PoseStatus.OK),
        ("Stylus", PoseStatus.OUT_OF_VIEW),
    ]
    np.testing.assert_allclose(message.tools[0].matrix[:3, 3], (1, 2, 3))  # type: ignore[index]
    bad = QTDATA[:-16] + bytes(16)
    message = decode(pack_message("QTDATA", "T", bad), source="s", sequence=1, arrival_ns=2)
    assert isinstance(message, PoseMessage)
    assert [t.status for t in message.tools] == [PoseStatus.OK, PoseStatus.INVALID]
    assert "length of the quaternion" in message.tools[1].problem


def video(codec: bytes, bits: bytes, kind: int = 1, coordinate: int = 1) -> bytes:
    return b"".join(
        [
            struct.pack(">HB4sHB", 1, 2, codec, kind, coordinate),
            struct.pack(">3H", 4, 2, 1),
            struct.pack(">12f", 0.5, 0, 0, 0, 0.25, 0, 0, 0, 1, 10, 20, 30),
            struct.pack(">6H", 0, 0, 0, 4, 2, 1),
            bits,
        ]
    )


def test_video_container_keeps_any_bitstream() -> None:
    for codec in (b"I420", b"H264", b"VP90", b"X265", b"AV10", b"VP9 ", b"J\0\0\0"):
        content = same_bytes("VIDEO", video(codec, b"any bits", kind=0x102))
        assert content.codec == codec.rstrip(b"\0").decode()
        assert (content.frame_type, content.grey, content.endian) == (0x102, True, 2)
        assert (content.size, content.offset, content.part) == ((4, 2, 1), (0, 0, 0), (4, 2, 1))
        np.testing.assert_array_equal(content.axes, np.diag([0.5, 0.25, 1]))
        assert bytes(content.bitstream) == b"any bits"


def test_start_tracking() -> None:
    raw = struct.pack(">i32s", 50, b"Reference")
    assert len(raw) == 36
    for type_name in ("STT_TDATA", "STT_QTDATA"):
        assert same_bytes(type_name, raw) == StartTrackingContent(50, "Reference")
    packed = encode_content("Tracker", StartTrackingContent(20, "Patient"), type_name="STT_QTDATA")
    assert parse_header(packed).type_name == "STT_QTDATA"
    assert packed[58:] == struct.pack(">i", 20) + name("Patient", 32)


def test_start_video_in_both_of_its_sizes() -> None:
    assert same_bytes("STT_VIDEO", b"VP90\0\0\0\x32\1") == StartVideoContent("VP90", 50, 1)
    assert same_bytes("STT_VIDEO", b"H264\0\0\0\0") == StartVideoContent("H264", 0, None)


def test_bind_requests() -> None:
    body = struct.pack(">H", 2) + name("TRANSFORM", 12) + name("STRING", 12) + struct.pack(">H", 8) + b"Tip\0Note\0"[:8]
    wanted = (("TRANSFORM", "Tip"), ("STRING", "Note"))
    with pytest.raises(ContentError, match="each with a NUL"):
        unpack_content("GET_BIND", body)
    body = struct.pack(">H", 2) + name("TRANSFORM", 12) + name("STRING", 12) + struct.pack(">H", 10) + b"Tip\0Note\0\0"
    assert same_bytes("GET_BIND", body) == GetBindContent(wanted)
    unpadded = body[:26] + struct.pack(">H", 9) + b"Tip\0Note\0"  # as the C library writes it
    assert same_bytes("GET_BIND", unpadded).children == wanted
    assert same_bytes("STT_BIND", struct.pack(">Q", 10**8) + body) == StartBindContent(10**8, wanted)
    assert same_bytes("STT_BIND", struct.pack(">Q", 10**8)) == StartBindContent(10**8)
    assert same_bytes("STT_BIND", b"") == StartBindContent()
    assert same_bytes("GET_BIND", b"") == GetBindContent()
    assert same_bytes("RTS_BIND", b"") == ReplyContent(None)
    assert same_bytes("RTS_BIND", b"\1") == ReplyContent(1)


def test_bind_pads_odd_contents_and_keeps_what_stood_there() -> None:
    head = struct.pack(">H12sQ12sQH", 2, b"STRING", 7, b"BIND", 4, 6)
    raw = head + b"A\0B\0\0\0" + b"\0\3\0\3odd" + b"\xee" + b"\0\0\0\0"
    content = same_bytes("BIND", raw)
    assert [(c.type_name, c.name, bytes(c.content), c.padding) for c in content.children] == [
        ("STRING", "A", b"\0\3\0\3odd", 0xEE), ("BIND", "B", b"\0\0\0\0", 0),
    ]  # fmt: skip
    assert content.names == b"A\0B\0\0\0"
    inner = unpack_content("BIND", content.children[1].content)
    assert isinstance(inner, BindContent)
    assert inner.children == ()
    built = BindContent((BindChild("STRING", "A", b"\0\3\0\3odd"),)).pack()
    assert built == struct.pack(">H12sQH", 1, b"STRING", 7, 2) + b"A\0" + b"\0\3\0\3odd\0"
    assert same_bytes("BIND", struct.pack(">H12sQH", 1, b"STATUS", 0, 0)).children[0].name == ""


def test_status_and_image_of_version_2() -> None:
    body = struct.pack(">Hq20s", 7, -5, b"TIMEOUT") + b"no answer\0"
    index = struct.pack(">H HHI", 1, 4, 3, 2)
    raw = pack_message("STATUS", "Arm", b"")[:42]
    whole = struct.pack(">HHII", 12, len(index), 6, 77) + body + index + b"Siteab"
    from drivers.openigtlink.crc64 import crc64

    raw = b"\0\2" + raw[2:42] + struct.pack(">QQ", len(whole), crc64(whole)) + whole
    message = parse_message(raw)
    assert (message.message_id, message.metadata, message.content_offset) == (77, {"Site": "ab"}, 70)
    assert unpack_message(message) == StatusContent(7, -5, "TIMEOUT", "no answer")
    assert repack_message(message) == raw
    picture = encode_image("US", np.arange(6, dtype=np.uint8).reshape(2, 3), np.eye(4), version=2, message_id=3)
    again = parse_message(picture)
    assert repack_message(again, unpack_message(again).pack()) == picture  # type: ignore[union-attr]


IMAGE_PART = b"".join(
    [
        struct.pack(">HBBBB", 1, 2, 4, 1, 2),  # two components of int16, big-endian, LPS
        struct.pack(">3H", 10, 8, 4),
        struct.pack(">12f", -1, 0, 0, 0, -2, 0, 0, 0, 3, 0, 0, 0),
        struct.pack(">6H", 3, 2, 1, 2, 1, 2),
        struct.pack(">8h", *range(-4, 4)),
    ]
)


def test_big_endian_part_of_an_image_in_lps() -> None:
    content = same_bytes("IMAGE", IMAGE_PART)
    assert (content.size, content.offset, content.part) == ((10, 8, 4), (3, 2, 1), (2, 1, 2))
    message = decode(pack_message("IMAGE", "US", IMAGE_PART), source="s", sequence=1, arrival_ns=2)
    assert isinstance(message, ImageMessage)
    assert message.index_offset == (3, 2, 1)
    np.testing.assert_array_equal(message.array.ravel(), np.arange(-4, 4))
    assert message.array.shape == (2, 1, 2, 2)
    # In RAS the axes are +1, +2, +3; the first voxel of the whole lies half the size before the centre.
    np.testing.assert_allclose(message.mm_from_index[:3, :3], np.diag([1, 2, 3]))
    corner = -np.array([9, 7, 3]) / 2 * (1, 2, 3)
    np.testing.assert_allclose(message.mm_from_index[:3, 3], corner + np.array([3, 2, 1]) * (1, 2, 3))


def test_sensor_ndarray_and_colour_tables() -> None:
    nan = bytes.fromhex("7ff8000000000123")  # a quiet NaN with something in it
    sensor = same_bytes("SENSOR", struct.pack(">BBQ", 2, 9, 0x02C0100000000000) + struct.pack(">d", 1.5) + nan)
    assert (sensor.values[0], sensor.status, sensor.unit) == (1.5, 9, 0x02C0100000000000)
    assert np.isnan(sensor.values[1])
    for number, code, dtype in (
        (2, "b", "i1"), (3, "B", "u1"), (4, "h", "i2"), (5, "H", "u2"), (6, "i", "i4"), (7, "I", "u4"),
        (10, "f", "f4"), (11, "d", "f8"),
    ):  # fmt: skip
        content = same_bytes("NDARRAY", struct.pack(f">BB2H6{code}", number, 2, 2, 3, *range(6)))
        assert content.array.dtype == dtype
        np.testing.assert_array_equal(content.array, np.arange(6).reshape(2, 3))
    pair = same_bytes("NDARRAY", struct.pack(">BBH4d", 13, 1, 2, 1, 2, 3, 4))
    np.testing.assert_array_equal(pair.array, [1 + 2j, 3 + 4j])
    assert same_bytes("NDARRAY", struct.pack(">BBi", 6, 0, -7)).array == -7
    assert same_bytes("NDARRAY", struct.pack(">BB2H", 3, 2, 5, 0)).array.shape == (5, 0)
    wide = same_bytes("COLORT", b"\5\5" + np.arange(65536, dtype=">u2").tobytes())
    np.testing.assert_array_equal(wide.table, np.arange(65536))
    colours = same_bytes("COLORTABLE", b"\3\x13" + bytes(range(256)) * 3)
    assert colours.table.shape == (256, 3)
    np.testing.assert_array_equal(colours.table[1], (3, 4, 5))
    raw = encode_content("Table", colours, type_name="COLORTABLE")
    assert (parse_header(raw).type_name, raw[58:60]) == ("COLORTABLE", b"\3\x13")


def test_polydata_with_every_kind_of_cell_and_attribute() -> None:
    points = struct.pack(">12f", *range(12))
    cells = [
        struct.pack(">4I", 1, 0, 1, 3),
        struct.pack(">6I", 2, 0, 1, 2, 1, 2),
        struct.pack(">9I", 3, 0, 1, 2, 4, 0, 1, 2, 3),
        struct.pack(">5I", 4, 0, 1, 2, 3),
    ]
    counts = (2, 2, 2, 1)
    kinds = [
        (0x00, 2),
        (0x01, 3),
        (0x02, 3),
        (0x03, 9),
        (0x04, 4),
        (0x10, 1),
        (0x11, 3),
        (0x12, 3),
        (0x13, 9),
        (0x14, 4),
    ]
    heads = b"".join(struct.pack(">BBI", kind, n, 2) for kind, n in kinds)
    names = b"".join(f"a{n}".encode() + b"\0" for n in range(9)) + b"\xc3\xa9!\0"
    assert len(names) % 2 == 1
    data = b"".join(struct.pack(f">{2 * n}f", *range(2 * n)) for _, n in kinds)
    sizes = [n for pair in zip(counts, map(len, cells), strict=True) for n in pair]
    raw = struct.pack(">10I", 4, *sizes, len(kinds)) + points + b"".join(cells) + heads + names + b"\x55" + data
    content = same_bytes("POLYDATA", raw)
    assert split_cells(content.vertices) == [[0], [3]]
    assert split_cells(content.lines) == [[0, 1], [1, 2]]
    assert split_cells(content.polygons) == [[0, 1, 2], [0, 1, 2, 3]]
    assert split_cells(content.strips) == [[0, 1, 2, 3]]
    assert [(a.kind, a.values.shape[1]) for a in content.attributes] == kinds
    assert (content.attributes[9].name, content.padding) == ("é!", 0x55)
    np.testing.assert_array_equal(content.attributes[3].values[1], np.arange(9, 18))


def test_cells_longer_than_one_piece_of_the_walk() -> None:
    points = np.zeros((70_000, 3), np.float32)
    cells = [[0], list(range(70_000)), [1, 2], [], [3] * 65_530, [4, 5, 6], *([[7]] * 70_000), [8, 9]]
    raw = PolyDataContent(points, lines=cell_array(cells)).pack()
    assert int.from_bytes(raw[12:16], "big") == len(cells)
    assert split_cells(same_bytes("POLYDATA", raw).lines) == cells
    broken = bytearray(raw)
    broken[-4:] = (70_000).to_bytes(4, "big")
    with pytest.raises(ContentError, match="point index") as caught:
        unpack_content("POLYDATA", bytes(broken))
    assert caught.value.offset == 58 + len(raw) - 4


def test_what_guidance_does_not_use_is_not_taken_apart() -> None:
    broken = pack_message("POLYDATA", "D", b"\xff" * 40)
    message = decode(broken, source="s", sequence=0, arrival_ns=0)
    assert isinstance(message, UnusedMessage)
    assert (message.type_name, message.problem) == ("POLYDATA", "")


def test_cells_from_an_array_and_from_lists() -> None:
    np.testing.assert_array_equal(cell_array(np.array([[0, 1, 2], [2, 1, 3]])), [3, 0, 1, 2, 3, 2, 1, 3])
    np.testing.assert_array_equal(cell_array([[0, 1], [2], []]), [2, 0, 1, 1, 2, 0])
    assert cell_array(np.zeros((0, 3), int)).tolist() == cell_array([]).tolist() == []
    for wrong in (np.array([[0, -1, 2]]), [[0, 1 << 32]], np.zeros((2, 2)), np.zeros(3, int)):
        with pytest.raises(EncodeError, match="POLYDATA"):
            cell_array(wrong)  # type: ignore[arg-type]


def test_text_in_other_character_sets_and_in_none() -> None:
    for raw, text, encoding in (
        (b"\0\4\0\2\xe9\xe8", "éè", 4),
        (b"\3\xf5\0\4\0A\0\xe9", "Aé", 1013),
        (b"\0\x6a\0\2\xc3\xa9", "é", 106),
    ):
        content = same_bytes("STRING", raw)
        assert (content.text, content.encoding, type(content.text)) == (text, encoding, str)
    for raw, text in ((b"\0\3\0\2\xc3\xa9", "é"), (b"\0\3\0\1\xff", "�"), (b"\x23\x28\0\1A", "A")):
        content = same_bytes("STRING", raw)
        assert content.text == text
        assert isinstance(content.text, WireText)
    assert same_bytes("CLIENTINFO", b"\0\3\0\4<a/>") == ClientInfoContent("<a/>", 3)
    assert StringContent("é", 4).pack() == b"\0\4\0\1\xe9"
    with pytest.raises(EncodeError, match="use 106"):
        StringContent("é", 3).pack()
    with pytest.raises(EncodeError, match="character set 9000"):
        StringContent("A", 9000).pack()


def test_command_and_its_answer() -> None:
    raw = struct.pack(">I128sHI", 9, b"StartRecording", 3, 4) + b"<x/>"
    assert same_bytes("COMMAND", raw) == CommandContent(9, "StartRecording", "<x/>", 3)
    assert same_bytes("RTS_COMMAND", raw) == CommandReplyContent(9, "StartRecording", "<x/>", 3)
    assert CommandContent(9, "StartRecording", "<x/>").pack() == raw


def test_fields_with_junk_behind_the_nul_go_out_as_they_came() -> None:
    junk = b"Tip\0junk\xff\0more".ljust(20, b"\0")
    tool = junk + b"\2\0" + struct.pack(">12f", 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0)
    assert same_bytes("TDATA", tool).tools[0].name == "Tip"
    assert same_bytes("CAPABILITY", b"IMAGE\0\0\0\0\0\0x").types == ("IMAGE",)
    assert same_bytes("STATUS", struct.pack(">Hq20s", 1, 0, b"a\0b") + b"text\0more\0").text == "text"
    assert same_bytes("STATUS", struct.pack(">Hq20s", 1, 0, b"") + b"no nul").text == "no nul"
    assert same_bytes("STATUS", struct.pack(">Hq20s", 1, 0, b"")).text == ""
    point = b"P\0x".ljust(64, b"\0") + b"\xff" * 32 + bytes(4) + struct.pack(">4f", 1, 2, 3, 4) + bytes(20)
    assert same_bytes("POINT", point).points[0].group == "�" * 32


# ------------------------------------------------------------------------------------------------------------- queries


@pytest.mark.parametrize("data_type", DATA_TYPES)
@pytest.mark.parametrize("prefix", ["GET", "STT", "STP", "RTS"])
def test_every_query_of_every_type(prefix: str, data_type: str) -> None:
    type_name = query_type(prefix, data_type)
    assert len(type_name) <= 12
    assert query_of(type_name) == (prefix, data_type)
    if type_name == "RTS_COMMAND":
        return  # has a content of its own
    if type_name in ("STT_TDATA", "STT_QTDATA"):
        content: Content = StartTrackingContent(50, "Patient")
    elif type_name == "STT_VIDEO":
        content = StartVideoContent()
    elif type_name == "GET_BIND":
        content = GetBindContent()
    elif type_name == "STT_BIND":
        content = StartBindContent(5)
    else:
        content = ReplyContent(1) if prefix == "RTS" else QueryContent()
    raw = encode_content("", content, type_name=type_name)
    message = parse_message(raw)
    assert unpack_message(message) == content
    assert isinstance(decode(raw, source="s", sequence=0, arrival_ns=0), UnusedMessage)


@pytest.mark.parametrize(
    ("type_name", "data_type"),
    [
        ("GET_TRANS", "TRANSFORM"), ("GET_TRANSFOR", "TRANSFORM"), ("STT_TRANSFOR", "TRANSFORM"),
        ("GET_CAPABIL", "CAPABILITY"), ("GET_CAPABILI", "CAPABILITY"), ("GET_COLORT", "COLORT"),
        ("GET_COLORTAB", "COLORTABLE"), ("GET_VMETA", "VIDEOMETA"), ("GET_VIDEOMET", "VIDEOMETA"),
        ("GET_POSITION", "POSITION"), ("RTS_POLYDATA", "POLYDATA"), ("STP_IMAGE", "IMAGE"),
    ],
)  # fmt: skip
def test_shortened_names_of_queries(type_name: str, data_type: str) -> None:
    assert query_of(type_name) == (type_name[:3], data_type)
    assert unpack_content(type_name, b"") is not None


def test_no_queries() -> None:
    for type_name in ("TRANSFORM", "GET_", "GET_NOTHING", "ASK_IMAGE", "GET", "get_IMAGE"):
        assert query_of(type_name) is None
        if type_name != "TRANSFORM":
            assert unpack_content(type_name, b"12345") is None
    for wrong in (("ASK", "IMAGE"), ("GET", "NOTHING")):
        with pytest.raises(EncodeError, match="allowed: GET, STT, STP, RTS"):
            query_type(*wrong)


def test_start_with_a_resolution_and_queries_without() -> None:
    assert same_bytes("STT_POLYDATA", struct.pack(">Q", 10**8)) == QueryContent(10**8)
    assert same_bytes("STT_SENSOR", b"") == QueryContent(None)
    for type_name in ("GET_IMAGE", "STP_TDATA"):
        with pytest.raises(ContentError, match="0 bytes"):
            unpack_content(type_name, bytes(8))


@pytest.mark.parametrize("type_name", DATA_TYPES)
def test_an_empty_body_says_there_is_no_such_data(type_name: str) -> None:
    content = unpack_content(type_name, b"")
    assert content is not None
    assert content.pack() == b""
    raw = encode_content("Device", content, type_name=type_name)
    assert parse_header(raw).body_size == 0
    message = decode(raw, source="s", sequence=0, arrival_ns=0)
    if isinstance(content, EmptyContent):
        assert isinstance(message, UnusedMessage)
        assert "no such data" in message.problem
    else:
        assert type_name in ("TDATA", "QTDATA", "IMGMETA", "LBMETA", "VIDEOMETA", "POINT", "TRAJ", "CAPABILITY")


# -------------------------------------------------------------------------------------------------- wrong in its bytes

POLY = struct.pack(">10I", 1, 1, 8, 0, 0, 0, 0, 0, 0, 0) + bytes(12) + struct.pack(">2I", 1, 0)
ATTRIBUTE = struct.pack(">10I", *[0] * 9, 1)


@pytest.mark.parametrize(
    ("type_name", "content", "offset", "what"),
    [
        ("QTDATA", bytes(51), 58, "multiple of 50"),
        ("TRANSFORM", bytes(49), 58, "48 bytes"),
        ("POSITION", bytes(13), 58, "12, 24 or 28"),
        ("POINT", bytes(137), 58, "multiple of 136"),
        ("TRAJ", bytes(149), 58, "multiple of 150"),
        ("IMGMETA", bytes(261), 58, "multiple of 260"),
        ("LBMETA", bytes(115), 58, "multiple of 116"),
        ("VIDEOMETA", bytes(323), 58, "multiple of 322"),
        ("CAPABILITY", bytes(13), 58, "multiple of 12"),
        ("STATUS", bytes(29), 58, "30 bytes"),
        ("STRING", b"\0\3\0\5abc", 60, "STRING length"),
        ("CLIENTINFO", b"\0\3\0\1abc", 60, "CLIENTINFO length"),
        ("COMMAND", bytes(137), 58, "138 bytes"),
        ("COMMAND", bytes(134) + b"\xff\xff\xff\xff", 192, "COMMAND length"),
        ("RTS_COMMAND", bytes(139), 192, "RTS_COMMAND length"),
        ("STT_TDATA", bytes(35), 58, "36 bytes"),
        ("STT_QTDATA", bytes(37), 58, "36 bytes"),
        ("STT_VIDEO", bytes(10), 58, "8 or 9"),
        ("RTS_IMAGE", bytes(2), 58, "1 byte"),
        ("STT_IMAGE", bytes(7), 58, "8"),
        ("VIDEO", bytes(75), 58, "76 bytes"),
        ("VIDEO", b"\0\2" + bytes(74), 58, "format version"),
        ("VIDEO", video(b"I420", b"")[:10] + bytes(6) + video(b"I420", b"")[16:], 68, "VIDEO size"),
        ("VIDEO", video(b"I420", b"")[:70] + struct.pack(">3H", 5, 2, 1), 122, "VIDEO part"),
        ("IMAGE", IMAGE_PART[:-1], 130, "IMAGE pixels"),
        ("IMAGE", IMAGE_PART + b"\0", 130, "IMAGE pixels"),
        ("IMAGE", IMAGE_PART[:60] + struct.pack(">3H", 9, 2, 1) + IMAGE_PART[66:], 118, "IMAGE part"),
        ("SENSOR", bytes(9), 58, "10 bytes"),
        ("SENSOR", b"\xff" + bytes(17), 58, "length of the array"),
        ("NDARRAY", b"\3", 58, "2 bytes"),
        ("NDARRAY", b"\x09\0", 58, "scalar type"),
        ("NDARRAY", b"\3\xff" + b"\xff" * 510, 59, "dimensions"),
        ("NDARRAY", b"\x0d\x40" + b"\xff" * 128, 188, "NDARRAY data"),
        ("NDARRAY", b"\3\2\0\2\0", 58, "6 bytes"),
        ("NDARRAY", b"\3\1\0\2\0\0\0", 62, "NDARRAY data"),
        ("COLORT", b"\4\3" + bytes(256), 58, "index type"),
        ("COLORT", b"\3\4" + bytes(256), 59, "map type"),
        ("COLORTABLE", b"\3\x13" + bytes(256), 58, "770 bytes"),
        ("POLYDATA", bytes(39), 58, "40 bytes"),
        ("POLYDATA", b"\xff" * 40, 58, "POLYDATA points"),
        ("POLYDATA", bytes(4) + b"\xff\xff\xff\xff\xff\xff\xff\xfc" + bytes(28), 66, "POLYDATA vertices"),
        ("POLYDATA", bytes(20) + b"\0\0\0\1\0\0\0\7" + bytes(12), 82, "multiple of 4"),
        ("POLYDATA", POLY[:7] + b"\2" + POLY[8:], 62, "number of vertices"),
        ("POLYDATA", POLY[:-1] + b"\1", 114, "point index"),
        ("POLYDATA", POLY[:-5] + b"\2" + POLY[-4:], 110, "points of a cell"),
        ("POLYDATA", POLY[:-8] + b"\xff" * 8, 110, "points of a cell"),
        ("POLYDATA", POLY + b"\0", 118, "nothing behind"),
        ("POLYDATA", bytes(36) + b"\xff\xff\xff\xff", 94, "number of attributes"),
        ("POLYDATA", bytes(38) + b"\xff\xff" + bytes(7), 94, "number of attributes"),
        ("POLYDATA", bytes(37) + b"\1\0\0" + bytes(7 << 16), 94, "65535 or less"),
        ("POLYDATA", ATTRIBUTE + b"\5\1\0\0\0\0n\0", 98, "attribute type"),
        ("POLYDATA", ATTRIBUTE + b"\1\2\0\0\0\0n\0", 99, "components"),
        ("POLYDATA", ATTRIBUTE + b"\0\0\0\0\0\0n\0", 99, "components"),
        ("POLYDATA", ATTRIBUTE + b"\0\1\xff\xff\xff\xffn\0", 100, "length of attribute"),
        ("POLYDATA", ATTRIBUTE + b"\0\1\0\0\0\0" + b"n" * 300, 104, "attribute name"),
        ("POLYDATA", ATTRIBUTE + b"\0\1\0\0\0\0nn\0", 107, "padding"),
        ("BIND", b"\0", 58, "2 bytes"),
        ("BIND", b"\xff\xff\0\0", 58, "number of children"),
        ("BIND", struct.pack(">H12sQH", 1, b"BIND", 1 << 63, 2) + b"A\0", 72, "size of child 0"),
        ("BIND", struct.pack(">H12sQH", 1, b"BIND", 1, 2) + b"A\0x", 85, "padding of child 0"),
        ("BIND", struct.pack(">H12sQH", 1, b"BIND", 0, 0xFFFF) + b"A\0", 80, "size of the names"),
        ("BIND", struct.pack(">H12sQH", 1, b"BIND", 0, 2) + b"AB", 82, "BIND names"),
        ("BIND", struct.pack(">H12sQH", 1, b"BIND", 0, 2) + b"A\0more", 84, "nothing behind"),
        ("GET_BIND", b"\0", 58, "BIND request"),
        ("GET_BIND", b"\0\2\0\0", 58, "number of children"),
        ("STT_BIND", bytes(7), 58, "8 bytes"),
        ("STT_BIND", bytes(9), 66, "BIND request"),
        ("GET_BIND", b"\0\0\0\0x", 62, "nothing behind"),
    ],
)  # fmt: skip
def test_contents_that_contradict_their_bytes(type_name: str, content: bytes, offset: int, what: str) -> None:
    with pytest.raises(ContentError, match=what) as caught:
        unpack_content(type_name, content)
    assert caught.value.offset == offset
    # Behind an extended header the same field stands further on.
    message = parse_message(pack_message(type_name, "D", content, version=2, extension=b"12345"))
    with pytest.raises(ContentError, match=what) as caught:
        unpack_message(message)
    assert caught.value.offset == offset + 17


@pytest.mark.parametrize(
    ("type_name", "content"),
    [
        ("NDARRAY", b"\x0d\x40" + b"\xff" * 128),
        ("POLYDATA", struct.pack(">10I", *[0x0FFFFFFF] * 10)),
        ("POLYDATA", bytes(36) + b"\xff\xff\xff\xff" + bytes(1000)),
        ("BIND", b"\xff\xff" + bytes(2000)),
        ("IMAGE", struct.pack(">HBBBB3H12f3H3H", 1, 255, 11, 1, 1, *[65535] * 3, *[0] * 15, *[65535] * 3)),
        ("SENSOR", b"\xff" + bytes(100)),
        ("COMMAND", bytes(134) + b"\xff\xff\xff\xff"),
    ],
)  # fmt: skip
def test_huge_numbers_make_no_room(type_name: str, content: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ContentError):
            unpack_content(type_name, content)
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_bind_in_bind_in_bind_costs_no_recursion() -> None:
    body = b""
    for _ in range(5000):
        content = BindContent((BindChild("BIND", "", body),) if body else ()).pack()
        body = content
    content = unpack_content("BIND", body)
    depth = 0
    while isinstance(content, BindContent) and content.children:
        content = unpack_content("BIND", content.children[0].content)
        depth += 1
    assert depth == 4999 > sys.getrecursionlimit()


def test_every_covered_type_has_a_limit_below_that_of_any_other() -> None:
    limits = Limits()
    assert {*DATA_TYPES, "CLIENTINFO", "RTS_COMMAND", "GET_BIND", "STT_BIND"} <= limits.decoded.keys()
    assert max(limits.decoded.values()) < limits.skipped


# ----------------------------------------------------------------------------------------------- what cannot be sent

MATRIX = np.eye(4)
HUGE = 1e39
IMAGE = ImageContent(1, 3, 2, 1, (2, 2, 1), np.eye(3), np.zeros(3), (0, 0, 0), (2, 2, 1), memoryview(bytes(4)))
VIDEO = VideoContent("I420", 1, 2, 1, (2, 2, 1), np.eye(3), np.zeros(3), (0, 0, 0), (2, 2, 1), memoryview(b""))


def with_(content: Any, **values: Any) -> Any:
    from dataclasses import replace

    return replace(content, **values)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (TransformContent(np.full((4, 4), np.nan)), "last row"),
        (TransformContent(np.diag([1, 1, np.nan, 1])), "finite"),
        (TransformContent(np.diag([1, 1, HUGE, 1])), "32-bit"),
        (TransformContent(np.eye(3)), "shape"),
        (TransformContent(np.diag([1, 1, 1, 2])), "last row"),
        (PositionContent((1.0, 2.0, float("inf"))), "finite"),
        (PositionContent((1.0, 2.0, HUGE)), "32-bit"),
        (PositionContent((1.0, 2.0, 3.0), (0.0,)), "quaternion parts"),
        (TrackingContent((TrackedTool("x" * 21, MATRIX),)), "limit 20 bytes"),
        (TrackingContent((TrackedTool("a\0b", MATRIX),)), "NUL"),
        (TrackingContent((TrackedTool("a", MATRIX, 5),)), "kind 5"),
        (TrackingContent((TrackedTool("a", MATRIX, 2, 256),)), "256"),
        (TrackingContent((TrackedTool("a", np.diag([1, 1, HUGE, 1])),)), "too large"),
        (QuaternionTrackingContent((QuaternionTool("a", (0, 0, 0), (0, 0, 0, 1), 0),)), "kind 0"),
        (QuaternionTrackingContent((QuaternionTool("a", (0, 0, 0), (0, 0, 1)),)), "expected 4"),  # type: ignore[arg-type]
        (QuaternionTrackingContent((QuaternionTool("a", (0, 0, HUGE), (0, 0, 0, 1)),)), "32-bit"),
        (with_(IMAGE, components=0), "components"),
        (with_(IMAGE, scalar=9), "scalar type 9"),
        (with_(IMAGE, part=(3, 2, 1)), "within"),
        (with_(IMAGE, size=(2, 2)), "expected 3"),
        (with_(IMAGE, size=(2, 2, 70000)), "65535"),
        (with_(IMAGE, pixels=memoryview(bytes(5))), "5 bytes of pixels"),
        (with_(IMAGE, axes=np.full((3, 3), np.nan)), "finite"),
        (with_(IMAGE, endian=300), "300"),
        (with_(VIDEO, codec="TOOLONG"), "limit 4"),
        (with_(VIDEO, part=(2, 2, 2)), "within"),
        (with_(VIDEO, version=2), "format version 2"),
        (VideoMetaContent((VideoMeta("v", "d", "", "", 70000, 1.0, (1, 1, 1), np.eye(3), np.zeros(3)),)), "70000"),
        (VideoMetaContent((VideoMeta("v", "d", "", "", 1, np.nan, (1, 1, 1), np.eye(3), np.zeros(3)),)), "finite"),
        (StartVideoContent("H264", -1), "STT_VIDEO"),
        (StartVideoContent("H264", 1, 256), "256"),
        (ImageMetaContent((ImageMeta("n" * 65, "d"),)), "limit 64"),
        (ImageMetaContent((ImageMeta("n", "d", stamp=(1 << 32, 0)),)), "IMGMETA"),
        (LabelMetaContent((LabelMeta("n", "d", 256),)), "256"),
        (LabelMetaContent((LabelMeta("n", "d", 1, owner="o" * 21),)), "limit 20"),
        (StatusContent(70000), "u16"),
        (StatusContent(1, 1 << 63), "i64"),
        (StatusContent(1, 0, "e" * 21), "limit 20"),
        (StatusContent(1, 0, "", "a\0b"), "NUL"),
        (StringContent("x" * 65536), "65535"),
        (StringContent("\ud800"), "surrogate"),
        (CommandContent(1 << 32, "n"), "COMMAND"),
        (CommandContent(1, "n" * 129), "limit 128"),
        (CapabilityContent(("X" * 13,)), "limit 12"),
        (PointContent((Point("n", (0, 0, np.nan)),)), "finite"),
        (PointContent((Point("n", (0, 0)),)), "expected 3"),  # type: ignore[arg-type]
        (PointContent((Point("n", (0, 0, 0), rgba=(0, 0, 0, 256)),)), "256"),
        (TrajectoryContent((Trajectory("n", (0, 0, 0), (0, 0, HUGE)),)), "32-bit"),
        (TrajectoryContent((Trajectory("n", (0, 0, 0), (0, 0, 0), kind=4),)), "kind 4"),
        (SensorContent(np.zeros(256)), "255"),
        (SensorContent(np.zeros(1), unit=1 << 64), "SENSOR"),
        (NdarrayContent(np.zeros(2, bool)), "bool"),
        (NdarrayContent(np.zeros((1, 65536), np.uint8)), "65535"),
        (ColorTableContent(np.zeros(255, np.uint8)), "256 or 65536"),
        (ColorTableContent(np.zeros((256, 3), np.uint16)), "256 or 65536"),
        (PolyDataContent(np.zeros((2, 2), np.float32)), "(n, 3)"),
        (PolyDataContent(np.full((2, 3), np.nan, np.float32)), "finite"),
        (PolyDataContent(np.zeros((2, 3), np.float32), polygons=cell_array([[0, 1, 2]])), "point index 2"),
        (PolyDataContent(np.zeros((2, 3), np.float32), lines=np.array([3, 1], np.uint32)), "points of a cell 3"),
        (PolyDataContent(np.zeros((2, 3), np.float32), lines=np.zeros((1, 3), np.uint32)), "cell_array"),
        (PolyDataContent(np.zeros((0, 3)), attributes=(PolyAttribute(7, "a", np.zeros((1, 1))),)), "attribute type"),
        (PolyDataContent(np.zeros((0, 3)), attributes=(PolyAttribute(1, "a", np.zeros((1, 2))),)), "components"),
        (PolyDataContent(np.zeros((0, 3)), attributes=(PolyAttribute(0, "a" * 256, np.zeros((1, 2))),)), "255"),
        (PolyDataContent(np.zeros((0, 3)), padding=256), "byte"),
        (BindContent((BindChild("", "n", b""),)), "no type"),
        (BindContent((BindChild("IMAGE", "n" * 21, b""),)), "limit 20"),
        (BindContent((BindChild("IMAGE", "n", b"", 300),)), "byte"),
        (BindContent((BindChild("IMAGE", "n", b""),) * 65536), "limit 65535"),
        (StartBindContent(None, (("IMAGE", "n"),)), "resolution"),
        (StartBindContent(-1), "64 bits"),
        (QueryContent(1 << 64), "64 bits"),
        (StartTrackingContent(1 << 31), "32 bits"),
        (StartTrackingContent(1, "c" * 33), "limit 32"),
        (ReplyContent(256), "byte"),
    ],
)  # fmt: skip
def test_what_cannot_be_sent_is_refused(content: Content, what: str) -> None:
    with pytest.raises(EncodeError) as caught:
        content.pack()
    assert what in str(caught.value)


def test_a_content_goes_under_its_own_types_only() -> None:
    for content, type_name in (
        (QueryContent(), None),
        (QueryContent(), "IMAGE"),
        (ReplyContent(), "GET_IMAGE"),
        (StringContent("x"), "CLIENTINFO"),
        (PositionContent((0, 0, 0)), "TRANSFORM"),
        (EmptyContent(), "GET_IMAGE"),
        (TransformContent(np.eye(4)), "UNKNOWN"),
    ):
        with pytest.raises(EncodeError, match="type_name"):
            encode_content("D", content, type_name=type_name)
    assert parse_header(encode_content("D", PositionContent((0, 0, 0)), type_name="QTRANS")).type_name == "QTRANS"


# --------------------------------------------------------------------------------------------- headers and metadata


def test_headers_go_out_as_they_came() -> None:
    raw = bytearray(pack_message("IMAGE", "Dev", b"", stamp=(3, 0xFFFFFFFF)))
    raw[2:14] = b"IMAGE  \0junk"
    raw[14:34] = b"Dev\0\xffrest of a longer"[:20].ljust(20, b"\1")
    message = parse_message(bytes(raw))
    assert (message.type_name, message.device) == ("IMAGE", "Dev")
    assert repack_message(message) == bytes(raw)
    plain = parse_message(pack_message("IMAGE", "Dev", b""))  # the same text, and no junk
    assert repack_message(plain) == pack_message("IMAGE", "Dev", b"")
    for bad in (b"\xff\xfe" + bytes(18), b"\xc3\xa9" * 10, b"\xe2\x82" * 10):
        raw[14:34] = bad
        assert repack_message(parse_message(bytes(raw))) == bytes(raw)


def test_a_name_with_junk_does_not_stand_in_for_the_plain_one() -> None:
    junk = WireText("DeviceA", b"DeviceA\0junk".ljust(20, b"\0"))
    for version in (1, 2):
        raw = encode_transform(junk, MATRIX, version=version)
        assert parse_header(raw).device == "DeviceA"
        again = encode_transform("DeviceA", MATRIX, version=version)
        assert again[14:34] == b"DeviceA".ljust(20, b"\0")


def test_metadata_goes_out_as_it_came() -> None:
    entries = [
        MetadataEntry("Key", "first", 3), MetadataEntry("Key", "second", 106), MetadataEntry("", "", 3),
        MetadataEntry("Latin", "é", 4), MetadataEntry("Odd", WireText("?", b"\xff\0\x01"), 9000),
        MetadataEntry(WireText("k", b"\xffkey"), "v", 3), MetadataEntry("wide", "Ω", 1013),
    ]  # fmt: skip
    raw = pack_message("STRING", "D", b"\0\3\0\0", version=2, metadata=entries, extension=b"more", message_id=7)
    message = parse_message(raw)
    assert repack_message(message) == raw
    assert message.metadata["Key"] == "second"
    assert [e.encoding for e in message.entries] == [3, 106, 3, 4, 9000, 3, 1013]
    assert (message.entries[3].value, message.entries[6].value) == ("é", "Ω")
    assert (message.extension, message.content_offset, message.message_id) == (b"more", 74, 7)
    bare = pack_message("STRING", "D", b"\0\3\0\0", version=2, has_index=False)
    assert len(bare) == 58 + 12 + 4
    assert repack_message(parse_message(bare)) == bare


def test_what_a_header_cannot_hold_is_refused() -> None:
    for values, what in (
        ({"stamp": (1 << 32, 0)}, "32 bits"),
        ({"version": 2, "extension": bytes(65524)}, "65523"),
        ({"version": 2, "metadata": {"a": "b"}, "has_index": False}, "index"),
        ({"version": 2, "metadata": [MetadataEntry("a", "b", 70000)]}, "70000"),
        ({"version": 2, "metadata": [MetadataEntry("a", WireText("b", b"b"), 70000)]}, "65535"),
        ({"version": 3}, "1 or 2"),
    ):
        with pytest.raises(EncodeError, match=what):
            pack_message("STRING", "D", b"", **values)  # type: ignore[arg-type]
    for type_name in ("", "TYPE NAME", "ÄÖ", "X" * 13):
        with pytest.raises(EncodeError):
            pack_message(type_name, "D", b"")
