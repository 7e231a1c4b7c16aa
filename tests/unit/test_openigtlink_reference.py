"""The 24 reference messages: every value, byte for byte back, split at every offset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivers.openigtlink.contents import (
    BindContent,
    CapabilityContent,
    ColorTableContent,
    CommandContent,
    Content,
    ImageContent,
    ImageMetaContent,
    LabelMetaContent,
    NdarrayContent,
    PointContent,
    PolyDataContent,
    PositionContent,
    SensorContent,
    StatusContent,
    StringContent,
    TrackingContent,
    TrajectoryContent,
    TransformContent,
    VideoMetaContent,
    split_cells,
    unpack_content,
    unpack_message,
)
from drivers.openigtlink.framing import Framer
from drivers.openigtlink.json_form import message_as_json, message_from_json
from drivers.openigtlink.wire import parse_header, parse_message, repack_message

Fixtures = list[tuple[str, bytes, dict[str, Any]]]


@pytest.fixture(scope="module")
def fixtures(shared_data: Path) -> Fixtures:
    folder = shared_data / "openigtlink"
    decoded = json.loads((folder / "decoded.json").read_text())
    assert len(decoded) == 24
    return [(name, (folder / name).read_bytes(), values) for name, values in decoded.items()]


def rounded(values: Any) -> Any:
    """As decoded.json has numbers: six decimals."""
    return np.round(np.asarray(values, dtype=float), 6).tolist()


def sizes_of_cells(content: PolyDataContent) -> dict[str, int]:
    out = {}
    for key, cells in (
        ("verts", content.vertices),
        ("lines", content.lines),
        ("polys", content.polygons),
        ("strips", content.strips),
    ):
        out |= {f"n{key}": len(split_cells(cells)), f"size_{key}": cells.nbytes}
    return out


def as_in_decoded_json(content: Content, size: int) -> Any:
    """The values of a content under the keys and in the form of decoded.json."""
    match content:
        case TransformContent(matrix=m):
            return {"R": rounded(m[:3, :3]), "t": rounded(m[:3, 3])}
        case PositionContent():
            return {"bytes": size, "pos": rounded(content.position), "quat": rounded(content.quaternion)}
        case TrackingContent():
            return [
                {"name": t.name, "type": t.kind, "t": rounded(t.matrix[:3, 3]), "R0": rounded(t.matrix[:3, 0])}
                for t in content.tools
            ]
        case ImageContent():
            return {
                "ver": content.version, "comp": content.components, "scalar": content.scalar, "endian": content.endian,
                "coord": content.coordinate, "size": list(content.size), "ti": rounded(content.axes[:, 0]),
                "sj": rounded(content.axes[:, 1]), "nk": rounded(content.axes[:, 2]),
                "center": rounded(content.position), "svoff": list(content.offset), "svsize": list(content.part),
                "first": rounded(list(content.pixels[:4])), "n": len(content.pixels),
            }  # fmt: skip
        case ImageMetaContent():
            return [
                {"name": i.name, "dev": i.device, "mod": i.modality, "pat": i.patient_name, "pid": i.patient_id,
                 "size": list(i.size), "scalar": i.scalar}
                for i in content.images
            ]  # fmt: skip
        case LabelMetaContent():
            return [
                {"name": x.name, "dev": x.device, "label": x.label, "rgba": list(x.rgba), "size": list(x.size),
                 "owner": x.owner}
                for x in content.labels
            ]  # fmt: skip
        case PointContent():
            return [
                {"name": p.name, "group": p.group, "rgba": list(p.rgba), "xyz": rounded(p.position),
                 "diam": p.diameter, "owner": p.owner}
                for p in content.points
            ]  # fmt: skip
        case TrajectoryContent():
            return [
                {"name": t.name, "group": t.group, "type": t.kind, "rgba": list(t.rgba), "entry": rounded(t.entry),
                 "target": rounded(t.target), "size": t.diameter, "owner": t.owner}
                for t in content.trajectories
            ]  # fmt: skip
        case StatusContent():
            return {
                "code": content.code, "subcode": content.subcode, "error": content.error_name, "message": content.text,
            }  # fmt: skip
        case StringContent():
            return {"enc": content.encoding, "len": len(content.text), "s": content.text}
        case CommandContent():
            return {
                "id": content.command_id, "name": content.name, "enc": content.encoding, "len": len(content.text),
                "text": content.text, "extra": 0,
            }  # fmt: skip
        case CapabilityContent():
            return list(content.types)
        case SensorContent():
            return {
                "n": len(content.values), "status": content.status, "unit": f"{content.unit:016x}",
                "data": rounded(content.values),
            }  # fmt: skip
        case NdarrayContent():
            number = {np.dtype(np.float64): 11}[content.array.dtype]
            return {"scalar": number, "size": list(content.array.shape), "nbytes": content.array.nbytes}
        case ColorTableContent():
            number = {np.dtype(np.uint8): 3}[content.table.dtype]
            return {"index_type": 3, "map_type": number, "n": len(content.table)}
        case PolyDataContent():
            return {"npoints": len(content.points), "nattr": len(content.attributes)} | sizes_of_cells(content)
        case BindContent():
            return {
                "children": [[c.type_name, len(c.content)] for c in content.children],
                "nametable": [c.name for c in content.children],
            }
        case VideoMetaContent():
            return {"bytes": size, "n": float(len(content.videos))}
    raise AssertionError(f"{content} is not in decoded.json")


def test_every_value_of_every_header(fixtures: Fixtures) -> None:
    for name, raw, wanted in fixtures:
        header, message = parse_header(raw), parse_message(raw)
        seconds, fraction = header.stamp
        metadata = {e.key: [e.encoding, e.value] for e in message.entries}
        found = {
            "v": header.version, "type": header.type_name, "device": header.device,
            "timestamp_s": round(seconds + fraction / 2**32, 6), "body": header.body_size,
            "crc_ok": Framer().feed(raw) == [raw], "msg_id": message.message_id if message.version == 2 else None,
            "meta": metadata, "content_bytes": len(message.content),
        }  # fmt: skip
        assert found == {key: value for key, value in wanted.items() if key != "content"}, name


def test_every_value_of_every_content(fixtures: Fixtures) -> None:
    for name, raw, wanted in fixtures:
        message = parse_message(raw)
        content = unpack_message(message)
        assert content is not None, name
        assert as_in_decoded_json(content, len(message.content)) == wanted["content"], name


def test_every_message_is_packed_again_byte_for_byte(fixtures: Fixtures) -> None:
    for name, raw, _ in fixtures:
        message = parse_message(raw)
        content = unpack_message(message)
        assert content is not None
        assert repack_message(message, content.pack()) == raw, name
        assert message.stamp == ((0, 0) if "command" in name else (0, 0x499602D4)), name


def test_every_message_goes_through_json_byte_for_byte(fixtures: Fixtures) -> None:
    for name, raw, _ in fixtures:
        written = json.loads(json.dumps(message_as_json(raw), allow_nan=False))
        assert "content_raw" not in written, name
        assert message_from_json(written) == raw, name


def test_split_at_every_offset_every_message_is_the_same(fixtures: Fixtures) -> None:
    for name, raw, _ in fixtures:
        for at in range(len(raw) + 1):
            framer = Framer()
            assert framer.feed(raw[:at]) + framer.feed(raw[at:]) == [raw], (name, at)
            assert framer.pending == 0, (name, at)


def test_cut_at_every_offset_no_message_comes_out(fixtures: Fixtures) -> None:
    for name, raw, _ in fixtures:
        for at in range(len(raw)):
            framer = Framer()
            assert framer.feed(raw[:at]) == [], (name, at)
            assert framer.pending == at, (name, at)


def test_the_rest_that_decoded_json_does_not_name(fixtures: Fixtures) -> None:
    raw = {name: content for name, content, _ in fixtures}

    def content_of(name: str) -> Any:
        return unpack_message(parse_message(raw[name]))

    poly = content_of("polydata.bin")
    np.testing.assert_array_equal(poly.points[6], [1, 1, 1])
    assert split_cells(poly.polygons)[2] == [0, 1, 5, 4]
    assert (poly.attributes[0].kind, poly.attributes[0].name) == (0, "attr")
    np.testing.assert_array_equal(poly.attributes[0].values[:, 0], np.arange(8))
    np.testing.assert_array_equal(content_of("ndarray.bin").array, np.arange(60).reshape(5, 4, 3))
    np.testing.assert_array_equal(content_of("colortable.bin").table, np.arange(256))
    video = content_of("videometa.bin").videos[1]
    assert (video.name, video.device, video.patient_name, video.patient_id) == (
        "VIDEO_DESCRIPTION_1", "VIDEO_1", "PATIENT_1", "PATIENT_ID_1",
    )  # fmt: skip
    np.testing.assert_array_equal(video.position, (50, 100, 16))
    first = content_of("videometa.bin").videos[0]
    assert (first.zoom, first.focal_length_mm, first.size, first.scalar) == (4, 50.0, (512, 512, 64), 5)
    children = content_of("bind.bin").children
    inner = [unpack_content(child.type_name, child.content) for child in children]
    assert [type(c) for c in inner] == [TransformContent, ImageContent, SensorContent]
    np.testing.assert_array_equal(inner[0].matrix, content_of("transform.bin").matrix)  # type: ignore[union-attr]
