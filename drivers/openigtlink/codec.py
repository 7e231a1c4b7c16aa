"""Between the wire and the program's own messages: names, statuses, RAS, voxel-centre matrices.

`decode` never raises for a well-framed message: what cannot be used becomes an `UnusedMessage` that says why, and a
pose that is not a rigid transform becomes a tool that is reported `INVALID` (so that one bad tool in a TDATA neither
takes the good ones with it nor leaves its own last pose standing). The encoders refuse what cannot be sent as it is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drivers.openigtlink import crc64, pose_kernel
from drivers.openigtlink.contents import (
    DATA_TYPES,
    IMAGE_HEADER_SIZE,
    SCALAR_TYPES,
    Content,
    EmptyContent,
    ImageContent,
    PositionContent,
    QuaternionTool,
    QuaternionTrackingContent,
    StatusContent,
    StringContent,
    TrackedTool,
    TrackingContent,
    TransformContent,
    VideoContent,
    content_class,
    scalar_number,
    unpack_content,
)
from drivers.openigtlink.image_checks import check_image, image_warnings
from drivers.openigtlink.pose_kernel import TRANSFORM_BYTES, pack_transform, read_pose
from drivers.openigtlink.video_codecs import VideoDecoders, VideoUnavailableError
from drivers.openigtlink.wire import (
    DEVICE_NAME_BYTES,
    HEADER_SIZE,
    ContentError,
    EncodeError,
    MetadataEntry,
    WireMessage,
    header_prefix,
    pack_message,
    parse_header,
    parse_message,
    stamp_from_ns,
)
from nav.config.room import ImageStreamConfig, SourceConfig
from nav.geometry.frames import FrameNameError, TransformName
from nav.geometry.kernels import KernelSpec
from nav.geometry.poses import PoseStatus
from nav.geometry.rigid import ORTHONORMAL_TOLERANCE
from nav.guidance.health import StreamFinding
from nav.runtime.messages import (
    ImageMessage,
    Message,
    PoseMessage,
    StatusMessage,
    TextMessage,
    ToolReport,
    UnusedMessage,
)

__all__ = [
    "FARTHEST_MM",
    "KERNELS",
    "decode",
    "encode_content",
    "encode_image",
    "encode_position",
    "encode_status",
    "encode_string",
    "encode_tdata",
    "encode_transform",
]

#: What packing and reading need.
KERNELS: tuple[KernelSpec, ...] = (*crc64.KERNELS, *pose_kernel.KERNELS)

#: No tracker measures 100 m; a translation beyond it is damage (or an uninitialised buffer), not a pose.
FARTHEST_MM = 1e5

_Number = TypeVar("_Number", bound=np.generic)

#: Types that guidance has a use for.
_USED = frozenset({"TRANSFORM", "POSITION", "QTRANS", "TDATA", "QTDATA", "IMAGE", "VIDEO", "STATUS", "STRING"})
#: A longer "full name" in the metadata is none: names are remembered, and metadata may hold 64 KiB of text.
_LONGEST_NAME = 256

_TRANSFORM_V1 = b"\0\1TRANSFORM\0\0\0"
_LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


# ---------------------------------------------------------------------------------------------------------- decoding


def decode(
    raw: bytes | memoryview,
    *,
    source: str,
    sequence: int,
    arrival_ns: int,
    options: SourceConfig | None = None,
    videos: VideoDecoders | None = None,
) -> Message:
    """Decode one whole, CRC-checked message.

    Parameters
    ----------
    raw : bytes
        Header and body as received.
    source, sequence, arrival_ns
        Passed through to the message.
    options : SourceConfig or None
        Device-name mapping and the per-source overrides; None: names as on the wire, no overrides.
    videos : VideoDecoders or None
        What the frames of VIDEO before this one have left; None: only frames that stand alone are decoded.

    Returns
    -------
    Message
        `PoseMessage`, `ImageMessage`, `StatusMessage`, `TextMessage`, or `UnusedMessage` with the reason.

    Raises
    ------
    WireError
        Only when ``raw`` is not one framed message.
    """
    if len(raw) == TRANSFORM_BYTES and type(raw) is bytes and raw.startswith(_TRANSFORM_V1):
        pose = _quick_pose(raw, source, sequence, arrival_ns, options)
        if pose is not None:
            return pose
    message: WireMessage | None = None
    try:
        message = parse_message(raw)
        return _interpret(message, source, sequence, arrival_ns, options, videos)
    except (ContentError, VideoUnavailableError) as error:
        header = parse_header(raw)
        if message is not None and isinstance(error, ContentError):
            error = error.moved(message.content_offset - HEADER_SIZE)
        return UnusedMessage(
            source,
            sequence,
            arrival_ns,
            header.device,
            header.sender_ns,
            {} if message is None else message.metadata,
            header.type_name,
            str(error),
        )


def _quick_pose(
    raw: bytes, source: str, sequence: int, arrival_ns: int, options: SourceConfig | None
) -> PoseMessage | None:
    """A TRANSFORM of header version 1 that holds a pose; None for anything else, which goes the plain way."""
    _, _, device, sender_ns, body_size, _, _ = parse_header(raw)
    if body_size != TRANSFORM_BYTES - HEADER_SIZE:
        return None
    matrix = read_pose(raw, ORTHONORMAL_TOLERANCE, FARTHEST_MM)
    if matrix is None:
        return None
    report = ToolReport(_tool_name(device, options), PoseStatus.OK, matrix)
    return PoseMessage(source, sequence, arrival_ns, device, sender_ns, {}, (report,))


def _interpret(
    message: WireMessage,
    source: str,
    sequence: int,
    arrival_ns: int,
    options: SourceConfig | None,
    videos: VideoDecoders | None,
) -> Message:
    device, stamp, metadata = message.device, message.sender_ns, message.metadata
    common = (source, sequence, arrival_ns, device, stamp, metadata)
    if message.type_name == "IMAGE" and message.content:
        return ImageMessage(*common, *_picture(message, options))
    if message.type_name not in _USED and message.content:
        # Kept and recorded as it is: taking apart what nobody looks at would cost time in the middle of the poses.
        return UnusedMessage(*common, message.type_name, "")
    match content := unpack_content(message.type_name, message.content):
        case TransformContent(matrix=matrix):
            return PoseMessage(*common, (_report(_full_name(device, metadata), matrix, _status(metadata), options),))
        case PositionContent():
            name, status = _full_name(device, metadata), _status(metadata)
            try:
                return PoseMessage(*common, (_report(name, content.matrix(), status, options),))
            except ContentError as error:
                return PoseMessage(*common, (_refused(name, str(error), options),))
        case TrackingContent(tools=tools):
            return PoseMessage(
                *common, tuple(_report(t.name, t.matrix, _tool_status(t.name, metadata), options) for t in tools)
            )
        case QuaternionTrackingContent(tools=turned):
            return PoseMessage(*common, tuple(_quaternion_report(t, metadata, options) for t in turned))
        case VideoContent():
            picture = (videos or VideoDecoders()).picture(content, device)
            matrix = _mm_from_index(content, options, needed=_placed(device, options))
            return ImageMessage(*common, _frozen(picture[np.newaxis]), matrix, content.offset)
        case StatusContent():
            return StatusMessage(*common, content.code, content.subcode, content.error_name, content.text)
        case StringContent(text=text):
            return TextMessage(*common, text)
        case EmptyContent():
            return UnusedMessage(*common, message.type_name, "an empty body: the sender has no such data")
        case _:
            return UnusedMessage(*common, message.type_name, "")


def _full_name(device: str, metadata: Mapping[str, str]) -> str:
    """The name before it was cut to 20 bytes, where the sender gives it (PLUS does, in version 2 metadata)."""
    full = metadata.get("IGTL_DEVICE_NAME", "")
    if not full or len(full) > _LONGEST_NAME:
        return device
    return full if full.encode("utf-8")[:DEVICE_NAME_BYTES] == device.encode("utf-8") else device


@functools.lru_cache(maxsize=4096)
def _is_device(configured: str, name: str) -> bool:
    """A configured name longer than the wire's 20 bytes also matches its cut form."""
    return configured == name or configured.encode("utf-8")[:DEVICE_NAME_BYTES] == name.encode("utf-8")


