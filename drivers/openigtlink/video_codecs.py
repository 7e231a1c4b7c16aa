"""Pictures out of VIDEO: I420 by itself, H.264, VP9, H.265 and AV1 through PyAV (the optional extra ``video``).

I420 is one plane of brightness and two of colour with half the size in each direction; BT.601 with the range of video
(16 to 235), as the C++ library converts it. Of a grey frame only the brightness counts, and it has the full range.
Source: OpenIGTLink 3.1, ``Source/VideoStreaming``; ITU-R BT.601.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from drivers.openigtlink.contents import VideoContent
from drivers.openigtlink.errors import ContentError, EncodeError
from drivers.openigtlink.wire import HEADER_SIZE

__all__ = ["KEY_FRAME", "VideoDecoders", "VideoUnavailableError", "i420_bitstream", "i420_picture", "i420_planes"]

KEY_FRAME = 1
GREY = 8  # a grey frame has its type shifted by so many bits
_BITSTREAM_AT = HEADER_SIZE + 76

#: Codec of the message → decoder of FFmpeg.
_DECODERS = {"H264": "h264", "VP90": "vp9", "VP9": "vp9", "X265": "hevc", "AV10": "av1", "AV1": "av1"}

Picture = NDArray[np.uint8]


class VideoUnavailableError(RuntimeError):
    """The bytes may be right, but there is no picture: a codec is missing, or a frame before this one is."""


def i420_planes(content: VideoContent) -> tuple[Picture, Picture | None, Picture | None]:
    """Brightness (h, w) and the two planes of colour (h/2, w/2), which a grey frame may go without.

    Raises
    ------
    ContentError
        When the bitstream has not the size of the planes.
    """
    width, height, depth = content.part
    raw = np.frombuffer(content.bitstream, np.uint8)
    even = width % 2 == 0 and height % 2 == 0
    whole = width * height * 3 // 2
    allowed = ({whole} if even or content.grey else set()) | ({width * height} if content.grey else set())
    if depth != 1 or len(raw) not in allowed:
        limit = " or ".join(map(str, sorted(allowed))) or "an even width and height"
        raise ContentError(
            f"I420 frame of {width} x {height} x {depth}", offset=_BITSTREAM_AT, value=f"{len(raw)} bytes", limit=limit
        )
    brightness = raw[: width * height].reshape(height, width)
    if len(raw) == width * height or not even:
        return brightness, None, None
    quarter = width * height // 4
    u, v = (raw[width * height + n * quarter :][:quarter].reshape(height // 2, width // 2) for n in (0, 1))
    return brightness, u, v


def i420_picture(content: VideoContent) -> Picture:
    """(h, w) of a grey frame, (h, w, 3) red, green, blue of any other; `ContentError` as in `i420_planes`."""
    brightness, u, _ = i420_planes(content)
    if content.grey or u is None:
        return brightness
    height, width = brightness.shape
    raw = np.frombuffer(content.bitstream, np.uint8).reshape(height * 3 // 2, width)
    return np.asarray(cv2.cvtColor(raw, cv2.COLOR_YUV2RGB_I420), dtype=np.uint8)


def i420_bitstream(picture: Picture) -> tuple[bytes, int]:
    """Bitstream and frame type of a picture: (h, w) grey or (h, w, 3) red, green, blue, of even width and height.

    Raises
    ------
    EncodeError
    """
    array = np.ascontiguousarray(picture)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)):
        raise EncodeError(f"VIDEO: {array.dtype} {array.shape}, expected uint8 (h, w) or (h, w, 3)")
    height, width = array.shape[:2]
    if width % 2 or height % 2 or not array.size:
        raise EncodeError(f"VIDEO: {width} x {height}, I420 needs an even width and height")
    if array.ndim == 2:
        return array.tobytes() + b"\x80" * (width * height // 2), KEY_FRAME << GREY
    return np.asarray(cv2.cvtColor(array, cv2.COLOR_RGB2YUV_I420)).tobytes(), KEY_FRAME


class VideoDecoders:
    """One decoder per stream of one connection. A frame that is lost (`lost`) makes it wait for the next key frame.

    Not for several threads at a time.
    """

    def __init__(self) -> None:
        self._decoders: dict[tuple[str, str], Any] = {}

    def lost(self, device: str | None = None) -> None:
        """A message of this device (None: of any) did not get here: what builds on it is not shown."""
        for key in [key for key in self._decoders if device is None or key[0] == device]:
            del self._decoders[key]

    def picture(self, content: VideoContent, device: str) -> Picture:
        """(h, w) of a grey frame, (h, w, 3) red, green, blue of any other.

        Raises
        ------
        ContentError
            When the bitstream cannot be decoded, or gives a picture of another size.
        VideoUnavailableError
            When a codec or a frame before this one is missing.
        """
        codec = content.codec.strip()
        if codec == "I420":
            return i420_picture(content)
        av = _av(codec)
        key = (device, codec)
        frame_type = content.frame_type >> GREY if content.grey else content.frame_type
        if key not in self._decoders:
            if frame_type != KEY_FRAME:
                raise VideoUnavailableError(
                    f"VIDEO {device!r}: waits for a key frame, this one is of type {frame_type}"
                )
            self._decoders[key] = _open(av, codec)
        try:
            frames = self._decoders[key].decode(av.Packet(bytes(content.bitstream)))
        except (av.error.FFmpegError, ValueError) as error:
            self.lost(device)
            raise ContentError(
                f"{codec} bitstream", offset=_BITSTREAM_AT, value=f"{len(content.bitstream)} bytes", limit=str(error)
            ) from None
        if not frames:
            raise VideoUnavailableError(f"VIDEO {device!r}: the decoder gave no picture for this frame")
        frame = frames[-1]
        wanted = content.part
        if (frame.width, frame.height, 1) != wanted or frame.is_corrupt:
            self.lost(device)
            found = f"{frame.width} x {frame.height}" + (", damaged" if frame.is_corrupt else "")
            raise ContentError(f"{codec} picture", offset=_BITSTREAM_AT, value=found, limit=f"{wanted}, whole")
        if not content.grey:
            return np.asarray(frame.to_ndarray(format="rgb24"))
        # The first plane as it is: a conversion to grey would stretch the range of video.
        plane = frame.planes[0]
        lines = np.frombuffer(plane, np.uint8).reshape(frame.height, plane.line_size)
        return np.ascontiguousarray(lines[:, : frame.width])


def _av(codec: str) -> ModuleType:
    if codec not in _DECODERS:
        raise VideoUnavailableError(f"VIDEO codec {codec!r}: known are I420, {', '.join(_DECODERS)}")
    try:
        return importlib.import_module("av")
    except ImportError:
        raise VideoUnavailableError(
            f"VIDEO in {codec} needs the package av: install it with pip install 'ablation-nav[video]'"
        ) from None


def _open(av: ModuleType, codec: str) -> Any:
    decoder = av.CodecContext.create(_DECODERS[codec], "r")
    decoder.thread_count = 1  # several would hold frames back
    decoder.flags |= av.codec.context.Flags.low_delay
    return decoder
