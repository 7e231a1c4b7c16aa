"""What a bridge makes of messages: unchanged bytes, other names, tools of their own, version 1."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from drivers.openigtlink.codec import (
    decode,
    encode_content,
    encode_image,
    encode_status,
    encode_string,
    encode_tdata,
    encode_transform,
)
from drivers.openigtlink.contents import (
    QuaternionTool,
    QuaternionTrackingContent,
    TrackedTool,
    TrackingContent,
    TransformContent,
    unpack_message,
)
from drivers.openigtlink.forwarding import Forwarded, Forwarding, RenameError, renames
from drivers.openigtlink.selection import Filter
from drivers.openigtlink.wire import check_crc, parse_header, parse_message

STAMP = 1_700_000_000_123_456_789


def at(x: float) -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, 3] = [x, 2.0, 3.0]
    return matrix


def forward(rules: Forwarding, raw: bytes) -> list[Forwarded]:
    return rules.messages(decode(raw, source="s", sequence=0, arrival_ns=1), raw)


def tracking(version: int = 2, **lost: str) -> bytes:
    tools = [TrackedTool("NeedleToTracker", at(1.0)), TrackedTool("ProbeToTracker", at(5.0))]
    metadata = {f"{name}Status": status for name, status in lost.items()}
    return encode_tdata("TDATA", tools, sender_ns=STAMP, version=version, metadata=metadata if version == 2 else None)


@pytest.mark.parametrize(
    "raw",
    [
        encode_transform("NeedleToTracker", at(1), sender_ns=STAMP),
        encode_transform("NeedleToTracker", at(1), version=2, metadata={"TransformStatus": "MISSING"}),
        encode_image("Image", np.arange(6, dtype=np.uint8).reshape(1, 2, 3), at(1), sender_ns=STAMP),
        tracking(),
    ],
)
def test_bytes_are_handed_on_unchanged_to_every_client(raw: bytes) -> None:
    (one,) = forward(Forwarding(), raw)
    assert one.raw == raw
    assert one.first == raw


def test_only_types_and_names_that_were_asked_for() -> None:
    rules = Forwarding(Filter(types=("T*",), names=("*ToTracker",)))
    assert forward(rules, encode_transform("NeedleToTracker", at(1)))
    assert not forward(rules, encode_transform("NeedleToReference", at(1)))
    assert not forward(rules, encode_status("NeedleToTracker"))
    assert dict(rules.refused) == {"not asked for": 2}


def test_streams_may_drop_and_texts_may_not() -> None:
    def queue(raw: bytes) -> tuple[str, int]:
        (one,) = forward(Forwarding(), raw)
        return one.kind, one.depth

    assert queue(encode_transform("A", at(1))) == ("stream", 32)
    assert queue(encode_image("I", np.zeros((1, 2, 2), np.uint8), at(1))) == ("stream", 2)
    assert queue(encode_string("S", "go"))[0] == "reliable"
    assert queue(encode_status("S"))[0] == "stream"  # a keep-alive
    assert queue(encode_status("S", 13))[0] == "reliable"  # a complaint


def test_a_new_name_changes_nothing_else() -> None:
    raw = encode_transform("Tool1", at(1), sender_ns=STAMP)
    (one,) = forward(Forwarding(rename=renames(["Tool1=StylusTipToReference"])), raw)
    assert parse_header(one.raw).device == "StylusTipToReference"
    assert one.raw[:14] + one.raw[34:] == raw[:14] + raw[34:]
    check_crc(parse_header(one.raw), one.raw[58:])


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (["A"], "expected OLD=NEW"),
        (["=B"], "expected OLD=NEW"),
        (["A="], "expected OLD=NEW"),
        (["A=StylusTipToReference2"], "limit 20 bytes"),
        (["A=B", "A=C"], "renamed to B already"),
        (["A=B", "C=B"], "called B already"),
    ],
)
def test_renamings_that_cannot_be_done_are_refused(rules: list[str], words: str) -> None:
    with pytest.raises(RenameError, match=words):
        renames(rules)


def test_tools_become_transforms_with_their_status() -> None:
    rules = Forwarding(split=True, rename={"ProbeToTracker": "UsToTracker"})
    out = forward(rules, tracking(NeedleToTracker="OK", ProbeToTracker="MISSING"))
    needle, probe = (parse_message(one.raw) for one in out)
    assert (needle.type_name, needle.device, needle.sender_ns) == ("TRANSFORM", "NeedleToTracker", STAMP)
    assert needle.metadata == {"TransformStatus": "OK"}
    content = unpack_message(needle)
    assert isinstance(content, TransformContent)
    assert content.matrix[0, 3] == 1.0
    assert probe.device == "UsToTracker"
    assert probe.metadata == {"TransformStatus": "MISSING"}
    assert parse_header(out[0].first or b"").version == 1
    assert out[1].first is None  # version 1 has no place for the status: silence
    assert rules.refused["lost tools, for version 1"] == 1


def test_tools_of_version_1_stay_version_1() -> None:
    for one in forward(Forwarding(split=True), tracking(version=1)):
        assert parse_header(one.raw).version == 1
        assert one.first == one.raw


def test_quaternion_tools_become_transforms() -> None:
    tool = QuaternionTool("NeedleToTracker", (1.0, 2.0, 3.0), (0.0, 0.0, 1.0, 0.0))
    raw = encode_content("QT", QuaternionTrackingContent((tool,)), sender_ns=STAMP)
    (one,) = forward(Forwarding(split=True), raw)
    content = unpack_message(parse_message(one.raw))
    assert isinstance(content, TransformContent)
    assert content.matrix[:3, 3].tolist() == [1.0, 2.0, 3.0]
    assert content.matrix[0, 0] == -1.0


def test_version_1_keeps_stamp_and_content() -> None:
    raw = encode_transform("A", at(1), sender_ns=STAMP, version=2, metadata={"TransformStatus": "OK"})
    (one,) = forward(Forwarding(downgrade=True), raw)
    assert one.raw == raw
    assert one.first == encode_transform("A", at(1), sender_ns=STAMP)


def test_version_1_says_nothing_of_a_lost_tool() -> None:
    rules = Forwarding(downgrade=True)
    lost = encode_transform("A", np.eye(4), version=2, metadata={"TransformStatus": "MISSING"})
    (one,) = forward(rules, lost)
    assert one.raw == lost
    assert one.first is None
    (one,) = forward(rules, tracking(NeedleToTracker="MISSING"))
    assert one.first is not None
    content = unpack_message(parse_message(one.first))
    assert isinstance(content, TrackingContent)
    assert [tool.name for tool in content.tools] == ["ProbeToTracker"]
    assert rules.refused["lost tools, for version 1"] == 2


def test_version_1_of_what_cannot_be_read_is_left_out() -> None:
    raw = bytearray(encode_transform("A", at(1), version=2))
    raw[60:62] = (200).to_bytes(2, "big")
    rules = Forwarding(downgrade=True)
    (one,) = forward(rules, bytes(raw))
    assert one.first is None
    assert rules.refused["cannot be read, for version 1"] == 1
