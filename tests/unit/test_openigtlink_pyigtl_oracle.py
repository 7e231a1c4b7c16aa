"""Packing against pyigtl's, where pyigtl's is right (TRANSFORM, IMAGE, STRING)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from drivers.openigtlink.codec import decode, encode_image, encode_string, encode_transform
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