def _tool_name(name: str, options: SourceConfig | None) -> str:
    if options is not None:
        for tool in options.tools:
            if _is_device(tool.device, name):
                return tool.transform
    return _spelled_as_usual(name)


@functools.lru_cache(maxsize=1024)
def _spelled_as_usual(name: str) -> str:
    """The transform's name as the program spells it; any other name as it is."""
    try:
        return TransformName.parse(name).wire
    except FrameNameError:
        return name


def _status(metadata: Mapping[str, str]) -> PoseStatus | None:
    """TransformStatus; None when the sender states none."""
    for key, value in metadata.items():
        if key.lower() == "transformstatus":
            return PoseStatus.parse(value)
    for key, value in metadata.items():
        if key.lower() == "transformvalid":
            return PoseStatus.OK if value.strip().lower() in ("1", "true") else PoseStatus.INVALID
    return None


def _tool_status(name: str, metadata: Mapping[str, str]) -> PoseStatus | None:
    """``<name>Status`` of a TDATA tool, whose name may be the full one where the element's was cut to 20 bytes."""
    if f"{name}Status" in metadata:
        return PoseStatus.parse(metadata[f"{name}Status"])
    if len(name.encode("utf-8")) == DEVICE_NAME_BYTES:
        for key, value in metadata.items():
            if key.endswith("Status") and key.startswith(name):
                return PoseStatus.parse(value)
    return None


