"""Images: IMAGE, and the lists IMGMETA and LBMETA."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from drivers.openigtlink.contents.base import (
    SCALAR_NAMES,
    SCALAR_TYPES,
    Content,
    bad,
    need_float32,
    need_length,
    need_multiple,
    need_size,
    pack_numbers,
)
from drivers.openigtlink.errors import EncodeError
from drivers.openigtlink.text import field_text, fixed_text
from drivers.openigtlink.wire import ns_from_stamp

__all__ = ["IMAGE_HEADER_SIZE", "ImageContent", "ImageMeta", "ImageMetaContent", "LabelMeta", "LabelMetaContent"]

_IMAGE = struct.Struct(">HBBBB3H12f3H3H")
_IMAGE_META = struct.Struct(">64s20s32s64s64sII3HBB")
_LABEL_META = struct.Struct(">64s20sBB4B3H20s")

Size = tuple[int, int, int]


def frame_of(values: tuple[float, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Axes (3, 3), whose columns are the steps along i, j, k, and position (3,) of twelve numbers of the wire."""
    frame = np.array(values, dtype=np.float64).reshape(4, 3).T
    frame.setflags(write=False)
    return frame[:, :3], frame[:, 3]


def frame_values(what: str, axes: NDArray[np.float64], position: NDArray[np.float64]) -> list[float]:
    """The twelve numbers of the wire; `EncodeError` unless (3, 3) and (3,), finite and within 32-bit floats."""
    if np.shape(axes) != (3, 3) or np.shape(position) != (3,):
        raise EncodeError(f"{what}: axes and position must be finite (3, 3) and (3,), got {np.shape(axes)}")
    values: list[float] = np.column_stack([axes, position]).T.ravel().tolist()
    need_float32(f"{what} axes and position", values)
    return values


def check_part(what: str, at: int, size: Size, offset: Size, part: Size) -> None:
    """Raise `ContentError` at ``at`` (of the offset) unless the part is one voxel or more within the whole."""
    if 0 in part or any(o + p > s for o, p, s in zip(offset, part, size, strict=True)):
        raise bad(f"{what} part (offset, size)", at, (offset, part), f"1 voxel or more within {size}")


def need_part(what: str, size: Size, offset: Size, part: Size) -> None:
    """`check_part` for sending: `EncodeError`."""
    for name, values, low in (("size", size, 1), ("offset", offset, 0), ("part", part, 1)):
        need_length(f"{what} {name}", values, 3)
        if any(not low <= n <= 0xFFFF for n in values):
            raise EncodeError(f"{what}: {name} {values} (i, j, k): each must lie in {low} to 65535")
    if any(o + p > s for o, p, s in zip(offset, part, size, strict=True)):
        raise EncodeError(f"{what}: part {part} at {offset} does not lie within {size}")


#: Bytes before the pixels of an IMAGE.
IMAGE_HEADER_SIZE = _IMAGE.size


