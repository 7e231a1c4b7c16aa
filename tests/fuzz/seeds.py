"""What the fuzzers start from: the reference messages, and messages of our own of every type there is.

The types are those that `drivers.openigtlink.contents` knows. `example_contents` has at least one content of each of
its classes; `all_type_names` finds a class without one, so that a new type cannot be forgotten.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drivers.openigtlink import contents as c
from drivers.openigtlink.codec import encode_content
from drivers.openigtlink.errors import EncodeError
from drivers.openigtlink.video_codecs import i420_bitstream
from drivers.openigtlink.wire import HEADER_SIZE, MetadataEntry, pack_message, parse_message

__all__ = ["LAYOUTS", "Seed", "all_type_names", "example_contents", "field_offsets", "reference_folder", "seeds"]

#: Numbers and texts at the beginning of a content, and of what repeats in it (without a beginning: from byte 0 on).
LAYOUTS: dict[str, tuple[str, str]] = {
    "TRANSFORM": (">12f", ""),
    "POSITION": (">7f", ""),
    "QTRANS": (">7f", ""),
    "TDATA": ("", ">20sBB12f"),
    "QTDATA": ("", ">20sBB7f"),
    "IMAGE": (">HBBBB3H12f3H3H", ">H"),
    "IMGMETA": ("", ">64s20s32s64s64sII3HBB"),
    "LBMETA": ("", ">64s20sBB4B3H20s"),
    "VIDEO": (">HB4sHB3H12f3H3H", ">B"),
    "VIDEOMETA": ("", ">64s64s64s64shd3H12fBB"),
    "STATUS": (">Hq20s", ">B"),
    "STRING": (">HH", ">B"),
    "CLIENTINFO": (">HH", ">B"),
    "POINT": ("", ">64s32s4B3ff20s"),
    "TRAJ": ("", ">64s32sbb4B3f3ff20s"),
    "SENSOR": (">BBQ", ">d"),
    "NDARRAY": (">BB5H", ">d"),
    "COLORT": (">BB", ">H"),
    "COLORTABLE": (">BB", ">H"),
    "POLYDATA": (">10I", ">I"),
    "BIND": (">H", ">12sQ"),
    "GET_BIND": (">H", ">12sH"),
    "STT_BIND": (">QH", ">12sH"),
    "CAPABILITY": ("", ">12s"),
    "COMMAND": (">I128sHI", ">B"),
    "RTS_COMMAND": (">I128sHI", ">B"),
    "STT_TDATA": (">i32s", ""),
    "STT_QTDATA": (">i32s", ""),
    "STT_VIDEO": (">4sIB", ""),
}

#: Offset and size of every number of the header; of the extended header behind it.
HEADER_FIELDS = ((0, 2), (2, 12), (14, 20), (34, 4), (38, 4), (42, 8), (50, 8))
EXTENDED_FIELDS = ((58, 2), (60, 2), (62, 4), (66, 4))


@dataclass(frozen=True, slots=True)
class Seed:
    """One sound message. ``fields``: offset and size of the fields of its content, within the message."""

    name: str
    raw: bytes
    type_name: str
    version: int
    content_at: int
    content_end: int
    fields: tuple[tuple[int, int], ...]


def reference_folder() -> Path | None:
    """The reference messages, where they are."""
    data = Path(os.environ.get("ABLATION_NAV_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    folder = data / "openigtlink"
    return folder if folder.is_dir() else None


def field_offsets(type_name: str, size: int, most: int = 160) -> list[tuple[int, int]]:
    """Offset and size of the fields of a content of ``size`` bytes; at most ``most`` of them."""
    head, element = LAYOUTS.get(type_name, ("", ">Q"))
    out: list[tuple[int, int]] = []
    at = 0
    for layout, repeats in ((head, False), (element, True)):
        sizes = [struct.calcsize(f">{part}") for part in _parts(layout)]
        while sizes and at < size and len(out) < most:
            for step in sizes:
                if at + step <= size:
                    out.append((at, step))
                at += step
            if not repeats:
                break
    return out


def _parts(layout: str) -> list[str]:
    """ ">20s2B" as "20s", "B", "B"."""
    parts: list[str] = []
    count = ""
    for letter in layout.lstrip(">"):
        if letter.isdigit():
            count += letter
        elif letter == "s":
            parts.append(f"{count}s")
            count = ""
        else:
            parts += [letter] * int(count or 1)
            count = ""
    return parts


def all_type_names() -> list[str]:
    """Every message type that has a content: data, queries under all their names, answers."""
    names = [*c.DATA_TYPES, "CLIENTINFO", "RTS_COMMAND"]
    for prefix in ("GET", "STT", "STP", "RTS"):
        for data_type in c.DATA_TYPES:
            try:
                names.append(c.query_type(prefix, data_type))
            except EncodeError:
                continue
    unique = list(dict.fromkeys(names))
    examples = example_contents()
    missing = {kind.__name__ for name in unique if (kind := c.content_class(name)) is not None and kind not in examples}
    if missing:
        raise AssertionError(f"no example in tests/fuzz/seeds.py for {', '.join(sorted(missing))}")
    return unique


def example_contents() -> dict[type[c.Content], list[c.Content]]:
    """At least one content of every class."""
    eye = np.eye(4)
    turned = np.eye(4)
    turned[:3, :3] = [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    turned[:3, 3] = 12.5, -7.25, 101.0
    axes, position = turned[:3, :3] * 0.5, turned[:3, 3]
    place = {"axes": axes, "position": position}
    whole = {"size": (4, 3, 2), "offset": (0, 0, 0), "part": (4, 3, 2), **place}
    part = {"size": (8, 8, 4), "offset": (1, 2, 1), "part": (4, 3, 2), **place}
    rng = np.random.default_rng(5)

    def pixels(count: int) -> memoryview:
        return memoryview(rng.integers(0, 256, count, dtype=np.uint8).tobytes())

    images: list[c.Content] = [
        c.ImageContent(1, scalar, 1 + scalar % 2, 1 + n % 2, pixels=pixels(24 * np.dtype(kind).itemsize), **where)
        for n, (scalar, kind) in enumerate(c.SCALAR_TYPES.items())
        for where in (whole, part)
    ]
    images.append(c.ImageContent(3, 3, 2, 1, pixels=pixels(72), **whole))
    grey, grey_type = i420_bitstream(rng.integers(0, 256, (4, 6), dtype=np.uint8))
    colour, colour_type = i420_bitstream(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
    frame = {"size": (6, 4, 1), "offset": (0, 0, 0), "part": (6, 4, 1), **place}
    points = rng.normal(0, 40, (6, 3)).astype(np.float32)
    attributes = tuple(
        c.PolyAttribute(kind, name, rng.normal(0, 1, (n, components)).astype(np.float32))
        for kind, name, n, components in (
            (0, "Scalars", 6, 2), (1, "Vectors", 6, 3), (0x12, "Normals", 3, 3), (3, "T", 6, 9),
            (0x14, "Colours", 3, 4),
        )
    )  # fmt: skip
    inner = c.BindContent((c.BindChild("STATUS", "S", c.StatusContent().pack()),))
    children = (("TRANSFORM", "NeedleToTracker"), ("STATUS", "Server"), ("STRING", ""))
    return {
        c.TransformContent: [c.TransformContent(eye), c.TransformContent(turned)],
        c.PositionContent: [
            c.PositionContent((1.0, 2.0, 3.0)),
            c.PositionContent((1.0, 2.0, 3.0), (0.1, 0.2, 0.3)),
            c.PositionContent((1.0, 2.0, 3.0), (0.0, 0.0, 0.6, 0.8)),
        ],
        c.TrackingContent: [
            c.TrackingContent((c.TrackedTool("NeedleToTracker", turned, 2), c.TrackedTool("ProbeToTracker", eye, 3))),
            c.TrackingContent(()),
        ],
        c.QuaternionTrackingContent: [
            c.QuaternionTrackingContent(
                (
                    c.QuaternionTool("NeedleToTracker", (1.0, 2.0, 3.0), (0.0, 0.0, 0.6, 0.8), 1),
                    c.QuaternionTool("A", (4.0, 5.0, 6.0), (0.5, 0.5, 0.5, 0.5), 4),
                )
            )
        ],
        c.ImageContent: images,
        c.ImageMetaContent: [
            c.ImageMetaContent(
                (
                    c.ImageMeta("Liver", "CT", "CT", "A^B", "4711", (1_700_000_000, 7), (512, 512, 90), 4),
                    c.ImageMeta("Überblick", "US"),
                )
            )
        ],
        c.LabelMetaContent: [
            c.LabelMetaContent((c.LabelMeta("Tumour", "Labels", 1, (255, 0, 0, 255), (8, 8, 8), "CT"),)),
        ],
        c.VideoContent: [
            c.VideoContent("I420", grey_type, 2, 1, bitstream=memoryview(grey), **frame),
            c.VideoContent("I420", colour_type, 2, 2, bitstream=memoryview(colour), **frame),
            c.VideoContent("H264", 1, 2, 1, bitstream=pixels(60), **frame),
            c.VideoContent("VP90", 1, 2, 1, bitstream=pixels(60), **frame),
        ],
        c.VideoMetaContent: [
            c.VideoMetaContent((c.VideoMeta("Scope", "Scope", "A^B", "4711", 2, 35.0, (640, 480, 1), axes, position),))
        ],
        c.StatusContent: [c.StatusContent(), c.StatusContent(13, -5, "NotReady", "Gerät nicht bereit")],
        c.StringContent: [
            c.StringContent("Welcome"),
            c.StringContent("Größe", 106),
            c.StringContent("naïve", 4),
            c.StringContent("肝臓", 17),
            c.StringContent("x", 1013),
        ],
        c.ClientInfoContent: [c.ClientInfoContent('<ClientInfo ClientHeaderVersion="2"><MessageTypes/></ClientInfo>')],
        c.PointContent: [
            c.PointContent(
                (
                    c.Point("Entry", (1.0, 2.0, 3.0), "Fiducial", (1, 2, 3, 4), 5.0, "CT"),
                    c.Point("T", (4.0, 5.0, 6.0)),
                )
            )
        ],
        c.TrajectoryContent: [
            c.TrajectoryContent(
                (c.Trajectory("Path", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), "Plan", 3, diameter=1.5, owner="CT"),)
            )
        ],
        c.SensorContent: [c.SensorContent(np.array([1.0, -2.5, 1e300]), 0x00443E0000000000, 1)],
        c.NdarrayContent: [
            c.NdarrayContent(np.arange(12, dtype=np.float64).reshape(3, 2, 2)),
            c.NdarrayContent(np.array([1 + 2j, 3 - 4j])),
            c.NdarrayContent(np.arange(6, dtype=np.int16).reshape(1, 2, 3, 1, 1)),
            c.NdarrayContent(np.float32(3.5)),
        ],
        c.ColorTableContent: [
            c.ColorTableContent(np.arange(256, dtype=np.uint8)),
            c.ColorTableContent(np.arange(256, dtype=np.uint16) * 257),
            c.ColorTableContent(rng.integers(0, 256, (256, 3), dtype=np.uint8)),
        ],
        c.PolyDataContent: [
            c.PolyDataContent(
                points,
                c.cell_array([[0], [1, 2]]),
                c.cell_array([[0, 1], [1, 2, 3]]),
                c.cell_array([[0, 1, 2], [2, 3, 4, 5]]),
                c.cell_array([[0, 1, 2, 3]]),
                attributes,
            ),
            c.PolyDataContent(points[:3], polygons=c.cell_array(np.array([[0, 1, 2], [2, 1, 0]]))),
        ],
        c.BindContent: [
            c.BindContent(
                (
                    c.BindChild("TRANSFORM", "Needle", c.TransformContent(turned).pack()),
                    c.BindChild("STRING", "Note", c.StringContent("odd").pack()),
                    c.BindChild("BIND", "Inner", inner.pack()),
                )
            )
        ],
        c.CapabilityContent: [c.CapabilityContent(("TRANSFORM", "IMAGE", "GET_IMAGE"))],
        c.CommandContent: [
            c.CommandContent(7, "StartRecording", '<Command Name="StartRecording" OutputFilename="a.mcap"/>'),
            c.CommandContent(0xFFFFFFFF, "RequestState"),
        ],
        c.CommandReplyContent: [c.CommandReplyContent(7, "StartRecording", '<CommandReply Status="SUCCESS"/>')],
        c.GetBindContent: [c.GetBindContent(), c.GetBindContent(children)],
        c.StartBindContent: [c.StartBindContent(), c.StartBindContent(50_000_000, children)],
        c.StartTrackingContent: [c.StartTrackingContent(50, "Patient")],
        c.StartVideoContent: [c.StartVideoContent("VP90", 33, 1), c.StartVideoContent("I420", 0, None)],
        c.QueryContent: [c.QueryContent(), c.QueryContent(20_000_000)],
        c.ReplyContent: [c.ReplyContent(0), c.ReplyContent(None)],
    }  # fmt: skip


#: Metadata as PLUS and others send it, and as nobody should.
_METADATA: tuple[tuple[MetadataEntry, ...], ...] = (
    (),
    (MetadataEntry("TransformStatus", "OK"), MetadataEntry("IGTL_DEVICE_NAME", "NeedleToTracker")),
    (MetadataEntry("NeedleToTrackerStatus", "MISSING", 3), MetadataEntry("Größe", "naïve", 4)),
    (MetadataEntry("a", "1"), MetadataEntry("a", "2"), MetadataEntry("", ""), MetadataEntry("TransformValid", "0")),
)


def seeds(folder: Path | None = None) -> list[Seed]:
    """Reference messages (where ``folder`` is given), and our own: every type, versions 1 and 2, with metadata."""
    out: list[Seed] = []
    if folder is not None:
        out += [_seed(path.stem, path.read_bytes()) for path in sorted(folder.glob("*.bin"))]
    examples = example_contents()
    number = 0
    for type_name in all_type_names():
        kind = c.content_class(type_name)
        if kind is None:  # a type that is carried, but not taken apart
            out.append(_seed(f"made-{type_name}", pack_message(type_name, "Device", b"12345678")))
            continue
        for content in examples[kind]:
            if kind is c.QueryContent and content.pack() and not type_name.startswith("STT"):
                continue
            for version in (1, 2):
                number += 1
                raw = encode_content(
                    ("NeedleToTracker", "Image", "")[number % 3], content, type_name=type_name,
                    sender_ns=(None, 1_700_000_000_123_456_789)[number % 2], version=version,
                    metadata=_METADATA[number % len(_METADATA)] if version == 2 else None, message_id=number,
                )  # fmt: skip
                out.append(_seed(f"made-{type_name}-{number}", raw))
    transform = examples[c.TransformContent][1].pack()
    out.append(_seed("made-unknown", pack_message("VENDOR", "Thing", b"\1" * 40)))
    out.append(_seed("made-no-index", pack_message("TRANSFORM", "A", transform, version=2, has_index=False)))
    out.append(_seed("made-extension", pack_message("TRANSFORM", "A", transform, version=2, extension=b"abcd")))
    out.append(_seed("made-empty-image", pack_message("IMAGE", "A", b"")))
    return out


def _seed(name: str, raw: bytes) -> Seed:
    message = parse_message(raw)
    start, size = message.content_offset, len(message.content)
    fields = tuple((start + at, n) for at, n in field_offsets(message.type_name, size))
    return Seed(name, raw, str(message.type_name), message.version, start, start + size, fields)


assert HEADER_FIELDS[-1][0] + HEADER_FIELDS[-1][1] == HEADER_SIZE