def _report(
    name: str, matrix: NDArray[np.float64], status: PoseStatus | None, options: SourceConfig | None
) -> ToolReport:
    """One tool; an absent status means OK, which is how PLUS and Slicer read it."""
    stated = status is not None
    if status is not None and status is not PoseStatus.OK:
        # PLUS sends the identity for a lost tool and the truth in the metadata: the matrix means nothing.
        return ToolReport(_tool_name(name, options), status, None, status_stated=True)
    problem = _not_a_pose(matrix)
    if problem:
        return _refused(name, problem, options)
    return ToolReport(_tool_name(name, options), PoseStatus.OK, matrix, status_stated=stated)


def _quaternion_report(tool: QuaternionTool, metadata: Mapping[str, str], options: SourceConfig | None) -> ToolReport:
    try:
        return _report(tool.name, tool.matrix(), _tool_status(tool.name, metadata), options)
    except ContentError as error:
        return _refused(tool.name, str(error), options)


def _refused(name: str, problem: str, options: SourceConfig | None) -> ToolReport:
    return ToolReport(_tool_name(name, options), PoseStatus.INVALID, None, problem)


def _not_a_pose(matrix: NDArray[np.float64]) -> str:
    """Why ``matrix`` is no rigid transform in mm; empty when it is one."""
    # Plain numbers: nine of them are done before NumPy has begun, and this runs for every pose.
    (a, b, c, x), (d, e, f, y), (g, h, i, z) = matrix[:3].tolist()
    if not math.isfinite(a + b + c + d + e + f + g + h + i + x + y + z):
        return "the matrix holds a value that is not finite"
    off = max(
        abs(a * a + d * d + g * g - 1.0),
        abs(b * b + e * e + h * h - 1.0),
        abs(c * c + f * f + i * i - 1.0),
        abs(a * b + d * e + g * h),
        abs(a * c + d * f + g * i),
        abs(b * c + e * f + h * i),
    )
    if not off <= ORTHONORMAL_TOLERANCE:
        return f"the matrix is not a rotation, |RᵀR − I| = {off:.3g}, limit {ORTHONORMAL_TOLERANCE:g}"
    if a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g) < 0.0:
        return "the matrix mirrors (negative determinant)"
    far = max(abs(x), abs(y), abs(z))
    if far > FARTHEST_MM:
        return f"the translation is {far:.3g} mm, limit {FARTHEST_MM:g} mm"
    return ""


def _stream_of(device: str, options: SourceConfig | None) -> ImageStreamConfig | None:
    if options is not None:
        for stream in options.images:
            if _is_device(stream.device, device):
                return stream
    return None