@dataclass(frozen=True, slots=True, eq=False)
class ImageContent(Content):
    """IMAGE as on the wire.

    Attributes
    ----------
    scalar, endian, coordinate : int
        A number of `SCALAR_TYPES`; 1 big or 2 little; 1 RAS or 2 LPS.
    axes : (3, 3) float64
        Columns: step along i, j, k in mm (spacing included).
    position : (3,) float64
        Centre of the whole image by the protocol (some senders put the first voxel there).
    size, offset, part : tuple of int
        Voxels (i, j, k) of the whole image; first voxel and size of the part that was sent.
    pixels : memoryview
        Voxels of the part, i fastest, components interleaved.
    """

    type_name: ClassVar[str] = "IMAGE"
    components: int
    scalar: int
    endian: int
    coordinate: int
    size: Size
    axes: NDArray[np.float64]
    position: NDArray[np.float64]
    offset: Size
    part: Size
    pixels: memoryview
    version: int = 1

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read the 72-byte image header and check every number against the bytes that follow.

        Raises
        ------
        ContentError
        """
        need_size("IMAGE", raw, _IMAGE.size, exactly=False)
        v = _IMAGE.unpack_from(raw)
        version, components, scalar, endian, coordinate = v[:5]
        size, offset, part = v[5:8], v[20:23], v[23:26]
        if version != 1:
            raise bad("IMAGE format version", 0, version, "1")
        if components == 0:
            raise bad("IMAGE components", 2, 0, "1 to 255")
        if scalar not in SCALAR_TYPES:
            raise bad("IMAGE scalar type", 3, scalar, f"{', '.join(map(str, SCALAR_TYPES))} ({SCALAR_NAMES})")
        if 0 in size:
            raise bad("IMAGE size", 6, size, "1 to 65535 along each axis")
        check_part("IMAGE", 60, size, offset, part)
        wanted = _pixel_bytes(part, components, scalar)
        if len(raw) - 72 != wanted:
            raise bad("IMAGE pixels", 72, f"{len(raw) - 72} bytes", f"{wanted} bytes for {part} x {components}")
        axes, position = frame_of(v[8:20])
        return cls(
            components, scalar, endian, coordinate, size, axes, position, offset, part, memoryview(raw)[72:], version
        )

    def pack_header(self) -> bytes:
        """The 72 bytes before the pixels."""
        values = frame_values("IMAGE", self.axes, self.position)
        need_part("IMAGE", self.size, self.offset, self.part)
        if not 1 <= self.components <= 255:
            raise EncodeError(f"IMAGE: {self.components} components, allowed 1 to 255")
        if self.version != 1 or self.scalar not in SCALAR_TYPES:
            raise EncodeError(
                f"IMAGE: format version {self.version}, scalar type {self.scalar}; allowed: version 1, scalar types "
                f"{', '.join(map(str, SCALAR_TYPES))} ({SCALAR_NAMES})"
            )
        wanted = _pixel_bytes(self.part, self.components, self.scalar)
        if self.pixels.nbytes != wanted:
            raise EncodeError(f"IMAGE: {self.pixels.nbytes} bytes of pixels, {wanted} for {self.part}")
        return pack_numbers(
            _IMAGE, "IMAGE", self.version, self.components, self.scalar, self.endian, self.coordinate, *self.size,
            *values, *self.offset, *self.part,
        )  # fmt: skip

    def pack(self) -> bytes:
        """Header and pixels."""
        return b"".join((self.pack_header(), self.pixels))


def _pixel_bytes(part: Size, components: int, scalar: int) -> int:
    return part[0] * part[1] * part[2] * components * np.dtype(SCALAR_TYPES[scalar]).itemsize


@dataclass(frozen=True, slots=True)
class ImageMeta:
    """One element of IMGMETA.

    Attributes
    ----------
    name, device : str
        Description; device name under which the image can be asked for with GET_IMAGE.
    stamp : (int, int)
        When the image was taken: seconds and fraction (2^-32 s) as in a message's header.
    size : (i, j, k)
    scalar : int
        A number of `SCALAR_TYPES`.
    """

    name: str
    device: str
    modality: str = ""
    patient_name: str = ""
    patient_id: str = ""
    stamp: tuple[int, int] = (0, 0)
    size: Size = (0, 0, 0)
    scalar: int = 3
    reserved: int = 0

    @property
    def taken_ns(self) -> int | None:
        """When the image was taken, UTC ns since 1970; None when it is not said."""
        return ns_from_stamp(*self.stamp)


@dataclass(frozen=True, slots=True)
class ImageMetaContent(Content):
    """IMGMETA: the images that can be asked for."""

    type_name: ClassVar[str] = "IMGMETA"
    images: tuple[ImageMeta, ...]

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read n x 260 bytes; `ContentError` for any other size."""
        need_multiple("IMGMETA", raw, _IMAGE_META.size)
        return cls(
            tuple(
                ImageMeta(
                    name=field_text(v[0]),
                    device=field_text(v[1]),
                    modality=field_text(v[2]),
                    patient_name=field_text(v[3]),
                    patient_id=field_text(v[4]),
                    stamp=(v[5], v[6]),
                    size=(v[7], v[8], v[9]),
                    scalar=v[10],
                    reserved=v[11],
                )
                for v in _IMAGE_META.iter_unpack(raw)
            )
        )

    def pack(self) -> bytes:
        """n x 260 bytes."""
        out = []
        for image in self.images:
            what = f"IMGMETA {image.name!r}"
            need_length(f"{what} size", image.size, 3)
            need_length(f"{what} stamp", image.stamp, 2)
            out.append(
                pack_numbers(
                    _IMAGE_META,
                    what,
                    fixed_text(image.name, 64, "IMGMETA name"),
                    fixed_text(image.device, 20, "IMGMETA device"),
                    fixed_text(image.modality, 32, "IMGMETA modality"),
                    fixed_text(image.patient_name, 64, "IMGMETA patient name"),
                    fixed_text(image.patient_id, 64, "IMGMETA patient id"),
                    *image.stamp,
                    *image.size,
                    image.scalar,
                    image.reserved,
                )
            )
        return b"".join(out)


@dataclass(frozen=True, slots=True)
class LabelMeta:
    """One element of LBMETA.

    Attributes
    ----------
    name, device : str
        What the label stands for; device name of the label image.
    label : int
        Its value in that image.
    size : (i, j, k)
    owner : str
        Device name of the image that was segmented.
    """

    name: str
    device: str
    label: int
    rgba: tuple[int, int, int, int] = (0, 0, 0, 0)
    size: Size = (0, 0, 0)
    owner: str = ""
    reserved: int = 0


@dataclass(frozen=True, slots=True)
class LabelMetaContent(Content):
    """LBMETA: the labels of the label images that can be asked for."""

    type_name: ClassVar[str] = "LBMETA"
    labels: tuple[LabelMeta, ...]

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read n x 116 bytes; `ContentError` for any other size."""
        need_multiple("LBMETA", raw, _LABEL_META.size)
        return cls(
            tuple(
                LabelMeta(
                    name=field_text(v[0]),
                    device=field_text(v[1]),
                    label=v[2],
                    reserved=v[3],
                    rgba=(v[4], v[5], v[6], v[7]),
                    size=(v[8], v[9], v[10]),
                    owner=field_text(v[11]),
                )
                for v in _LABEL_META.iter_unpack(raw)
            )
        )

    def pack(self) -> bytes:
        """n x 116 bytes."""
        out = []
        for label in self.labels:
            what = f"LBMETA {label.name!r}"
            need_length(f"{what} colour", label.rgba, 4)
            need_length(f"{what} size", label.size, 3)
            out.append(
                pack_numbers(
                    _LABEL_META,
                    what,
                    fixed_text(label.name, 64, "LBMETA name"),
                    fixed_text(label.device, 20, "LBMETA device"),
                    label.label,
                    label.reserved,
                    *label.rgba,
                    *label.size,
                    fixed_text(label.owner, 20, "LBMETA owner"),
                )
            )
        return b"".join(out)
