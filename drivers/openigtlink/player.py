"""Plays recordings as live OpenIGTLink servers: a recorded file becomes an ordinary source, at real speed.

Every message carries its recorded time, moved onto the player's clock as a whole: distances in time are those of the
recording, nothing is re-sampled. Lost tools are silent, as a PLUS server makes them by default.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from drivers.openigtlink.codec import encode_image, encode_transform
from drivers.openigtlink.sink import IgtlServer
from drivers.openigtlink.wire import DEVICE_NAME_BYTES
from nav.geometry.poses import PoseStatus
from nav.io.sequence import TrackedSequence, read_sequence
from nav.runtime.clock import Clock, SystemClock

__all__ = [
    "PlayedImage",
    "PlayedMessage",
    "PlayedTransform",
    "play",
    "play_sequence",
    "sequence_messages",
]


class PlayedMessage(Protocol):
    """Something to send at ``time_s`` of the recording."""

    @property
    def time_s(self) -> float:
        """Recorded time."""

    def send(self, server: IgtlServer, sender_ns: int) -> None:
        """Publish it with this stamp."""


@dataclass(frozen=True, slots=True, eq=False)
class PlayedTransform:
    """A pose (4, 4), mm. ``status`` other than OK is sent as the identity with the status in the metadata."""

    time_s: float
    device: str
    matrix: NDArray[np.float64]
    status: PoseStatus = PoseStatus.OK

    def send(self, server: IgtlServer, sender_ns: int) -> None:
        """See `PlayedMessage`."""
        metadata = {"TransformStatus": self.status.value}
        device = self.device
        if len(device.encode("utf-8")) > DEVICE_NAME_BYTES:  # as PLUS does: cut on the wire, whole in the metadata
            metadata["IGTL_DEVICE_NAME"] = device
            device = device.encode("utf-8")[:DEVICE_NAME_BYTES].decode("utf-8", "ignore")
        matrix = self.matrix if self.status is PoseStatus.OK else np.eye(4)
        server.publish(
            device,
            lambda v: encode_transform(device, matrix, sender_ns=sender_ns, version=v, metadata=metadata),
        )


@dataclass(frozen=True, slots=True, eq=False)
class PlayedImage:
    """An image (rows, columns[, 3]) placed by ``mm_from_index`` (4, 4)."""

    time_s: float
    device: str
    array: NDArray[np.generic]
    mm_from_index: NDArray[np.float64]

    def send(self, server: IgtlServer, sender_ns: int) -> None:
        """See `PlayedMessage`."""
        volume = self.array[np.newaxis]
        server.publish(
            self.device,
            lambda v: encode_image(self.device, volume, self.mm_from_index, sender_ns=sender_ns, version=v),
            depth=2,
        )


def play(
    server: IgtlServer,
    messages: Iterable[PlayedMessage],
    *,
    loop: bool = False,
    stop: threading.Event | None = None,
    clock: Clock | None = None,
) -> int:
    """Send messages at the distances in time of the recording; returns how many, once it is over or stopped.

    Parameters
    ----------
    server : IgtlServer
        Running.
    messages : iterable of PlayedMessage
        In any order.
    loop : bool
        Begin again after the end, one median period later, with stamps that go on.
    stop : Event or None
        Set it to end early.
    clock : Clock or None
        Its UTC stamps the messages, its monotonic time paces them.

    Raises
    ------
    ValueError
        When there is nothing to play or a time is not finite.
    """
    ordered = sorted(messages, key=lambda m: m.time_s)
    times = np.array([m.time_s for m in ordered])
    if not len(times) or not np.isfinite(times).all():
        raise ValueError(f"nothing to play: {len(times)} messages, {np.isfinite(times).sum()} of them with a time")
    offsets_ns = np.round((times - times[0]) * 1e9).astype(np.int64)
    steps = np.diff(np.unique(offsets_ns))
    period_ns = int(offsets_ns[-1]) + (int(np.median(steps)) if len(steps) else 1_000_000_000)
    stop = threading.Event() if stop is None else stop
    clock = SystemClock() if clock is None else clock
    begin_ns, begin_utc_ns = clock.now_ns(), clock.utc_ns()
    sent, lap = 0, 0
    while not stop.is_set():
        for message, offset in zip(ordered, offsets_ns, strict=True):
            at = lap * period_ns + int(offset)
            wait_s = (begin_ns + at - clock.now_ns()) * 1e-9
            if wait_s > 0 and stop.wait(wait_s):
                return sent
            message.send(server, begin_utc_ns + at)
            sent += 1
        lap += 1
        if not loop:
            break
    return sent


def sequence_messages(
    sequence: TrackedSequence,
    *,
    image_device: str = "Image",
    devices: Mapping[str, str] | None = None,
    send_invalid: bool = False,
) -> list[PlayedMessage]:
    """The messages a PLUS server would send for a recorded sequence.

    Parameters
    ----------
    image_device : str
        Device name of the images; their header places pixels at 1 mm, as PLUS does for an untracked image.
    devices : mapping or None
        Transform name → device name; transforms that are not in it are left out. None: all, under their own names.
    send_invalid : bool
        Send lost tools as identity with status instead of being silent (PLUS ``SendValidTransformsOnly="FALSE"``).
    """
    out: list[PlayedMessage] = []
    for name, track in sequence.transforms.items():
        device = name if devices is None else devices.get(name)
        if device is None:
            continue
        for time_s, matrix, status in zip(sequence.timestamps_s, track.matrices, track.statuses, strict=True):
            if status is PoseStatus.OK or send_invalid:
                out.append(PlayedTransform(float(time_s), device, matrix, status))
    if sequence.images is not None:
        for time_s, image, valid in zip(sequence.timestamps_s, sequence.images, sequence.image_valid, strict=True):
            if valid:
                out.append(PlayedImage(float(time_s), image_device, image, np.eye(4)))
    return out


def play_sequence(
    path: Path | str,
    server: IgtlServer,
    *,
    loop: bool = True,
    image_device: str = "Image",
    devices: Mapping[str, str] | None = None,
    send_invalid: bool = False,
    stop: threading.Event | None = None,
    clock: Clock | None = None,
) -> int:
    """Read a sequence metafile and `play` it; see `sequence_messages` for the options.

    Raises
    ------
    SequenceError
        When the file cannot be read.
    ValueError
        When it holds nothing to play or a frame without a time.
    """
    messages: Sequence[PlayedMessage] = sequence_messages(
        read_sequence(path), image_device=image_device, devices=devices, send_invalid=send_invalid
    )
    return play(server, messages, loop=loop, stop=stop, clock=clock)
