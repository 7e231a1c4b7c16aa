"""OpenIGTLink: contents of every type come back as they were, and bytes that are read go out as they came."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from drivers.openigtlink.codec import decode, encode_content
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
    content_class,
    query_type,
    unpack_message,
)
from drivers.openigtlink.framing import Framer
from drivers.openigtlink.json_form import message_as_json, message_from_json
from drivers.openigtlink.wire import (
    EncodeError,
    MetadataEntry,
    WireError,
    pack_message,
    parse_message,
    repack_message,
)
from nav.runtime.messages import Message

CHARACTERS = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
doubles = st.floats(allow_nan=False, allow_infinity=False)
bytes_ = st.integers(0, 255)
shorts = st.integers(0, 0xFFFF)
longs = st.integers(0, 0xFFFFFFFF)
vectors = st.tuples(floats, floats, floats)
colours = st.tuples(bytes_, bytes_, bytes_, bytes_)
sizes = st.tuples(shorts, shorts, shorts)
texts = st.text(CHARACTERS, max_size=60)


def fixed(size: int) -> st.SearchStrategy[str]:
    return st.text(CHARACTERS, max_size=size).filter(lambda s: len(s.encode()) <= size)


def listed(elements: st.SearchStrategy[Any], most: int = 4) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(elements, max_size=most).map(tuple)


@st.composite
def matrices(draw: st.DrawFn) -> np.ndarray:
    m = np.eye(4)
    m[:3] = draw(hnp.arrays(float, (3, 4), elements=floats))
    return m


axes = hnp.arrays(float, (3, 3), elements=floats)
positions = hnp.arrays(float, 3, elements=floats)


@st.composite
def parts(draw: st.DrawFn, most: int) -> dict[str, Any]:
    part = draw(st.tuples(*[st.integers(1, most)] * 3))
    offset = draw(st.tuples(*[st.integers(0, 3)] * 3))
    beyond = draw(st.tuples(*[st.integers(0, 3)] * 3))
    size = tuple(p + o + b for p, o, b in zip(part, offset, beyond, strict=True))
    return {"size": size, "offset": offset, "part": part, "axes": draw(axes), "position": draw(positions)}


@st.composite
def images(draw: st.DrawFn) -> ImageContent:
    scalar, width = draw(st.sampled_from([(2, 1), (3, 1), (4, 2), (5, 2), (6, 4), (7, 4), (10, 4), (11, 8)]))
    where, components = draw(parts(3)), draw(st.integers(1, 3))
    count = int(np.prod(where["part"])) * components * width
    return ImageContent(
        components, scalar, draw(bytes_), draw(bytes_),
        pixels=memoryview(draw(st.binary(min_size=count, max_size=count))), **where,
    )  # fmt: skip


@st.composite
def videos(draw: st.DrawFn) -> VideoContent:
    return VideoContent(
        draw(fixed(4)), draw(shorts), draw(bytes_), draw(bytes_), bitstream=memoryview(draw(st.binary(max_size=60))),
        **draw(parts(20)),
    )  # fmt: skip


@st.composite
def polydata(draw: st.DrawFn) -> PolyDataContent:
    points = draw(hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.just(3)), elements=floats))
    cells = st.lists(st.lists(st.integers(0, len(points) - 1), max_size=5), max_size=4).map(cell_array)
    attributes = []
    for kind, name in draw(st.lists(st.tuples(st.integers(0, 9), texts), max_size=4)):
        n = (draw(st.integers(1, 5)), 3, 3, 9, 4)[kind % 5]
        values = draw(hnp.arrays(np.float32, st.tuples(st.integers(0, 4), st.just(n))))
        attributes.append(PolyAttribute(kind % 5 + 0x10 * (kind // 5), name, values))
    return PolyDataContent(points, draw(cells), draw(cells), draw(cells), draw(cells), tuple(attributes))


@st.composite
def colour_tables(draw: st.DrawFn) -> ColorTableContent:
    shape, dtype = draw(st.sampled_from([((256,), "u1"), ((256,), "u2"), ((256, 3), "u1"), ((65536,), "u2")]))
    return ColorTableContent(np.resize(draw(hnp.arrays(dtype, 7)), shape))


arrays = st.sampled_from(["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8", "c16"]).flatmap(
    lambda kind: hnp.arrays(np.dtype(kind), hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4))
)
names = listed(st.tuples(fixed(12), fixed(20)))
tools = st.builds(TrackedTool, fixed(20), matrices(), st.integers(1, 4), bytes_)
turned = st.builds(
    QuaternionTool, fixed(20), vectors, st.tuples(floats, floats, floats, floats), st.integers(1, 4), bytes_
)
metas = st.builds(
    ImageMeta, fixed(64), fixed(20), fixed(32), fixed(64), fixed(64), st.tuples(longs, longs), sizes, bytes_, bytes_
)
paths = st.builds(
    Trajectory, fixed(64), vectors, vectors, fixed(32), st.integers(1, 3), colours, floats, fixed(20),
    st.integers(-128, 127),
)  # fmt: skip
video_metas = st.builds(
    VideoMeta, fixed(64), fixed(64), fixed(64), fixed(64), st.integers(-32768, 32767), doubles, sizes, axes, positions,
    bytes_, bytes_,
)  # fmt: skip
children = st.builds(BindChild, fixed(12).filter(bool), fixed(20), st.binary(max_size=9))
encoded = {"text": texts, "encoding": st.sampled_from([106, 0])}
commands = {"command_id": longs, "name": fixed(128), **encoded}

CONTENTS: dict[str, st.SearchStrategy[Content]] = {
    "TRANSFORM": st.builds(TransformContent, matrices()),
    "POSITION": st.builds(
        PositionContent, vectors, st.sampled_from([0, 3, 4]).flatmap(lambda n: st.tuples(*[floats] * n))
    ),
    "TDATA": st.builds(TrackingContent, listed(tools)),
    "QTDATA": st.builds(QuaternionTrackingContent, listed(turned)),
    "IMAGE": images(),
    "IMGMETA": st.builds(ImageMetaContent, listed(metas)),
    "LBMETA": st.builds(
        LabelMetaContent,
        listed(st.builds(LabelMeta, fixed(64), fixed(20), bytes_, colours, sizes, fixed(20), bytes_)),
    ),
    "VIDEO": videos(),
    "VIDEOMETA": st.builds(VideoMetaContent, listed(video_metas)),
    "STATUS": st.builds(StatusContent, shorts, st.integers(-(2**63), 2**63 - 1), fixed(20), texts),
    "STRING": st.builds(StringContent, **encoded),
    "CLIENTINFO": st.builds(ClientInfoContent, **encoded),
    "POINT": st.builds(
        PointContent, listed(st.builds(Point, fixed(64), vectors, fixed(32), colours, floats, fixed(20)))
    ),
    "TRAJ": st.builds(TrajectoryContent, listed(paths)),
    "SENSOR": st.builds(
        SensorContent, hnp.arrays(float, st.integers(0, 255), fill=st.just(1.5)), st.integers(0, 2**64 - 1), bytes_
    ),
    "NDARRAY": st.builds(NdarrayContent, arrays),
    "COLORT": colour_tables(),
    "POLYDATA": polydata(),
    "BIND": st.builds(BindContent, listed(children)),
    "CAPABILITY": st.builds(CapabilityContent, listed(fixed(12))),
    "COMMAND": st.builds(CommandContent, **commands),
    "RTS_COMMAND": st.builds(CommandReplyContent, **commands),
    "GET_BIND": st.builds(GetBindContent, st.none() | names),
    "STT_BIND": st.builds(StartBindContent, st.integers(0, 2**64 - 1), st.none() | names),
    "STT_TDATA": st.builds(StartTrackingContent, st.integers(-(2**31), 2**31 - 1), fixed(32)),
    "STT_QTDATA": st.builds(StartTrackingContent, st.integers(0, 2**31 - 1), fixed(32)),
    "STT_VIDEO": st.builds(StartVideoContent, fixed(4), longs, st.none() | bytes_),
    "GET_IMAGE": st.just(QueryContent()),
    "STT_SENSOR": st.builds(QueryContent, st.none() | st.integers(0, 2**64 - 1)),
    "RTS_TDATA": st.builds(ReplyContent, st.none() | bytes_),
}
ALIASES = {"POSITION": "QTRANS", "COLORT": "COLORTABLE"}

entries = st.lists(
    st.builds(MetadataEntry, texts, texts, st.sampled_from([106, 0])) | st.builds(
        MetadataEntry, texts, st.text("aéß", max_size=9), st.just(4)
    ),
    max_size=4,
)  # fmt: skip


def test_every_type_of_the_protocol_is_here() -> None:
    assert {*DATA_TYPES} <= {*CONTENTS, *ALIASES.values()}


def is_same(a: Any, b: Any) -> bool:
    """Equal in every field, arrays bit for bit; 0 for a character set means any."""
    if isinstance(a, np.ndarray):
        return bool(a.shape == b.shape and a.astype(b.dtype).tobytes() == b.tobytes())
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(is_same, a, b))
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(
            is_same(getattr(a, f.name), getattr(b, f.name)) or (f.name == "encoding" and a.encoding == 0)  # type: ignore[attr-defined]
            for f in dataclasses.fields(a)
        )
    if isinstance(a, float):
        return struct.pack(">d", a) == struct.pack(">d", b)
    return bool(a == b)


@pytest.mark.parametrize("type_name", CONTENTS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_content_comes_back(type_name: str, data: st.DataObject) -> None:
    content = data.draw(CONTENTS[type_name])
    version, device = data.draw(st.sampled_from([1, 2])), data.draw(fixed(20))
    metadata = data.draw(entries) if version == 2 else []
    stamp = data.draw(st.none() | st.integers(1, (1 << 32) * 10**9 - 1))
    if data.draw(st.booleans()):
        type_name = ALIASES.get(type_name, type_name)
    raw = encode_content(
        device, content, type_name=type_name, sender_ns=stamp, version=version, metadata=metadata,
        message_id=5 if version == 2 else 0,
    )  # fmt: skip
    cut = data.draw(st.integers(0, len(raw)))
    framer = Framer()
    assert framer.feed(raw[:cut]) + framer.feed(raw[cut:]) == [raw]
    message = parse_message(raw)
    assert (message.type_name, message.device, message.sender_ns) == (type_name, device, stamp)
    assert [(e.key, e.value) for e in message.entries] == [(e.key, e.value) for e in metadata]
    again = unpack_message(message)
    assert again is not None
    if not isinstance(again, EmptyContent):
        assert is_same(content, again)
    assert repack_message(message, again.pack()) == raw
    assert isinstance(decode(raw, source="s", sequence=0, arrival_ns=0), Message)
    written = json.loads(json.dumps(message_as_json(raw), allow_nan=False))
    assert "content_raw" not in written
    assert message_from_json(written) == raw


def check_any(type_name: str, body: bytes, version: int) -> None:
    """Bytes that are read go out as they came, both ways; what cannot be read is named within the message."""
    raw = pack_message(type_name, "Device", body)
    raw = bytes([0, version]) + raw[2:]
    wrong = None
    try:
        message = parse_message(raw)
        content = unpack_message(message)
    except WireError as error:
        wrong = error
    if wrong is not None:
        assert 0 <= wrong.offset <= len(raw)
        return
    assert content is not None
    assert repack_message(message) == raw
    with contextlib.suppress(EncodeError):  # well-formed, but not fit to be sent: not finite, or not in its list
        assert content.pack() == message.content
    assert message_from_json(json.loads(json.dumps(message_as_json(raw), allow_nan=False))) == raw


@pytest.mark.parametrize("type_name", CONTENTS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_contents_are_named_or_go_out_as_they_came(type_name: str, data: st.DataObject) -> None:
    body = bytearray(data.draw(CONTENTS[type_name]).pack())
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, 300), bytes_), max_size=5)):
        if body:
            body[at % len(body)] = value
    cut = data.draw(st.integers(0, 3))
    check_any(type_name, bytes(body[: len(body) - cut]) + data.draw(st.binary(max_size=2)), 1)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([*CONTENTS, *(query_type(p, t) for p in ("GET", "STT", "STP", "RTS") for t in DATA_TYPES)]),
    st.binary(max_size=300),
    st.sampled_from([1, 2]),
)
def test_noise_is_named_or_goes_out_as_it_came(type_name: str, body: bytes, version: int) -> None:
    assert content_class(type_name) is not None
    check_any(type_name, body, version)


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=20, max_size=20), st.binary(max_size=40), st.tuples(longs, longs), st.binary(max_size=9))
def test_any_header_and_metadata_go_out_as_they_came(
    device: bytes, tail: bytes, stamp: tuple[int, int], extension: bytes
) -> None:
    raw = pack_message("STRING", "", b"\0\3\0\0", stamp=stamp, extension=extension, version=2)
    raw = raw[:14] + device + raw[34:]
    assert repack_message(parse_message(raw)) == raw
    assert message_from_json(json.loads(json.dumps(message_as_json(raw)))) == raw
    count = len(tail) // 10
    index = struct.pack(">H", count) + b"".join(struct.pack(">HHI", 3, 5 * n, 7) for n in range(count))
    body = struct.pack(">HHII", 12, len(index), 10 * count, 9) + b"\0\3\0\0" + index + tail[: 10 * count]
    with_metadata = b"\0\2" + pack_message("STRING", "D", body)[2:]
    assert repack_message(parse_message(with_metadata)) == with_metadata
    assert message_from_json(json.loads(json.dumps(message_as_json(with_metadata)))) == with_metadata
