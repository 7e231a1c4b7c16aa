"""Sequence metafiles of PLUS and Slicer: tracked frames over time, in and out.

``.igs.mha``, ``.seq.mha`` (one file), ``.igs.mhd`` (with its data file), ``.igs.nrrd`` and ``.seq.nrrd``. Matrices stay
as they stand in the file: mm, from and to the frames their name says; nothing is flipped, for PLUS frames are no
patient space. SimpleITK reads neither the per-frame fields nor tracking-only files (``DimSize = 0 0 n``).
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nav.geometry.poses import PoseStatus
from nav.io.errors import SequenceError

__all__ = ["TrackedSequence", "TransformTrack", "read_sequence", "write_sequence"]

_FRAME_FIELD = re.compile(r"Seq_Frame(\d+)_(\w+)\Z")
_MET_TYPES = {
    "MET_UCHAR": "u1",
    "MET_CHAR": "i1",
    "MET_USHORT": "u2",
    "MET_SHORT": "i2",
    "MET_UINT": "u4",
    "MET_INT": "i4",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_NRRD_TYPES = {
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i1": ("signed char", "int8", "int8_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "f4": ("float",),
    "f8": ("double",),
}
#: Larger announced pixel data is damage, bytes.
_LARGEST = 16 * 2**30


@dataclass(frozen=True, slots=True, eq=False)
class TransformTrack:
    """One transform over time.

    Attributes
    ----------
    name : str
        As in the file without the word Transform, such as ``ProbeToTracker``.
    matrices : (n, 4, 4) float64, read-only
        NaN wherever the status is not OK: a lost tool has no pose.
    statuses : tuple of n PoseStatus
    """

    name: str
    matrices: NDArray[np.float64]
    statuses: tuple[PoseStatus, ...]

    @property
    def valid(self) -> NDArray[np.bool_]:
        """(n,) True where the status is OK."""
        return np.array([s is PoseStatus.OK for s in self.statuses], dtype=np.bool_)


@dataclass(frozen=True, slots=True, eq=False)
class TrackedSequence:
    """A recorded sequence of n frames.

    Attributes
    ----------
    timestamps_s : (n,) float64
        Seconds on the recorder's clock (jitter-filtered); NaN where absent.
    transforms : dict of str to TransformTrack
    images : (n, rows, columns[, 3]) or None
        Oriented MF (columns towards the marked side, rows away from the transducer), dtype as stored; read-only. None
        for a tracking-only file, or when images were not asked for.
    image_valid : (n,) bool
        False where the frame holds no image.
    unfiltered_timestamps_s : (n,) float64 or None
    fields : dict of str to tuple of n str
        Every other per-frame field, empty where absent.
    header : dict
        The file's own header entries.
    """

    timestamps_s: NDArray[np.float64]
    transforms: dict[str, TransformTrack]
    images: NDArray[Any] | None
    image_valid: NDArray[np.bool_]
    unfiltered_timestamps_s: NDArray[np.float64] | None = None
    fields: dict[str, tuple[str, ...]] = field(default_factory=dict)
    header: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.timestamps_s)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where and how the pixels are stored. ``shape`` is C-order (n, rows, columns[, channels])."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    compression: str
    data: bytes
    orientation: str


def read_sequence(path: Path | str, *, images: bool = True) -> TrackedSequence:
    """Read a sequence metafile.

    Parameters
    ----------
    images : bool
        False leaves the pixels out.

    Raises
    ------
    SequenceError
        Unreadable, truncated, volumes instead of images, a malformed matrix or time, an unknown orientation.
    """
    file = Path(path)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise SequenceError(f"{file}: cannot be read: {error.strerror}") from None
    if content.startswith(b"NRRD"):
        header, layout = _parse_nrrd(file, content)
    else:
        header, layout = _parse_meta(file, content)
    return _assemble(file, header, layout, images)


# -- headers ----------------------------------------------------------------------------------------------------------


def _parse_meta(file: Path, content: bytes) -> tuple[dict[str, str], _Layout]:
    match = re.search(rb"^ElementDataFile\s*=\s*([^\r\n]*)\r?(\n|\Z)", content, re.MULTILINE)
    if match is None:
        raise SequenceError(f"{file}: its header has no ElementDataFile line; it is truncated or no metafile")
    header: dict[str, str] = {}
    for line in content[: match.start()].decode("utf-8", "replace").splitlines():
        key, equals, value = line.partition("=")
        if equals:
            header[key.strip()] = value.strip()
    where = match[1].decode().strip()
    if where == "LOCAL":
        data = content[match.end() :]
    else:
        try:
            data = (file.parent / where).read_bytes()
        except OSError as error:
            raise SequenceError(f"{file}: its data file {where} cannot be read: {error.strerror}") from None
    size = _integers(file, header, "DimSize")
    if len(size) == 4 and size[2] in (0, 1):
        size = (size[0], size[1], size[3])
    if len(size) == 2:
        size = (*size, 1)
    if len(size) != 3:
        raise SequenceError(f"{file}: DimSize = {header.get('DimSize')!r}: volumes over time are not read, images are")
    channels = int(header.get("ElementNumberOfChannels", "1") or 1)
    kind = header.get("ElementType", "")
    code = "u1" if 0 in size[:2] else _MET_TYPES.get(kind, "")
    if not code:
        raise SequenceError(f"{file}: ElementType = {kind!r}, must be one of {', '.join(_MET_TYPES)}")
    big = header.get("BinaryDataByteOrderMSB", header.get("ElementByteOrderMSB", "False")).lower() == "true"
    compressed = header.get("CompressedData", "False").lower() == "true"
    shape = (size[2], size[1], size[0], *((channels,) if channels > 1 else ()))
    orientation = header.get("UltrasoundImageOrientation", "MF")
    return header, _Layout(
        shape, np.dtype((">" if big else "<") + code), "zlib" if compressed else "", data, orientation
    )


def _parse_nrrd(file: Path, content: bytes) -> tuple[dict[str, str], _Layout]:
    match = re.search(rb"\r?\n\r?\n", content)
    if match is None:
        raise SequenceError(f"{file}: its NRRD header does not end; it is truncated")
    header: dict[str, str] = {}
    for line in content[: match.start()].decode("utf-8", "replace").splitlines()[1:]:
        if line.startswith("#"):
            continue
        key, found, value = line.partition(":=")
        if not found:
            key, found, value = line.partition(":")
        if found:
            header[key.strip()] = value.strip()
    if "data file" in header or "datafile" in header:
        raise SequenceError(f"{file}: keeps its data in another file; attach it (one .nrrd file)")
    size = _integers(file, header, "sizes")
    kinds = header.get("kinds", "").split()
    channels = 1
    if kinds and kinds[0] in ("vector", "RGB-color", "3-color", "RGBA-color", "4-color"):
        channels, size, kinds = size[0], size[1:], kinds[1:]
    if kinds and kinds[0] == "list":
        raise SequenceError(f"{file}: its list axis comes first; only files with the list axis last are read")
    if len(size) == 4 and size[2] in (0, 1):
        size = (size[0], size[1], size[3])
    if len(size) == 2:
        size = (*size, 1)
    if len(size) != 3:
        raise SequenceError(f"{file}: sizes: {header.get('sizes')!r}: volumes over time are not read, images are")
    code = next((c for c, names in _NRRD_TYPES.items() if header.get("type", "") in names), "")
    if not code:
        raise SequenceError(f"{file}: type: {header.get('type')!r} is not a known pixel type")
    encoding = header.get("encoding", "raw")
    if encoding not in ("raw", "gz", "gzip"):
        raise SequenceError(f"{file}: encoding: {encoding!r}, must be raw or gzip")
    big = header.get("endian", "little") == "big"
    shape = (size[2], size[1], size[0], *((channels,) if channels > 1 else ()))
    orientation = header.get("ultrasound image orientation", header.get("UltrasoundImageOrientation", "MF"))
    compression = "" if encoding == "raw" else "gzip"
    dtype = np.dtype((">" if big else "<") + code)
    return header, _Layout(shape, dtype, compression, content[match.end() :], orientation)


def _integers(file: Path, header: dict[str, str], key: str) -> tuple[int, ...]:
    text = header.get(key, "")
    try:
        values = tuple(int(v) for v in text.split())
    except ValueError:
        values = ()
    if not values or min(values) < 0:
        raise SequenceError(f"{file}: {key} = {text!r}, must be whole numbers of at least 0")
    return values


# -- frames -----------------------------------------------------------------------------------------------------------


def _assemble(file: Path, header: dict[str, str], layout: _Layout, want_images: bool) -> TrackedSequence:
    n = layout.shape[0]
    plain: dict[str, str] = {}
    frames: dict[str, list[str | None]] = {}
    for key, value in header.items():
        match = _FRAME_FIELD.match(key)
        if match is None:
            plain[key] = value
            continue
        index = int(match[1])
        if index >= n:
            raise SequenceError(f"{file}: {key} lies beyond its {n} frames; DimSize and the frame fields disagree")
        frames.setdefault(match[2], [None] * n)[index] = value
    warnings: list[str] = []
    times = _numbers(file, frames.pop("Timestamp", None), n, "Timestamp")
    unfiltered_texts = frames.pop("UnfilteredTimestamp", None)
    unfiltered = None if unfiltered_texts is None else _numbers(file, unfiltered_texts, n, "UnfilteredTimestamp")
    if np.isnan(times).all() and f"axis {len(layout.shape)} index values" in plain:
        times = np.array([float(v) for v in plain[f"axis {len(layout.shape)} index values"].split()])
        if len(times) != n:
            raise SequenceError(f"{file}: {len(times)} index values for {n} frames")
    if np.isnan(times).any():
        warnings.append(f"{file.name}: {int(np.isnan(times).sum())} of {n} frames have no Timestamp")
    known = times[~np.isnan(times)]
    backward = int(np.count_nonzero(np.diff(known) <= 0.0))
    if backward:
        warnings.append(f"{file.name}: time does not advance at {backward} frames")
    tracks: dict[str, TransformTrack] = {}
    for key in [k for k in frames if k.endswith("Transform")]:
        name = key.removesuffix("Transform")
        tracks[name] = _track(file, name, frames.pop(key), frames.pop(f"{key}Status", None), warnings)
    statuses = frames.pop("ImageStatus", None) or frames.pop("Status", None) or [None] * n
    empty = 0 in layout.shape
    valid = np.array([not empty and (s is None or PoseStatus.parse(s) is PoseStatus.OK) for s in statuses], np.bool_)
    pixels = None if empty or not want_images else _pixels(file, layout)
    return TrackedSequence(
        timestamps_s=_frozen(times),
        transforms=tracks,
        images=pixels,
        image_valid=valid,
        unfiltered_timestamps_s=None if unfiltered is None else _frozen(unfiltered),
        fields={k: tuple(v or "" for v in values) for k, values in frames.items()},
        header=plain,
        warnings=tuple(warnings),
    )


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array.setflags(write=False)
    return array


def _numbers(file: Path, texts: list[str | None] | None, n: int, key: str) -> NDArray[np.float64]:
    values = np.full(n, np.nan)
    for i, text in enumerate(texts or ()):
        if text is None:
            continue
        try:
            values[i] = float(text)
        except ValueError:
            raise SequenceError(f"{file}: Seq_Frame{i:04d}_{key} = {text[:40]!r} is not a number") from None
    return values


def _track(
    file: Path, name: str, texts: list[str | None], status_texts: list[str | None] | None, warnings: list[str]
) -> TransformTrack:
    n = len(texts)
    matrices = np.full((n, 4, 4), np.nan)
    statuses: list[PoseStatus] = []
    if status_texts is None:
        warnings.append(f"{file.name}: {name} carries no status; every pose is taken as valid")
    for i, text in enumerate(texts):
        if text is None:
            statuses.append(PoseStatus.MISSING)
            continue
        said = None if status_texts is None else status_texts[i]
        # A frame without a status in a file that states one elsewhere is not vouched for.
        default = PoseStatus.OK if status_texts is None else PoseStatus.UNKNOWN
        status = default if said is None else PoseStatus.parse(said)
        statuses.append(status)
        try:
            numbers = [float(v) for v in text.split()]
        except ValueError:
            numbers = []
        if len(numbers) != 16:
            raise SequenceError(f"{file}: Seq_Frame{i:04d}_{name}Transform is not 16 numbers: {text[:60]!r}")
        if status is PoseStatus.OK:
            if not all(math.isfinite(v) for v in numbers):
                raise SequenceError(f"{file}: Seq_Frame{i:04d}_{name}Transform has status OK but is not finite")
            matrices[i] = np.reshape(numbers, (4, 4))
    return TransformTrack(name, _frozen(matrices), tuple(statuses))


def _pixels(file: Path, layout: _Layout) -> NDArray[Any]:
    expected = math.prod(layout.shape) * layout.dtype.itemsize
    if expected > _LARGEST:
        raise SequenceError(f"{file}: announces {expected} bytes of pixels, limit {_LARGEST}")
    try:
        if layout.compression == "zlib":
            # max_length guards against a small file that unpacks without end.
            data = zlib.decompressobj().decompress(layout.data, expected)
        elif layout.compression == "gzip":
            data = gzip.decompress(layout.data)
        else:
            data = layout.data
    except (zlib.error, OSError, EOFError) as error:
        raise SequenceError(f"{file}: its pixels cannot be unpacked ({error}); it is truncated or damaged") from None
    if len(data) < expected:
        raise SequenceError(f"{file}: is truncated: {len(data)} bytes of pixels, {expected} announced")
    array = np.frombuffer(data, dtype=layout.dtype, count=math.prod(layout.shape)).reshape(layout.shape)
    array = array.astype(layout.dtype.newbyteorder("="), copy=False)
    return _frozen(np.ascontiguousarray(_to_mf(file, array, layout.orientation)))


def _to_mf(file: Path, images: NDArray[Any], orientation: str) -> NDArray[Any]:
    """Turn (n, rows, columns[, 3]) so that columns run to the marked side and rows to the far end.

    The code names where the first (column) and second (row) axis point: M marked, U unmarked, F far, N near; a third
    letter concerns volumes only.
    """
    code = orientation.strip().upper()[:2]
    if code == "XX":
        return images
    if len(code) != 2 or {code[0], code[1]} & set("MU") == set() or {code[0], code[1]} & set("FN") == set():
        raise SequenceError(
            f"{file}: UltrasoundImageOrientation = {orientation!r}, must be MF, MN, UF, UN, FM, FU, NM or NU"
        )
    if code[0] in "FN":
        images = np.swapaxes(images, 1, 2)
        code = code[1] + code[0]
    if code[0] == "U":
        images = images[:, :, ::-1]
    if code[1] == "N":
        images = images[:, ::-1]
    return images


# -- writing ----------------------------------------------------------------------------------------------------------


def write_sequence(path: Path | str, sequence: TrackedSequence) -> None:
    """Write a ``.igs.mha`` that PLUS and Slicer read. Images must be uint8 and oriented MF; they are compressed.

    A lost pose is written as the identity with its status, as PLUS does.

    Raises
    ------
    SequenceError
        A name that is not ``.igs.mha``/``.seq.mha``, or images of another type.
    """
    file = Path(path)
    if not file.name.lower().endswith((".igs.mha", ".seq.mha")):
        raise SequenceError(f"{file}: a sequence is written as .igs.mha or .seq.mha")
    n, images = len(sequence), sequence.images
    if images is not None and (images.dtype != np.uint8 or images.shape[0] != n):
        raise SequenceError(f"{file}: images are {images.dtype} {images.shape}, expected uint8 with {n} frames")
    payload = b"" if images is None else zlib.compress(np.ascontiguousarray(images).tobytes(), 6)
    channels = images.shape[3] if images is not None and images.ndim == 4 else 1
    size = "0 0" if images is None else f"{images.shape[2]} {images.shape[1]}"
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        "AnatomicalOrientation = RAI",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CenterOfRotation = 0 0 0",
        f"CompressedData = {images is not None}",
        *([] if images is None else [f"CompressedDataSize = {len(payload)}"]),
        f"DimSize = {size} {n}",
        "Kinds = domain domain list",
        f"ElementNumberOfChannels = {channels}",
        "ElementSpacing = 1 1 1",
        "ElementType = MET_UCHAR",
        "Offset = 0 0 0",
        "TransformMatrix = 1 0 0 0 1 0 0 0 1",
        f"UltrasoundImageOrientation = {'XX' if images is None else 'MF'}",
        f"UltrasoundImageType = {'XX' if images is None else 'BRIGHTNESS' if channels == 1 else 'RGB_COLOR'}",
    ]
    for i in range(n):
        head = f"Seq_Frame{i:04d}_"
        for name, track in sorted(sequence.transforms.items()):
            ok = track.statuses[i] is PoseStatus.OK
            matrix = track.matrices[i] if ok else np.eye(4)
            lines.append(f"{head}{name}Transform = " + " ".join(repr(float(v)) for v in matrix.ravel()))
            lines.append(f"{head}{name}TransformStatus = {track.statuses[i].value}")
        if not math.isnan(sequence.timestamps_s[i]):
            lines.append(f"{head}Timestamp = {float(sequence.timestamps_s[i])!r}")
        if sequence.unfiltered_timestamps_s is not None and not math.isnan(sequence.unfiltered_timestamps_s[i]):
            lines.append(f"{head}UnfilteredTimestamp = {float(sequence.unfiltered_timestamps_s[i])!r}")
        for key, values in sorted(sequence.fields.items()):
            if values[i]:
                lines.append(f"{head}{key} = {values[i]}")
        lines.append(f"{head}ImageStatus = {'OK' if images is not None and sequence.image_valid[i] else 'INVALID'}")
    lines.append("ElementDataFile = LOCAL")
    file.write_bytes("\n".join(lines).encode("utf-8") + b"\n" + payload)
