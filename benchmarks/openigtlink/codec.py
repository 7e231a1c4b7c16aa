"""CPU time of packing and reading OpenIGTLink messages, ours beside pyigtl's.

Run ``python benchmarks/openigtlink/codec.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from pyigtl import messages

from drivers.openigtlink.codec import decode, encode_image, encode_transform
from drivers.openigtlink.framing import Framer

POSE = np.eye(4)
METADATA = {"TransformStatus": "OK"}


def cpu_us(call: Callable[[], object], seconds: float = 0.5) -> float:
    """CPU microseconds per call, best of three rounds."""
    call()
    best = float("inf")
    for _ in range(3):
        count, began = 0, time.thread_time()
        while time.thread_time() - began < seconds / 3:
            for _ in range(5):
                call()
            count += 5
        best = min(best, (time.thread_time() - began) / count)
    return best * 1e6


FRAMER = Framer()


def ours_read(raw: bytes) -> object:
    (whole,) = FRAMER.feed(raw)
    return decode(whole, source="s", sequence=0, arrival_ns=0)


def theirs_read(raw: bytes) -> object:
    fields = messages.MessageBase.parse_header(raw[:58])
    message = messages.MessageBase.create_message(fields["message_type"])
    message.unpack(fields, raw[58:])
    return message


def theirs_transform() -> bytes:
    message = messages.TransformMessage(POSE, device_name="NeedleToTracker", timestamp=1.5e9)
    message.header_version, message.metadata = 2, METADATA
    packed: bytes = message.pack()
    return packed


def main() -> None:
    print(f"{'message':28}{'pack us':>12}{'pyigtl':>10}{'read us':>12}{'pyigtl':>10}   (pyigtl reads without CRC)")
    raw = encode_transform("NeedleToTracker", POSE, sender_ns=10**18, version=2, metadata=METADATA)
    rows: list[tuple[str, Callable[[], bytes], Callable[[], bytes]]] = [
        (
            "TRANSFORM v2, status",
            lambda: encode_transform("NeedleToTracker", POSE, sender_ns=10**18, version=2, metadata=METADATA),
            theirs_transform,
        )
    ]
    for name, shape, dtype in (
        ("IMAGE 512x512 u8", (1, 512, 512), np.uint8),
        ("IMAGE 1024x768 u8", (1, 768, 1024), np.uint8),
        ("IMAGE 512x512x16 i16", (16, 512, 512), np.int16),
    ):
        array = np.zeros(shape, dtype)
        rows.append(
            (
                name,
                lambda a=array: encode_image("Image", a, POSE, sender_ns=10**18),  # type: ignore[misc]
                lambda a=array: messages.ImageMessage(a, POSE, "ras", timestamp=1.5e9, device_name="Image").pack(),  # type: ignore[misc]
            )
        )
    for name, ours, theirs in rows:
        raw = ours()
        print(
            f"{name:28}{cpu_us(ours):12.1f}{cpu_us(theirs):10.1f}"
            f"{cpu_us(lambda r=raw: ours_read(r)):12.1f}{cpu_us(lambda r=raw: theirs_read(r)):10.1f}"  # type: ignore[misc]
        )


if __name__ == "__main__":
    main()