_Picture = tuple[NDArray[np.generic], NDArray[np.float64], tuple[int, int, int], tuple[StreamFinding, ...]]
#: What images of one byte per voxel came to, by everything that it follows from but their voxels. The images of a
#: stream mostly have the same header, and this is the slow part of reading one. The options are kept so that their
#: identity stays theirs.
_seen_headers: dict[tuple[bytes, str, int, int], tuple[SourceConfig | None, tuple[int, ...], _Picture]] = {}
_SEEN_HEADERS = 64


def _picture(message: WireMessage, options: SourceConfig | None) -> _Picture:
    """Voxels in native byte order, RAS matrix of voxel centres, index of the first voxel in the whole, findings."""
    raw = message.content
    key = (bytes(raw[:IMAGE_HEADER_SIZE]), message.device, len(raw), id(options))
    seen = _seen_headers.get(key)
    if seen is not None:
        _, shape, (empty, matrix, offset, findings) = seen
        array = np.frombuffer(raw, empty.dtype, offset=IMAGE_HEADER_SIZE).reshape(shape)
        return _frozen(array), matrix, offset, findings
    content = ImageContent.unpack(raw)
    device = message.device
    picture: _Picture = (
        _voxels(content, options),
        _mm_from_index(content, options, needed=_placed(device, options)),
        content.offset,
        image_warnings(check_image(content, device, options, _stream_of(device, options))),
    )
    if picture[0].dtype.itemsize == 1:
        if len(_seen_headers) >= _SEEN_HEADERS:
            _seen_headers.clear()
        _seen_headers[key] = options, picture[0].shape, (picture[0][:0].copy(), *picture[1:])
    return picture


def _placed(device: str, options: SourceConfig | None) -> bool:
    """Whether the image's own header places it (and not a calibration)."""
    stream = _stream_of(device, options)
    return stream is None or stream.placed_by == "header"


def _voxels(content: ImageContent, options: SourceConfig | None) -> NDArray[np.generic]:
    override = options.endian_override if options is not None else ""
    dtype = np.dtype(SCALAR_TYPES[content.scalar])
    if dtype.itemsize > 1:
        big = {"big": True, "little": False}.get(override, {1: True, 2: False}.get(content.endian))
        if big is None:
            raise ContentError(
                "IMAGE byte order",
                offset=HEADER_SIZE + 4,
                value=content.endian,
                limit="1 (big) or 2 (little); or set endian_override",
            )
        dtype = dtype.newbyteorder(">" if big else "<")
    k_j_i: tuple[int, ...] = content.part[::-1]
    shape = k_j_i if content.components == 1 else (*k_j_i, content.components)
    array = np.frombuffer(content.pixels, dtype).reshape(shape)
    # Native order and alignment, so that kernels meet one layout only; 8-bit voxels stay a view of the message.
    array = np.require(array, dtype.newbyteorder("="), ["C", "A"])
    array.setflags(write=False)
    return array


def _mm_from_index(
    content: ImageContent | VideoContent, options: SourceConfig | None, *, needed: bool
) -> NDArray[np.float64]:
    """(4, 4) from (i, j, k, 1) of the array to RAS-like mm.

    ``needed`` False: a calibration places this image, so a header that cannot place it gives the identity instead of
    a refusal.
    """
    m = np.eye(4)
    m[:3, :3] = content.axes
    size = np.array(content.size, dtype=np.float64)
    if content.size[2] == 1 and not content.axes[:, 2].any():
        # A flat image needs no third step; some senders leave it out. Its direction follows from the other two.
        normal = np.cross(content.axes[:, 0], content.axes[:, 1])
        length = float(np.linalg.norm(normal))
        if length > 0:
            m[:3, 2] = normal / length
    finite = bool(np.isfinite(content.axes).all() and np.isfinite(content.position).all())
    volume = abs(float(np.linalg.det(m[:3, :3]))) if finite else 0.0
    if not volume > 1e-12:
        if needed:
            raise ContentError(
                f"{content.type_name} axes and position",
                offset=HEADER_SIZE + (12 if isinstance(content, ImageContent) else 16),
                value=np.column_stack([content.axes, content.position]).tolist(),
                limit="finite, three independent steps",
            )
        return _frozen(np.eye(4))
    corner = content.position.copy()
    if options is None or not options.origin_is_corner:
        corner -= m[:3, :3] @ ((size - 1.0) / 2.0)
    m[:3, 3] = corner + m[:3, :3] @ np.array(content.offset, dtype=np.float64)
    coordinate = {"ras": 1, "lps": 2}.get(
        options.coordinate_override if options is not None else "", content.coordinate
    )
    if coordinate == 2:
        m = _LPS_RAS @ m
    elif coordinate != 1 and needed:
        raise ContentError(
            f"{content.type_name} coordinate system",
            offset=HEADER_SIZE + (5 if isinstance(content, ImageContent) else 9),
            value=content.coordinate,
            limit="1 (RAS) or 2 (LPS); set coordinate_override",
        )
    return _frozen(m)


