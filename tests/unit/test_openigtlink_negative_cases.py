"""Bytes that once did harm, each under the name of what was wrong. Found by the fuzzers in ``tests/fuzz``."""

from __future__ import annotations

import queue
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import config as numba_config

from drivers.openigtlink import source as source_module
from drivers.openigtlink.codec import decode, encode_string, encode_transform
from drivers.openigtlink.contents import NdarrayContent
from drivers.openigtlink.framing import Framer
from drivers.openigtlink.json_form import message_from_json
from drivers.openigtlink.sink import IgtlServer
from drivers.openigtlink.wire import ContentError, EncodeError, Limits, pack_message
from nav.config.room import SourceConfig, ToolStreamConfig
from nav.runtime.messages import Message, PoseMessage, TextMessage, UnusedMessage


def header(type_name: str, size: int) -> bytes:
    return struct.pack(">H12s20sIIQQ", 1, type_name.encode(), b"x", 0, 0, size, 0)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_empty_ndarray_of_impossible_shape() -> None:
    """Axes of 65535 beside one of 0 hold no number, and yet NumPy has no such array."""
    body = struct.pack(">BB6H", 3, 6, 65535, 65535, 65535, 65535, 65535, 0)
    with pytest.raises(ContentError, match="NDARRAY shape"):
        NdarrayContent.unpack(body)
    assert isinstance(decode(pack_message("NDARRAY", "x", body), source="s", sequence=0, arrival_ns=0), Message)


def test_empty_ndarray_of_a_possible_shape() -> None:
    body = struct.pack(">BB3H", 3, 3, 65535, 0, 65535)
    content = NdarrayContent.unpack(body)
    assert content.array.shape == (65535, 0, 65535)
    assert content.pack() == body


def test_json_of_an_empty_ndarray_of_impossible_shape() -> None:
    spec = {
        "type": "NDARRAY",
        "device": "x",
        "content": {"array": {"dtype": "uint8", "shape": [65535, 65535, 65535, 65535, 0], "base64": ""}},
    }
    with pytest.raises(EncodeError, match="shape"):
        message_from_json(spec)


def test_announced_size_costs_no_memory() -> None:
    """58 bytes that announce the largest image: its room is not filled before its bytes come."""
    before = resident_bytes()
    framers = [Framer() for _ in range(4)]
    for framer in framers:
        assert framer.feed(header("IMAGE", Limits().decoded["IMAGE"])) == []
        assert framer.expected > 100 << 20
    assert resident_bytes() - before < 32 << 20


def test_message_that_was_announced_large_is_received_whole() -> None:
    body = np.random.default_rng(1).integers(0, 256, 3 << 20, dtype=np.uint8).tobytes()
    raw = pack_message("IMAGE", "x", body)
    framer = Framer()
    messages = [m for at in range(0, len(raw), 99_999) for m in framer.feed(raw[at : at + 99_999])]
    assert messages == [raw]
    assert type(messages[0]) is bytes


def test_flood_of_long_names_is_not_remembered() -> None:
    """Names are cached; one in the metadata of 60 kB, always another, filled 300 MB."""
    room = SourceConfig(name="s", port=1, tools=(ToolStreamConfig(device="Tool", transform="NeedleToTracker"),))
    before = resident_bytes()
    for n in range(1500):
        device = f"N{n:019d}"
        raw = encode_transform(device, np.eye(4), version=2, metadata={"IGTL_DEVICE_NAME": device + "x" * 60_000})
        message = decode(raw, source="s", sequence=n, arrival_ns=0, options=room)
        assert isinstance(message, PoseMessage)
        assert message.tools[0].name == device
    assert resident_bytes() - before < 32 << 20


@pytest.mark.skipif(bool(numba_config.DISABLE_JIT), reason="receiving needs compiled kernels")
def test_decoder_that_fails_ends_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken installation of a codec once ended the thread that delivers: the source was silent for ever."""

    def decode_or_fail(raw: bytes, **others: Any) -> Message:
        if raw[2:7] == b"VIDEO":
            raise AttributeError("module 'av' has no attribute 'CodecContext'")
        return decode(raw, **others)

    monkeypatch.setattr(source_module, "decode", decode_or_fail)
    got: queue.Queue[Message] = queue.Queue()

    class Sink:
        def deliver(self, message: Message, raw: bytes | memoryview | None) -> None:  # noqa: ARG002
            got.put(message)

    with IgtlServer() as server:
        source = source_module.IgtlSource(SourceConfig(name="s", port=server.port))
        source.start(Sink())
        try:
            assert server.wait_for_clients()
            server.publish("Scope", lambda _version: pack_message("VIDEO", "Scope", bytes(90)))
            server.publish("Text", lambda _version: encode_string("Text", "still here"))
            seen = []
            while not any(isinstance(m, TextMessage) for m in seen):
                seen.append(got.get(timeout=5.0))
        finally:
            source.stop()
    unused = [m for m in seen if isinstance(m, UnusedMessage)]
    assert [m.device for m in unused] == ["Scope"]
    assert "CodecContext" in unused[0].problem
    assert seen[-1].sequence == len(seen) - 1
