"""Video: VIDEO (the container; `drivers.openigtlink.video_codecs` decodes what is in it), VIDEOMETA, STT_VIDEO."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from drivers.openigtlink.contents.base import (
    Content,
    bad,
    need_length,
    need_multiple,
    need_size,
    pack_numbers,
)
from drivers.openigtlink.contents.images import Size, check_part, frame_of, frame_values, need_part
from drivers.openigtlink.errors import EncodeError
from drivers.openigtlink.text import field_text, fixed_text

__all__ = ["StartVideoContent", "VideoContent", "VideoMeta", "VideoMetaContent"]

_VIDEO = struct.Struct(">HB4sHB3H12f3H3H")
_VIDEO_META = struct.Struct(">64s64s64s64shd3H12fBB")
_START = struct.Struct(">4sI")


@dataclass(frozen=True, slots=True, eq=False)
class VideoContent(Content):
    """VIDEO: one encoded frame and its place.

    Attributes
    ----------
    codec : str
        "I420", "H264", "VP90", "X265", "AV10".
    frame_type : int
        1 for a key frame; above 255 (shifted by 8 bits) for grey-scale.
    endian, coordinate, size, axes, position, offset, part
        As in `ImageContent`.
    bitstream : memoryview
        What the codec has made of the frame.
    """

    type_name: ClassVar[str] = "VIDEO"
    codec: str
    frame_type: int
    endian: int
    coordinate: int
    size: Size
    axes: NDArray[np.float64]
    position: NDArray[np.float64]
    offset: Size
    part: Size
    bitstream: memoryview
    version: int = 1

    @property
    def grey(self) -> bool:
        """True when the frame holds brightness alone."""
        return self.frame_type > 0xFF

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read the 76-byte video header and check its numbers; the bitstream is the codec's business.

        Raises
        ------
        ContentError
        """
        need_size("VIDEO", raw, _VIDEO.size, exactly=False)
        v = _VIDEO.unpack_from(raw)
        version, endian, codec, frame_type, coordinate = v[:5]
        size, offset, part = v[5:8], v[20:23], v[23:26]
        if version != 1:
            raise bad("VIDEO format version", 0, version, "1")
        if 0 in size:
            raise bad("VIDEO size", 10, size, "1 to 65535 along each axis")
        check_part("VIDEO", 64, size, offset, part)
        axes, position = frame_of(v[8:20])
        return cls(
            field_text(codec),
            frame_type,
            endian,
            coordinate,
            size,
            axes,
            position,
            offset,
            part,
            memoryview(raw)[_VIDEO.size :],
            version,
        )

    def pack_header(self) -> bytes:
        """The 76 bytes before the bitstream."""
        values = frame_values("VIDEO", self.axes, self.position)
        need_part("VIDEO", self.size, self.offset, self.part)
        if self.version != 1:
            raise EncodeError(f"VIDEO: format version {self.version}, allowed: 1")
        codec = fixed_text(self.codec, 4, "VIDEO codec")
        return pack_numbers(
            _VIDEO, "VIDEO", self.version, self.endian, codec, self.frame_type, self.coordinate, *self.size, *values,
            *self.offset, *self.part,
        )  # fmt: skip

    def pack(self) -> bytes:
        """Header and bitstream."""
        return b"".join((self.pack_header(), self.bitstream))


@dataclass(frozen=True, slots=True, eq=False)
class VideoMeta:
    """One element of VIDEOMETA.

    Attributes
    ----------
    name, device : str
        Description; device name under which the video can be asked for.
    zoom, focal_length_mm
        Of the camera.
    size, axes, position, scalar
        As in `ImageContent`.
    """

    name: str
    device: str
    patient_name: str
    patient_id: str
    zoom: int
    focal_length_mm: float
    size: Size
    axes: NDArray[np.float64]
    position: NDArray[np.float64]
    scalar: int = 3
    reserved: int = 0


def _video_meta(v: tuple[Any, ...]) -> VideoMeta:
    axes, position = frame_of(v[9:21])
    return VideoMeta(
        name=field_text(v[0]),
        device=field_text(v[1]),
        patient_name=field_text(v[2]),
        patient_id=field_text(v[3]),
        zoom=v[4],
        focal_length_mm=v[5],
        size=(v[6], v[7], v[8]),
        axes=axes,
        position=position,
        scalar=v[21],
        reserved=v[22],
    )


@dataclass(frozen=True, slots=True, eq=False)
class VideoMetaContent(Content):
    """VIDEOMETA: the videos that can be asked for."""

    type_name: ClassVar[str] = "VIDEOMETA"
    videos: tuple[VideoMeta, ...]

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read n x 322 bytes; `ContentError` for any other size."""
        need_multiple("VIDEOMETA", raw, _VIDEO_META.size)
        return cls(tuple(_video_meta(v) for v in _VIDEO_META.iter_unpack(raw)))

    def pack(self) -> bytes:
        """n x 322 bytes."""
        out = []
        for video in self.videos:
            what = f"VIDEOMETA {video.name!r}"
            need_length(f"{what} size", video.size, 3)
            values = frame_values(what, video.axes, video.position)
            if not math.isfinite(video.focal_length_mm):
                raise EncodeError(f"{what}: focal length {video.focal_length_mm} mm must be finite")
            out.append(
                pack_numbers(
                    _VIDEO_META,
                    what,
                    fixed_text(video.name, 64, "VIDEOMETA name"),
                    fixed_text(video.device, 64, "VIDEOMETA device"),
                    fixed_text(video.patient_name, 64, "VIDEOMETA patient name"),
                    fixed_text(video.patient_id, 64, "VIDEOMETA patient id"),
                    video.zoom,
                    video.focal_length_mm,
                    *video.size,
                    *values,
                    video.scalar,
                    video.reserved,
                )
            )
        return b"".join(out)


@dataclass(frozen=True, slots=True)
class StartVideoContent(Content):
    """STT_VIDEO: codec, least time between frames in ms (0: as fast as possible), and whether to compress.

    ``compress`` None is the form of 8 bytes without that field, which the structure of the C library has.
    """

    type_name: ClassVar[str] = "STT_VIDEO"
    codec: str = "H264"
    interval_ms: int = 0
    compress: int | None = 1

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read 8 or 9 bytes; `ContentError` for any other size."""
        if len(raw) not in (8, 9):
            raise bad("STT_VIDEO content", 0, f"{len(raw)} bytes", "8 or 9 bytes")
        codec, interval = _START.unpack_from(raw)
        return cls(field_text(codec), interval, raw[8] if len(raw) == 9 else None)

    def pack(self) -> bytes:
        """8 or 9 bytes."""
        out = pack_numbers(_START, "STT_VIDEO", fixed_text(self.codec, 4, "STT_VIDEO codec"), self.interval_ms)
        if self.compress is None:
            return out
        if not 0 <= self.compress <= 255:
            raise EncodeError(f"STT_VIDEO compress: {self.compress}, allowed: 0 to 255, or None to leave it out")
        return out + bytes([self.compress])