def _frozen(array: NDArray[_Number]) -> NDArray[_Number]:
    array.setflags(write=False)
    return array


# ---------------------------------------------------------------------------------------------------------- encoding


def encode_content(
    device: str,
    content: Content,
    *,
    type_name: str | None = None,
    sender_ns: int | None = None,
    version: int = 1,
    metadata: Mapping[str, str] | Sequence[MetadataEntry] | None = None,
    message_id: int = 0,
) -> bytes:
    """One whole message around any content.

    Parameters
    ----------
    type_name : str or None
        The message type where the content has more than one: queries and their answers, QTRANS, COLORTABLE,
        STT_QTDATA, an empty body. None: the content's own.
    sender_ns, version, metadata, message_id
        See `pack_message`.

    Raises
    ------
    EncodeError
        When the content does not belong to the type, a name is longer than 20 bytes, or a value cannot be sent.
    """
    name = type_name or content.type_name
    if not name or name != content.type_name:
        fits = content_class(name) is type(content) or (isinstance(content, EmptyContent) and name in DATA_TYPES)
        if not fits:
            raise EncodeError(
                f"{type(content).__name__} as message type {name!r}: give a type_name that has this content"
            )
    pixels = None
    if isinstance(content, ImageContent):
        packed, pixels = content.pack_header(), content.pixels
    elif isinstance(content, VideoContent):
        packed, pixels = content.pack_header(), content.bitstream
    else:
        packed = content.pack()
    return pack_message(
        name,
        device,
        packed,
        sender_ns=sender_ns,
        version=version,
        metadata=metadata,
        message_id=message_id,
        pixels=pixels,
    )


def encode_transform(
    device: str,
    matrix: ArrayLike,
    *,
    sender_ns: int | None = None,
    version: int = 1,
    metadata: Mapping[str, str] | None = None,
    message_id: int = 0,
) -> bytes:
    """TRANSFORM with a (4, 4) matrix in mm.

    Raises
    ------
    EncodeError
        When a name is longer than 20 bytes or a value cannot be sent.
    """
    pose = np.asarray(matrix, dtype=np.float64)
    if version == 1 and pose.shape == (4, 4):
        raw = pack_transform(header_prefix("TRANSFORM", device), *stamp_from_ns(sender_ns), pose)
        if raw is not None:
            return raw
    packed = TransformContent(pose).pack()
    return pack_message(
        "TRANSFORM", device, packed, sender_ns=sender_ns, version=version, metadata=metadata, message_id=message_id
    )


def encode_tdata(
    device: str,
    tools: Sequence[TrackedTool],
    *,
    sender_ns: int | None = None,
    version: int = 1,
    metadata: Mapping[str, str] | None = None,
    message_id: int = 0,
) -> bytes:
    """TDATA with the tools that are visible (leave the others out: that is how the protocol says lost)."""
    content = TrackingContent(tuple(tools))
    return encode_content(
        device, content, sender_ns=sender_ns, version=version, metadata=metadata, message_id=message_id
    )


def encode_position(
    device: str,
    position: Sequence[float],
    quaternion: Sequence[float] = (),
    *,
    sender_ns: int | None = None,
    version: int = 1,
    metadata: Mapping[str, str] | None = None,
    message_id: int = 0,
) -> bytes:
    """POSITION in mm with a quaternion of 0, 3 (w is left out) or 4 parts, order x, y, z, w."""
    if len(position) != 3:
        raise EncodeError(f"POSITION: {len(position)} coordinates, expected 3")
    content = PositionContent((position[0], position[1], position[2]), tuple(quaternion))
    return encode_content(
        device, content, sender_ns=sender_ns, version=version, metadata=metadata, message_id=message_id
    )


