"""The message classes for pyigtl: every type, as pyigtl itself takes messages apart and packs them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pyigtl = pytest.importorskip("pyigtl")

from drivers.openigtlink import pyigtl_messages  # noqa: E402
from drivers.openigtlink.codec import encode_image  # noqa: E402
from drivers.openigtlink.contents import StatusContent, StringContent, TransformContent, query_of  # noqa: E402
from drivers.openigtlink.errors import EncodeError  # noqa: E402
from drivers.openigtlink.pyigtl_messages import ContentMessage, message_types, register  # noqa: E402
from drivers.openigtlink.wire import parse_message  # noqa: E402
from tests.fuzz.seeds import seeds  # noqa: E402

TABLE = pyigtl.messages.message_type_to_class_constructor
#: Not an encoding that pyigtl reads in metadata.
ODD = "naïve"


@pytest.fixture(autouse=True)
def _table_as_it_was() -> Iterator[None]:
    before = dict(TABLE)
    yield
    TABLE.clear()
    TABLE.update(before)


def received(raw: bytes) -> object:
    """What a pyigtl client makes of the bytes."""
    base = pyigtl.messages.MessageBase
    fields = base.parse_header(raw[:58])
    message = base.create_message(fields["message_type"])
    assert message is not None, fields
    message.unpack(fields, raw[58:])
    return message


def examples() -> list[bytes]:
    """A message of every type; without what pyigtl's own header and metadata code cannot read."""
    found = []
    for seed in seeds():
        message = parse_message(seed.raw)
        odd = any(e.encoding not in (3, 106) or ODD in e.value for e in message.entries)
        if not odd and not message.extension and message.type_name in message_types():
            found.append(seed.raw)
    return found


def test_every_type_comes_in_and_goes_out_again() -> None:
    register(replace=pyigtl_messages.PYIGTL_OWN)
    seen = set()
    for raw in examples():
        message = received(raw)
        assert isinstance(message, ContentMessage)
        seen.add(message.message_type)
        ours = parse_message(raw)
        assert message.content is not None
        assert message.content.pack() == bytes(ours.content)
        assert message.metadata == ours.metadata
        again = parse_message(message.pack())
        assert (again.type_name, again.device, bytes(again.content)) == (
            ours.type_name, ours.device, bytes(ours.content),
        )  # fmt: skip
        if ours.sender_ns is not None:
            assert abs((again.sender_ns or 0) - ours.sender_ns) < 500  # pyigtl's times are 64-bit floats of seconds
    # Of the spellings of one query, the messages above hold one.
    assert {query_of(name) or name for name in seen} == {query_of(name) or name for name in message_types()}


def test_its_own_classes_stay_unless_replaced() -> None:
    before = dict(TABLE)
    register()
    assert all(TABLE[name] is before[name] for name in pyigtl_messages.PYIGTL_OWN)
    assert TABLE["POSITION"] is ContentMessage
    register(replace=["IMAGE"])
    assert TABLE["IMAGE"] is ContentMessage
    assert TABLE["STRING"] is before["STRING"]


def test_what_cannot_be_sent_is_said_at_once() -> None:
    with pytest.raises(EncodeError, match="device name"):
        ContentMessage(StatusContent(1), device_name="x" * 21)
    with pytest.raises(EncodeError):
        ContentMessage(StatusContent(1), message_type="TRANSFORM")
    with pytest.raises(ValueError, match="no content"):
        ContentMessage().pack()


def test_the_same_bytes_as_pyigtl_where_it_is_right() -> None:
    import numpy as np

    matrix = np.eye(4)
    matrix[:3, 3] = 1, 2, 3
    theirs = pyigtl.TransformMessage(matrix, device_name="NeedleToTracker", timestamp=1000.5)
    assert ContentMessage(TransformContent(matrix), "NeedleToTracker", 1000.5).pack() == theirs.pack()
    text = pyigtl.StringMessage("hello", device_name="T", timestamp=7.25)
    text.header_version = 2
    text.metadata = {"a": "b"}
    ours = ContentMessage(StringContent("hello"), "T", 7.25, header_version=2, metadata={"a": "b"})
    assert ours.pack() == text.pack()
    assert "hello" in str(ours)


def test_what_replacing_its_own_classes_is_for() -> None:
    import numpy as np

    part = encode_image("CT", np.ones((2, 3, 4), np.uint8), np.eye(4), whole_size=(9, 8, 7), offset=(1, 2, 3))
    with pytest.raises(NotImplementedError):
        received(part)
    with pytest.raises(UnicodeEncodeError):
        pyigtl.StringMessage("Größe", device_name="T").pack()
    register(replace=["IMAGE", "STRING"])
    message = received(part)
    assert isinstance(message, ContentMessage)
    assert message.pack()[58:] == part[58:]
    assert parse_message(ContentMessage(StringContent("Größe", 106), "T").pack()).type_name == "STRING"
