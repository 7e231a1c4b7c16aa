"""Packing against pyigtl's, where pyigtl's is right: TRANSFORM, IMAGE, STRING, POINT, POLYDATA in part."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from drivers.openigtlink.codec import decode, encode_content, encode_image, encode_string, encode_transform
from drivers.openigtlink.contents import (
    Point,
    PointContent,
    PolyDataContent,
    PositionContent,
    cell_array,
    unpack_message,
)
from drivers.openigtlink.wire import parse_message
from nav.runtime.messages import ImageMessage, PoseMessage, TextMessage

messages = pytest.importorskip("pyigtl.messages")

MATRIX = np.array([[0.0, -1.0, 0.0, 10.25], [1.0, 0.0, 0.0, -20.5], [0.0, 0.0, 1.0, 30.125], [0.0, 0.0, 0.0, 1.0]])
METADATA = {"TransformStatus": "OK", "Operator": "nobody"}
STAMP_S = 1_700_000_000.5  # exact in both representations


def pack(message: Any, version: int) -> bytes:
    message.header_version = version
    if version == 2:
        message.metadata = dict(METADATA)
        message.message_id = 9
    packed: bytes = message.pack()
    return packed


def common(version: int) -> dict[str, Any]:
    extra = {"metadata": METADATA, "message_id": 9} if version == 2 else {}
    return {"sender_ns": round(STAMP_S * 1e9), "version": version, **extra}


def unpack(raw: bytes) -> Any:
    fields = messages.MessageBase.parse_header(raw[:58])
    message = messages.MessageBase.create_message(fields["message_type"])
    message.unpack(fields, raw[58:])
    return message


@pytest.mark.parametrize("version", [1, 2])
def test_transform(version: int) -> None:
    theirs = pack(messages.TransformMessage(MATRIX, timestamp=STAMP_S, device_name="NeedleToTracker"), version)
    ours = encode_transform("NeedleToTracker", MATRIX, **common(version))
    assert ours == theirs
    assert unpack(ours).metadata == (METADATA if version == 2 else {})
    np.testing.assert_array_equal(unpack(ours).matrix, MATRIX)
    decoded = decode(theirs, source="", sequence=0, arrival_ns=0)
    assert isinstance(decoded, PoseMessage)
    np.testing.assert_array_equal(decoded.tools[0].matrix, MATRIX)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"])
def test_image(version: int, dtype: str) -> None:
    array = np.arange(2 * 6 * 8).reshape(2, 6, 8).astype(dtype)
    place = MATRIX @ np.diag([0.5, 0.25, 2.0, 1.0])
    theirs = pack(messages.ImageMessage(array, place, "ras", timestamp=STAMP_S, device_name="Image"), version)
    assert encode_image("Image", array, place, **common(version)) == theirs
    decoded = decode(theirs, source="", sequence=0, arrival_ns=0)
    assert isinstance(decoded, ImageMessage)
    np.testing.assert_array_equal(decoded.array, array)
    np.testing.assert_array_equal(decoded.mm_from_index, place)
    back = unpack(encode_image("Image", array, place))
    np.testing.assert_array_equal(back.image, array)
    np.testing.assert_allclose(back.ijk_to_world_matrix, place)


def test_colour_image() -> None:
    array = np.arange(1 * 4 * 5 * 3, dtype=np.uint8).reshape(1, 4, 5, 3)
    theirs = pack(messages.ImageMessage(array, np.eye(4), "ras", timestamp=STAMP_S, device_name="Image"), 1)
    assert encode_image("Image", array, np.eye(4), **common(1)) == theirs


def test_image_in_lps() -> None:
    """pyigtl writes the matrix that it is given and calls it LPS, its default: the same place, stated in other axes."""
    array, place = np.arange(24, dtype=np.int16).reshape(2, 3, 4), MATRIX @ np.diag([0.5, 0.25, 2.0, 1.0])
    in_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ place
    theirs = pack(messages.ImageMessage(array, in_lps, timestamp=STAMP_S, device_name="Image"), 1)
    assert encode_image("Image", array, place, coordinate="lps", **common(1)) == theirs
    decoded = decode(theirs, source="", sequence=0, arrival_ns=0)
    assert isinstance(decoded, ImageMessage)
    np.testing.assert_allclose(decoded.mm_from_index, place)


@pytest.mark.parametrize("version", [1, 2])
def test_points(version: int) -> None:
    theirs = messages.PointMessage(
        positions=[[1.5, -2.25, 3], [4, 5, 6]], names=["tip", "Lésion"], rgba_colors=[[1, 2, 3, 4], [255, 0, 128, 255]],
        diameters=[2.5, 0], groups=["A", "B"], owners="CT", timestamp=STAMP_S, device_name="Points",
    )  # fmt: skip
    ours = PointContent(
        (
            Point("tip", (1.5, -2.25, 3.0), "A", (1, 2, 3, 4), 2.5, "CT"),
            Point("Lésion", (4.0, 5.0, 6.0), "B", (255, 0, 128, 255), 0.0, "CT"),
        )
    )
    raw = encode_content("Points", ours, **common(version))
    assert raw == pack(theirs, version)
    assert unpack_message(parse_message(raw)) == ours
    read = unpack(raw)
    assert (read.names, read.groups, read.owners) == (["tip", "Lésion"], ["A", "B"], ["CT", "CT"])
    assert read.positions == [(1.5, -2.25, 3.0), (4.0, 5.0, 6.0)]


def test_one_point_with_its_defaults() -> None:
    theirs = messages.PointMessage([7, 8, 9], timestamp=STAMP_S, device_name="P")
    ours = PointContent((Point("", (7, 8, 9), rgba=(255, 255, 0, 255)),))
    assert encode_content("P", ours, **common(1)) == pack(theirs, 1)


@pytest.mark.parametrize("version", [1, 2])
def test_polydata_without_vertices(version: int) -> None:
    points = np.array([[0, 0, 0], [1.5, 0, 0], [1.5, 2, 0], [0, 2, -3.25]], np.float32)
    lines, polygons, strips = cell_array([[0, 2]]), cell_array([[0, 1, 2], [0, 2, 3]]), cell_array([[0, 1, 2, 3]])
    theirs = messages.PolyDataMessage(
        points=points, lines=lines, polygons=polygons, triangle_strips=strips, timestamp=STAMP_S, device_name="Zone"
    )
    ours = PolyDataContent(points, lines=lines, polygons=polygons, strips=strips)
    assert encode_content("Zone", ours, **common(version)) == pack(theirs, version)


def test_what_pyigtl_packs_otherwise_than_the_protocol() -> None:
    """POLYDATA's vertices in the machine's byte order; POSITION as a list of points with a rotation."""
    vertices, points = cell_array([[0], [1]]), np.zeros((2, 3), np.float32)
    theirs = messages.PolyDataMessage(points=points, vertices=vertices, timestamp=STAMP_S, device_name="Z").pack()
    ours = encode_content("Z", PolyDataContent(points, vertices=vertices), **common(1))
    assert ours[:58] != theirs[:58]  # the CRC
    assert ours[58:].replace(vertices.astype(">u4").tobytes(), vertices.tobytes()) == theirs[58:]
    position = messages.PositionMessage([1, 2, 3], [0, 0, 0, 1], timestamp=STAMP_S, device_name="P").pack()
    assert len(position) > len(encode_content("P", PositionContent((1, 2, 3), (0, 0, 0, 1))))


@pytest.mark.parametrize("version", [1, 2])
def test_string(version: int) -> None:
    theirs = pack(messages.StringMessage("Welcome", timestamp=STAMP_S, device_name="Text"), version)
    assert encode_string("Text", "Welcome", **common(version)) == theirs
    decoded = decode(theirs, source="", sequence=0, arrival_ns=0)
    assert isinstance(decoded, TextMessage)
    assert decoded.text == "Welcome"


def test_text_that_pyigtl_cannot_pack_is_read_by_it() -> None:
    with pytest.raises(UnicodeEncodeError):
        messages.StringMessage("Größe", device_name="Text").pack()
    assert unpack(encode_string("Text", "Größe")).string == "Größe"