def encode_image(
    device: str,
    array: NDArray[np.generic],
    mm_from_index: ArrayLike,
    *,
    sender_ns: int | None = None,
    version: int = 1,
    metadata: Mapping[str, str] | None = None,
    message_id: int = 0,
    coordinate: str = "ras",
    endian: str = "little",
    whole_size: tuple[int, int, int] | None = None,
    offset: tuple[int, int, int] = (0, 0, 0),
    origin_is_corner: bool = False,
) -> bytes:
    """IMAGE.

    Parameters
    ----------
    array : (j, i), (k, j, i) or (k, j, i, components)
        Two axes are one slice. int8 to uint32, float32, float64.
    mm_from_index : (4, 4)
        Takes (i, j, k, 1) of ``array`` at voxel centres to RAS mm.
    coordinate : "ras" or "lps"
        In which axes the header states the position; readers see the same place either way.
    endian : "little" or "big"
        Byte order of the voxels.
    whole_size, offset : (i, j, k)
        When ``array`` is a part: size of the whole image and index of the part's first voxel in it.
    origin_is_corner : bool
        Write the first voxel where the protocol wants the centre, as some vendors do.

    Raises
    ------
    EncodeError
    """
    values = np.asarray(array)
    if values.ndim == 2:
        values = values[np.newaxis]
    if values.ndim not in (3, 4) or 0 in values.shape:
        raise EncodeError(
            f"IMAGE: array of shape {np.shape(array)}, expected (j, i), (k, j, i) or (k, j, i, c), not empty"
        )
    if coordinate not in ("ras", "lps") or endian not in ("little", "big"):
        raise EncodeError(f"IMAGE: coordinate {coordinate!r} (ras or lps), endian {endian!r} (little or big)")
    m = np.array(mm_from_index, dtype=np.float64)
    if m.shape != (4, 4) or not np.isfinite(m).all():
        raise EncodeError(f"IMAGE: mm_from_index must be (4, 4) and finite, got shape {m.shape}: {m.tolist()}")
    scalar = scalar_number(values.dtype)
    part = (values.shape[2], values.shape[1], values.shape[0])
    size = part if whole_size is None else whole_size
    if coordinate == "lps":
        m = _LPS_RAS @ m
    position = m[:3, 3] - m[:3, :3] @ np.array(offset, dtype=np.float64)
    if not origin_is_corner:
        position = position + m[:3, :3] @ ((np.array(size, dtype=np.float64) - 1.0) / 2.0)
    ordered = np.ascontiguousarray(values, values.dtype.newbyteorder("<" if endian == "little" else ">"))
    content = ImageContent(
        components=values.shape[3] if values.ndim == 4 else 1,
        scalar=scalar,
        endian=2 if endian == "little" else 1,
        coordinate=1 if coordinate == "ras" else 2,
        size=size,
        axes=m[:3, :3],
        position=position,
        offset=offset,
        part=part,
        pixels=ordered.reshape(-1).view(np.uint8).data,
    )
    return encode_content(
        device, content, sender_ns=sender_ns, version=version, metadata=metadata, message_id=message_id
    )


def encode_status(
    device: str,
    code: int = 1,
    subcode: int = 0,
    error_name: str = "",
    text: str = "",
    *,
    sender_ns: int | None = None,
    version: int = 1,
    metadata: Mapping[str, str] | None = None,
    message_id: int = 0,
) -> bytes:
    """STATUS; code 1 is OK."""
    content = StatusContent(code, subcode, error_name, text)
    return encode_content(
        device, content, sender_ns=sender_ns, version=version, metadata=metadata, message_id=message_id
    )


def encode_string(
    device: str,
    text: str,
    *,
    sender_ns: int | None = None,
    version: int = 1,
    metadata: Mapping[str, str] | None = None,
    message_id: int = 0,
) -> bytes:
    """STRING: ASCII where it suffices, else UTF-8."""
    return encode_content(
        device,
        StringContent(text),
        sender_ns=sender_ns,
        version=version,
        metadata=metadata,
        message_id=message_id,
    )
