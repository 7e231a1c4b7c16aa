"""Codec: the reference messages, names, statuses, RAS, and content that is wrong."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivers.openigtlink import codec
from drivers.openigtlink.codec import (
    decode,
    encode_image,
    encode_position,
    encode_status,
    encode_string,
    encode_tdata,
    encode_transform,
)
from drivers.openigtlink.contents import (
    ImageContent,
    TrackedTool,
    unpack_content,
)
from drivers.openigtlink.framing import Framer
from drivers.openigtlink.wire import (
    ContentError,
    EncodeError,
    WireError,
    ns_from_stamp,
    pack_message,
    parse_message,
    stamp_from_ns,
)
from nav.config.room import ImageStreamConfig, SourceConfig, ToolStreamConfig
from nav.geometry.poses import PoseStatus
from nav.runtime.messages import (
    ImageMessage,
    Message,
    PoseMessage,
    StatusMessage,
    TextMessage,
    UnusedMessage,
)

COVERED = {"TRANSFORM", "POSITION", "TDATA", "IMAGE", "STATUS", "STRING"}
TURNED = np.array([[0.0, -1.0, 0.0, 10.0], [1.0, 0.0, 0.0, -20.0], [0.0, 0.0, 1.0, 30.5], [0.0, 0.0, 0.0, 1.0]])


def to_message(raw: bytes, options: SourceConfig | None = None) -> Message:
    assert Framer().feed(raw) == [raw], "not one well-framed message"
    return decode(raw, source="tracker", sequence=7, arrival_ns=99, options=options)


def pose(raw: bytes, options: SourceConfig | None = None) -> PoseMessage:
    message = to_message(raw, options)
    assert isinstance(message, PoseMessage), message
    return message


def image(raw: bytes, options: SourceConfig | None = None) -> ImageMessage:
    message = to_message(raw, options)
    assert isinstance(message, ImageMessage), message
    return message


def unused(raw: bytes, options: SourceConfig | None = None) -> UnusedMessage:
    message = to_message(raw, options)
    assert isinstance(message, UnusedMessage), message
    return message


def source(**values: Any) -> SourceConfig:
    return SourceConfig(name="tracker", **values)


# ------------------------------------------------------------------------------------------------- reference messages


@pytest.fixture(scope="module")
def fixtures(request: pytest.FixtureRequest) -> list[tuple[str, bytes, dict[str, Any]]]:
    folder: Path = request.getfixturevalue("shared_data") / "openigtlink"
    decoded = json.loads((folder / "decoded.json").read_text())
    assert len(decoded) == 24
    return [(name, (folder / name).read_bytes(), values) for name, values in decoded.items()]


def test_encoders_make_the_reference_messages_from_decoded_ones(
    fixtures: list[tuple[str, bytes, dict[str, Any]]],
) -> None:
    made = set()
    for name, raw, values in fixtures:
        message = to_message(raw)
        common: dict[str, Any] = {"sender_ns": message.sender_ns, "version": values["v"]}
        common |= {"metadata": message.metadata, "message_id": values["msg_id"] or 0}
        match message:
            case PoseMessage() if values["type"] == "TRANSFORM":
                again = encode_transform(message.device, message.tools[0].matrix, **common)  # type: ignore[arg-type]
            case PoseMessage() if values["type"] == "TDATA":
                tools = [TrackedTool(t.name, t.matrix) for t in message.tools if t.matrix is not None]
                again = encode_tdata(message.device, tools, **common)
            case ImageMessage():
                again = encode_image(message.device, message.array, message.mm_from_index, **common)
            case StatusMessage():
                again = encode_status(
                    message.device, message.code, message.subcode, message.error_name, message.text, **common
                )
            case TextMessage():
                again = encode_string(message.device, message.text, **common)
            case _:
                continue
        made.add(values["type"])
        assert again == raw, name
    assert made == COVERED - {"POSITION"}  # its quaternion is normalised on the way to a pose


def test_image_fixture_corner(fixtures: list[tuple[str, bytes, dict[str, Any]]]) -> None:
    raw = next(raw for name, raw, _ in fixtures if name == "image.bin")
    np.testing.assert_allclose(image(raw).mm_from_index[:3, 3], (74.265, 11.153, 27.740), atol=1e-3)


def test_types_not_covered_are_unused_without_a_problem(fixtures: list[tuple[str, bytes, dict[str, Any]]]) -> None:
    others = [(raw, v) for _, raw, v in fixtures if v["type"] not in COVERED]
    assert len(others) == 15
    for raw, values in others:
        message = unused(raw)
        assert (message.type_name, message.problem) == (values["type"], "")


# ------------------------------------------------------------------------------------------------------------- stamps


@pytest.mark.parametrize(
    ("seconds", "fraction", "ns"),
    [(0, 0, None), (0, 1, 0), (1, 0, 10**9), (0, 1 << 31, 500_000_000), (5, (1 << 32) - 1, 6 * 10**9), (0, 4, 1)],
)
def test_stamp_to_ns(seconds: int, fraction: int, ns: int | None) -> None:
    assert ns_from_stamp(seconds, fraction) == ns


def test_ns_to_stamp_and_back_is_exact() -> None:
    rng = np.random.default_rng(2)
    values = [1, 2, 999_999_999, 10**9, (1 << 32) * 10**9 - 1, *rng.integers(1, 1 << 61, 3000).tolist()]
    assert all(ns_from_stamp(*stamp_from_ns(ns)) == ns for ns in values)
    assert stamp_from_ns(None) == (0, 0)


@pytest.mark.parametrize("ns", [-1, (1 << 32) * 10**9])
def test_times_outside_the_wire_are_refused(ns: int) -> None:
    with pytest.raises(EncodeError, match="1970 to 2106"):
        encode_transform("NeedleToTracker", TURNED, sender_ns=ns)


def test_common_fields_are_passed_through() -> None:
    message = pose(encode_transform("NeedleToTracker", TURNED, sender_ns=1_795_419_537_281_455_371))
    assert (message.source, message.sequence, message.arrival_ns) == ("tracker", 7, 99)
    assert message.sender_ns == 1_795_419_537_281_455_371
    assert to_message(encode_transform("NeedleToTracker", TURNED)).sender_ns is None


# -------------------------------------------------------------------------------------------------------------- names


def test_device_names_are_mapped_and_others_kept() -> None:
    options = source(tools=(ToolStreamConfig(device="Tool 1", transform="NeedleToTracker"),))
    assert pose(encode_transform("Tool 1", TURNED), options).tools[0].name == "NeedleToTracker"
    assert pose(encode_transform("Tool 1", TURNED), options).device == "Tool 1"
    assert pose(encode_transform("Tool 2", TURNED), options).tools[0].name == "Tool 2"
    assert pose(encode_transform("StylusToTracker", TURNED), options).tools[0].name == "StylusToTracker"
    assert pose(encode_transform("Tool 1", TURNED)).tools[0].name == "Tool 1"


def test_names_cut_to_20_bytes_are_still_known() -> None:
    long = "UltrasoundProbeToReference"
    cut = encode_transform(long[:20], TURNED)
    options = source(tools=(ToolStreamConfig(device=long, transform=long),))
    assert pose(cut, options).tools[0].name == long
    told = encode_transform(long[:20], TURNED, version=2, metadata={"IGTL_DEVICE_NAME": long})
    assert pose(told).tools[0].name == long
    liar = encode_transform("Needle", TURNED, version=2, metadata={"IGTL_DEVICE_NAME": "StylusToTracker"})
    assert pose(liar).tools[0].name == "Needle"


def test_names_end_at_the_first_nul_and_odd_bytes_do_not_raise() -> None:
    raw = bytearray(encode_transform("Needle", TURNED))
    raw[14:34] = b"Foo\0junk" + bytes(12)
    assert to_message(bytes(raw)).device == "Foo"
    raw[14:34] = b"\xff\xfe" + b"A" * 18
    assert to_message(bytes(raw)).device == "\ufffd\ufffd" + "A" * 18
    full = encode_transform("A" * 20, TURNED)
    assert to_message(full).device == "A" * 20


@pytest.mark.parametrize("name", ["A" * 21, "Ä" * 11, "Foo\0bar"])
def test_names_that_do_not_fit_are_refused_not_cut(name: str) -> None:
    for encode in (
        lambda: encode_transform(name, TURNED),
        lambda: encode_status(name),
        lambda: encode_tdata("T", [TrackedTool(name, TURNED)]),
        lambda: encode_status("T", error_name=name),
    ):
        with pytest.raises(EncodeError, match="limit 20 bytes"):
            encode()


# ------------------------------------------------------------------------------------------------------------- status


@pytest.mark.parametrize(
    "status", ["MISSING", "OUT_OF_VIEW", "invalid", "REQ_TIMEOUT", "SWITCH1_IS_ON", "gibberish", ""]
)
def test_identity_with_a_status_is_a_lost_tool(status: str) -> None:
    raw = encode_transform("NeedleToTracker", np.eye(4), version=2, metadata={"TransformStatus": status})
    (report,) = pose(raw).tools
    assert report.matrix is None
    assert report.status is (PoseStatus.parse(status) if status else PoseStatus.UNKNOWN)
    assert report.status is not PoseStatus.OK


def test_absent_status_and_ok_carry_the_pose() -> None:
    for metadata in ({}, {"TransformStatus": "OK"}, {"transformstatus": "ok"}, {"TransformValid": "1"}):
        raw = encode_transform("NeedleToTracker", TURNED, version=2, metadata=metadata)
        (report,) = pose(raw).tools
        assert report.status is PoseStatus.OK
        np.testing.assert_array_equal(report.matrix, TURNED)


def test_transform_valid_zero_is_invalid() -> None:
    raw = encode_transform("NeedleToTracker", TURNED, version=2, metadata={"TransformValid": "0"})
    assert pose(raw).tools[0].status is PoseStatus.INVALID


def test_tdata_status_of_one_tool_leaves_the_others() -> None:
    tools = [TrackedTool("NeedleToTracker", np.eye(4)), TrackedTool("StylusToTracker", TURNED)]
    raw = encode_tdata("Tracker", tools, version=2, metadata={"NeedleToTrackerStatus": "OUT_OF_VIEW"})
    needle, stylus = pose(raw).tools
    assert (needle.status, needle.matrix) == (PoseStatus.OUT_OF_VIEW, None)
    assert stylus.status is PoseStatus.OK


def test_tdata_status_under_the_uncut_name() -> None:
    long = "UltrasoundProbeToReference"
    raw = encode_tdata("Tracker", [TrackedTool(long[:20], np.eye(4))], version=2, metadata={f"{long}Status": "MISSING"})
    assert pose(raw).tools[0].status is PoseStatus.MISSING


def test_tdata_without_tools_is_an_empty_report() -> None:
    assert pose(encode_tdata("Tracker", [])).tools == ()


# -------------------------------------------------------------------------------------------------------------- poses


def raw_transform(matrix: np.ndarray) -> bytes:
    return pack_message("TRANSFORM", "NeedleToTracker", np.asarray(matrix)[:3].T.astype(">f4").tobytes())


def _bad(**entries: float) -> np.ndarray:
    m = np.eye(4)
    for key, value in entries.items():
        m[int(key[1]), int(key[2])] = value
    return m


@pytest.mark.parametrize(
    ("matrix", "why"),
    [
        (_bad(m03=np.nan), "not finite"),
        (_bad(m11=np.inf), "not finite"),
        (np.zeros((4, 4)), "not a rotation"),
        (_bad(m00=1.01), "not a rotation"),
        (_bad(m01=0.1), "not a rotation"),
        (_bad(m00=1e30), "not a rotation"),
        (_bad(m22=-1.0), "mirrors"),
        (_bad(m13=1.1e5), "translation"),
    ],
)
def test_a_matrix_that_is_no_pose_is_an_invalid_tool(matrix: np.ndarray, why: str) -> None:
    (report,) = pose(raw_transform(matrix)).tools
    assert (report.status, report.matrix) == (PoseStatus.INVALID, None)
    assert why in report.problem


def test_rounding_of_the_wire_is_not_taken_for_scale() -> None:
    (report,) = pose(raw_transform(np.round(TURNED + 1e-4, 4))).tools
    assert report.status is PoseStatus.OK


def test_position_12_24_28() -> None:
    half = np.sqrt(0.5)
    (none,) = pose(encode_position("NeedleToTracker", (1, 2, 3))).tools
    np.testing.assert_array_equal(none.matrix, _bad(m03=1, m13=2, m23=3))
    for quaternion in ((0, 0, half), (0, 0, half, half), (0, 0, -half, -half), (0, 0, 0.8 * half, 0.8 * half)):
        (turned,) = pose(encode_position("NeedleToTracker", (10, -20, 30.5), quaternion)).tools
        np.testing.assert_allclose(turned.matrix, TURNED, atol=1e-6)
    assert [len(encode_position("N", (1, 2, 3), q)) - 58 for q in ((), (0, 0, 0), (0, 0, 0, 1))] == [12, 24, 28]


@pytest.mark.parametrize(
    "quaternion", [(0.8, 0.8, 0.0), (0.0, 0.0, 0.0, 0.0), (0.1, 0.1, 0.1, 0.1), (2.0, 2.0, 0.0, 0.0)]
)
def test_a_quaternion_that_is_no_rotation_is_an_invalid_tool(quaternion: tuple[float, ...]) -> None:
    (report,) = pose(encode_position("NeedleToTracker", (1, 2, 3), quaternion)).tools
    assert (report.status, report.matrix) == (PoseStatus.INVALID, None)
    assert "quaternion" in report.problem


def test_lost_position_is_lost() -> None:
    raw = encode_position("NeedleToTracker", (0, 0, 0), version=2, metadata={"TransformStatus": "MISSING"})
    assert pose(raw).tools[0].status is PoseStatus.MISSING


# ------------------------------------------------------------------------------------------------------------- images

TILTED = np.array([[0.2, 0.0, 0.0, -50.0], [0.0, 0.19, -0.31, 12.0], [0.0, 0.06, 0.95, 7.0], [0.0, 0.0, 0.0, 1.0]])


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"])
@pytest.mark.parametrize("endian", ["little", "big"])
@pytest.mark.parametrize("components", [1, 3])
def test_image_of_every_scalar_type_and_byte_order(dtype: str, endian: str, components: int) -> None:
    rng = np.random.default_rng(1)
    shape = (3, 4, 5) if components == 1 else (3, 4, 5, components)
    array = (rng.normal(size=shape) * 100).astype(dtype)
    message = image(encode_image("Image", array, TILTED, endian=endian))
    np.testing.assert_array_equal(message.array, array)
    assert message.array.dtype == np.dtype(dtype)
    assert message.array.dtype.isnative
    assert message.array.flags["C_CONTIGUOUS"]
    assert message.array.flags["ALIGNED"]
    assert not message.array.flags["WRITEABLE"]
    np.testing.assert_allclose(message.mm_from_index, TILTED, atol=1e-5)


def test_position_on_the_wire_is_the_centre() -> None:
    content = unpack_content(
        "IMAGE", parse_message(encode_image("Image", np.zeros((1, 3, 5), np.uint8), np.eye(4))).content
    )
    assert isinstance(content, ImageContent)
    np.testing.assert_array_equal(content.position, (2, 1, 0))
    assert (content.coordinate, content.endian, content.size) == (1, 2, (5, 3, 1))


def test_lps_header_gives_the_same_ras_place() -> None:
    array = np.zeros((2, 3, 4), np.int16)
    lps = encode_image("Image", array, TILTED, coordinate="lps")
    np.testing.assert_allclose(image(lps).mm_from_index, TILTED, atol=1e-5)
    as_ras = image(lps, source(coordinate_override="ras")).mm_from_index
    np.testing.assert_allclose(as_ras, np.diag([-1, -1, 1, 1]) @ TILTED, atol=1e-5)
    ras = encode_image("Image", array, TILTED)
    flipped = image(ras, source(coordinate_override="lps")).mm_from_index
    np.testing.assert_allclose(flipped, np.diag([-1, -1, 1, 1]) @ TILTED, atol=1e-5)


def test_origin_is_corner_option() -> None:
    raw = encode_image("Image", np.zeros((1, 100, 200), np.uint8), TILTED, origin_is_corner=True)
    np.testing.assert_allclose(image(raw, source(origin_is_corner=True)).mm_from_index, TILTED, atol=1e-5)
    assert np.abs(image(raw).mm_from_index - TILTED).max() > 5


def test_endian_override_for_senders_whose_flag_lies() -> None:
    array = np.full((1, 2, 2), -1000, np.int16)
    raw = bytearray(encode_image("Image", array, np.eye(4)))
    raw[58 + 4] = 1  # says big, voxels are little
    raw[50:58] = struct.pack(">Q", codec_crc(raw))
    assert image(bytes(raw)).array[0, 0, 0] == 6396
    assert image(bytes(raw), source(endian_override="little")).array[0, 0, 0] == -1000


def codec_crc(raw: bytes | bytearray) -> int:
    from drivers.openigtlink.crc64 import crc64

    return crc64(bytes(raw[58:]))


def test_a_part_of_an_image_lies_where_it_belongs() -> None:
    whole = np.arange(4 * 5 * 6, dtype=np.uint16).reshape(4, 5, 6)
    part = whole[1:3, 2:5, 3:5]
    shift = np.eye(4)
    shift[:3, 3] = (3, 2, 1)
    raw = encode_image("Image", part, TILTED @ shift, whole_size=(6, 5, 4), offset=(3, 2, 1))
    message = image(raw)
    np.testing.assert_array_equal(message.array, part)
    assert message.index_offset == (3, 2, 1)
    np.testing.assert_allclose(message.mm_from_index, TILTED @ shift, atol=1e-5)
    everything = image(encode_image("Image", whole, TILTED))
    assert everything.index_offset == (0, 0, 0)
    np.testing.assert_allclose(everything.mm_from_index @ shift, message.mm_from_index, atol=1e-5)


def with_image_byte(at: int, value: bytes) -> bytes:
    raw = bytearray(encode_image("Image", np.zeros((2, 3, 4), np.int16), TILTED))
    raw[58 + at : 58 + at + len(value)] = value
    raw[50:58] = struct.pack(">Q", codec_crc(raw))
    return bytes(raw)


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        (0, b"\0\2", "format version"),
        (2, b"\0", "components"),
        (2, b"\2", "pixels"),
        (3, b"\x63", "scalar type"),
        (4, b"\0", "byte order"),
        (5, b"\0", "coordinate system"),
        (5, b"\3", "coordinate system"),
        (6, b"\0\0", "size"),
        (6, b"\xff\xff", ""),
        (12, struct.pack(">f", np.nan), "axes"),
        (12, bytes(12), "axes"),
        (60, b"\0\1", "part"),
        (66, b"\0\0", "part"),
        (66, b"\0\3", "pixels"),
        (66, b"\0\5", "part"),
    ],
)
def test_wrong_image_headers_say_what_is_wrong(at: int, value: bytes, why: str) -> None:
    raw = with_image_byte(at, value)
    if not why:  # a larger whole image of which this is a part: legal
        assert image(raw).array.shape == (2, 3, 4)
        return
    message = unused(raw)
    assert message.type_name == "IMAGE"
    assert why in message.problem, message.problem


def test_an_image_placed_by_calibration_needs_no_place_in_its_header() -> None:
    options = source(images=(ImageStreamConfig(device="Image", placed_by="calibration"),))
    for at, value in ((5, b"\0"), (12, bytes(12)), (12, struct.pack(">f", np.nan))):
        message = image(with_image_byte(at, value), options)
        assert np.isfinite(message.mm_from_index).all()
    by_header = source(images=(ImageStreamConfig(device="Image", placed_by="header"),))
    assert "axes" in unused(with_image_byte(12, bytes(12)), by_header).problem


def test_a_flat_image_without_a_third_step_gets_its_normal() -> None:
    content = bytearray(parse_message(encode_image("Image", np.zeros((1, 3, 4), np.uint8), TILTED)).content)
    content[36:48] = bytes(12)
    m = image(pack_message("IMAGE", "Image", bytes(content))).mm_from_index
    np.testing.assert_allclose(
        m[:3, 2],
        np.cross(TILTED[:3, 0], TILTED[:3, 1]) / np.linalg.norm(np.cross(TILTED[:3, 0], TILTED[:3, 1])),
        atol=1e-6,
    )
    np.testing.assert_allclose(m[:3, 3], TILTED[:3, 3], atol=1e-5)


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (np.zeros((2, 2), bool), "dtype bool"),
        (np.zeros((2, 2), np.uint64), "dtype uint64"),
        (np.zeros((2, 2), np.float16), "dtype float16"),
        (np.zeros(5, np.uint8), "shape"),
        (np.zeros((0, 5), np.uint8), "shape"),
        (np.zeros((1, 2, 2, 256), np.uint8), "256 components"),
        (np.zeros((1, 1, 65536), np.uint8), "size"),
    ],
)
def test_images_that_cannot_be_sent_are_refused(array: np.ndarray, why: str) -> None:
    with pytest.raises(EncodeError, match=why):
        encode_image("Image", array, np.eye(4))


def test_two_axes_are_one_slice() -> None:
    assert image(encode_image("Image", np.zeros((30, 40), np.uint8), np.eye(4))).array.shape == (1, 30, 40)


def test_8_bit_voxels_are_not_copied() -> None:
    raw = encode_image("Image", np.zeros((1, 64, 64), np.uint8), np.eye(4))
    array = image(raw).array
    assert np.shares_memory(array, np.frombuffer(raw, np.uint8))


# ------------------------------------------------------------------------------------------------- texts and metadata


def test_status_and_string_round_trip_with_any_text() -> None:
    message = to_message(encode_status("Server", 7, -3, "TIMEOUT", "Verbindung verloren – prüfen"))
    assert isinstance(message, StatusMessage)
    assert (message.code, message.subcode, message.error_name) == (7, -3, "TIMEOUT")
    assert message.text == "Verbindung verloren – prüfen"
    text = to_message(encode_string("Text", "Größe 5 µm"))
    assert isinstance(text, TextMessage)
    assert text.text == "Größe 5 µm"


def test_string_longer_than_its_field_is_refused() -> None:
    with pytest.raises(EncodeError, match="65535"):
        encode_string("Text", "x" * 65536)


@pytest.mark.parametrize(
    ("type_name", "content", "why"),
    [
        ("TRANSFORM", bytes(47), "48 bytes"),
        ("TRANSFORM", bytes(49), "48 bytes"),
        ("POSITION", bytes(13), "12, 24 or 28"),
        ("POSITION", b"", "no such data"),
        ("TDATA", bytes(71), "multiple of 70"),
        ("IMAGE", bytes(71), "72 bytes"),
        ("STATUS", bytes(29), "30 bytes"),
        ("STRING", b"\0", "4 bytes"),
        ("STRING", b"\0\3\0\5abc", "STRING length"),
        ("STRING", b"\0\3\0\1abc", "STRING length"),
    ],
)
def test_content_of_a_wrong_size_is_unused_with_the_reason(type_name: str, content: bytes, why: str) -> None:
    message = unused(pack_message(type_name, "Device", content))
    assert message.type_name == type_name
    assert why in message.problem


def test_status_without_a_terminating_nul_is_read() -> None:
    message = to_message(pack_message("STATUS", "Device", struct.pack(">Hq20s", 1, 0, b"") + b"fine"))
    assert isinstance(message, StatusMessage)
    assert message.text == "fine"


def test_metadata_of_every_kind_of_text() -> None:
    metadata = {"A": "1", "ä": "ö", "": "", "long": "x" * 70_000}
    message = to_message(encode_string("Text", "t", version=2, metadata=metadata, message_id=77))
    assert message.metadata == metadata
    assert parse_message(encode_string("T", "t", version=2, message_id=77)).message_id == 77


def test_version_1_has_no_place_for_metadata() -> None:
    assert to_message(encode_string("Text", "t", metadata={"A": "1"})).metadata == {}


def extended(ext_size: int, meta_header: int, meta: int, extra: bytes, rest: bytes) -> bytes:
    body = struct.pack(">HHII", ext_size, meta_header, meta, 0) + extra + rest
    raw = pack_message("TRANSFORM", "NeedleToTracker", body)
    return b"\0\2" + raw[2:]


CONTENT = encode_transform("X", TURNED)[58:]


def test_a_longer_extended_header_is_honoured() -> None:
    (report,) = pose(extended(20, 2, 0, b"FUTURE!!", CONTENT + b"\0\0")).tools
    np.testing.assert_array_equal(report.matrix, TURNED)


def test_no_metadata_header_at_all_is_accepted() -> None:
    assert pose(extended(12, 0, 0, b"", CONTENT)).tools[0].status is PoseStatus.OK


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (extended(11, 2, 0, b"", CONTENT + b"\0\0"), "extended header size"),
        (extended(500, 2, 0, b"", CONTENT + b"\0\0"), "extended header size"),
        (extended(12, 2, 1000, b"", CONTENT + b"\0\0"), "metadata size"),
        (extended(12, 65535, 0, b"", CONTENT), "metadata size"),
        (extended(12, 2, 0, b"", CONTENT + b"\0\1"), "metadata entries"),
        (extended(12, 1, 0, b"", CONTENT + b"\0"), "metadata index size"),
        (extended(12, 0, 2, b"", CONTENT + b"\0\0"), "metadata without an index"),
        (extended(12, 10, 0, b"", CONTENT + b"\0\1" + struct.pack(">HHI", 9, 3, 9)), "metadata entry 0"),
        (extended(12, 10, 5, b"", CONTENT + b"\0\1" + struct.pack(">HHI", 1, 3, 1) + b"abcde"), "metadata size"),
        (b"\0\2" + pack_message("TRANSFORM", "N", bytes(5))[2:], "version 2"),
    ],
)
def test_contradicting_sizes_are_unused_with_the_reason(raw: bytes, why: str) -> None:
    message = unused(raw)
    assert why in message.problem
    assert message.type_name == "TRANSFORM"


def test_a_piece_of_a_message_is_not_a_message() -> None:
    raw = encode_transform("NeedleToTracker", TURNED)
    for bad in (raw[:-1], raw + b"x", raw[:50]):
        with pytest.raises(WireError):
            decode(bad, source="s", sequence=0, arrival_ns=0)


def test_encoders_refuse_values_that_do_not_fit() -> None:
    for call in (
        lambda: encode_transform("T", _bad(m03=np.nan)),
        lambda: encode_transform("T", _bad(m03=1e300)),
        lambda: encode_transform("T", np.eye(3)),
        lambda: encode_position("T", (1, 2)),
        lambda: encode_position("T", (1, 2, 3), (1, 0)),
        lambda: encode_position("T", (1, 2, 1e300)),
        lambda: encode_position("T", (1, 2, np.nan)),
        lambda: encode_status("T", code=70_000),
        lambda: encode_tdata("T", [TrackedTool("a", np.eye(4), kind=9)]),
        lambda: encode_transform("T", TURNED, version=3),
        lambda: encode_image("T", np.zeros((2, 2), np.uint8), np.full((4, 4), np.nan)),
        lambda: encode_image("T", np.zeros((2, 2), np.uint8), np.eye(4), coordinate="xyz"),
        lambda: encode_image("T", np.zeros((2, 2), np.uint8), np.eye(4), whole_size=(2, 2, 1), offset=(1, 0, 0)),
    ):
        with pytest.raises(EncodeError):
            call()


def test_errors_name_offset_value_and_limit() -> None:
    with pytest.raises(ContentError) as caught:
        unpack_content("TRANSFORM", bytes(5))
    assert (caught.value.offset, caught.value.value, caught.value.limit) == (58, "5 bytes", "48 bytes")


def test_no_pose_is_farther_than_the_limit_says() -> None:
    assert codec.FARTHEST_MM == 1e5


def test_images_with_the_same_header_come_to_the_same_with_their_own_voxels() -> None:
    """What follows from the header is computed once; options, size, device and voxels are each image's own."""
    rng = np.random.default_rng(0)
    matrix = np.diag([0.3, 0.3, 1.0, 1.0])
    corner = SourceConfig.model_validate({"name": "s", "origin_is_corner": True})
    for shape in ((4, 5), (5, 4), (2, 4, 5), (2, 4, 5, 3)):
        for dtype in (np.uint8, np.int8, np.int16):
            pictures = [rng.integers(0, 100, shape).astype(dtype) for _ in range(3)]
            for options in (None, corner, SourceConfig(name="s")):
                for picture in pictures:
                    raw = encode_image("Image", picture, matrix, origin_is_corner=options is corner)
                    message = decode(raw, source="s", sequence=0, arrival_ns=0, options=options)
                    assert isinstance(message, ImageMessage)
                    volume = picture if picture.ndim > 2 else picture[np.newaxis]
                    np.testing.assert_array_equal(message.array, volume)
                    np.testing.assert_allclose(message.mm_from_index, matrix, atol=1e-5)
                    assert not message.array.flags.writeable


def test_findings_of_an_image_stay_with_every_image_of_its_header() -> None:
    mirrored = np.diag([-0.3, 0.3, 1.0, 1.0])
    mirrored[:3, 3] = 40, 50, 60
    for _ in range(3):
        message = decode(encode_image("I", np.ones((4, 4), np.uint8), mirrored), source="s", sequence=0, arrival_ns=0)
        assert isinstance(message, ImageMessage)
        assert [f.code for f in message.findings] == ["image_mirrored"]
