"""Messages as JSON, and `ablation-nav igtl decode` and `encode`."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivers.openigtlink.codec import encode_content, encode_image, encode_status, encode_string, encode_transform
from drivers.openigtlink.contents import BindChild, BindContent, NdarrayContent, SensorContent, StatusContent
from drivers.openigtlink.json_form import message_as_json, message_from_json
from drivers.openigtlink.text import WireText
from drivers.openigtlink.wire import ContentError, EncodeError, MetadataEntry, WireError, pack_message, parse_message
from nav.cli.errors import ExitCode
from nav.cli.main import main

TRANSFORM = encode_transform(
    "NeedleToTracker", np.eye(4), sender_ns=1_795_419_537_281_455_371, version=2, message_id=4,
    metadata={"TransformStatus": "OK"},
)  # fmt: skip
STRING = encode_string("Note", "Grüße")
BROKEN = pack_message("STATUS", "Arm", b"too short")


def again(raw: bytes) -> dict[str, Any]:
    """The JSON form, after checking that it gives the bytes back through text."""
    written = json.loads(json.dumps(message_as_json(raw), allow_nan=False))
    assert message_from_json(written) == raw
    return dict(written)


def test_what_a_message_looks_like() -> None:
    assert again(TRANSFORM) == {
        "version": 2,
        "type": "TRANSFORM",
        "device": "NeedleToTracker",
        "timestamp": {"ns": 1_795_419_537_281_455_371, "seconds": 1_795_419_537, "fraction": 1_208_841_614},
        "body_size": 87,
        "crc": {"stated": TRANSFORM[50:58].hex(), "computed": TRANSFORM[50:58].hex(), "ok": True},
        "message_id": 4,
        "metadata": {"TransformStatus": "OK"},
        "content": {"matrix": np.eye(4).tolist()},
    }
    assert again(STRING)["message_id"] is None
    assert again(STRING)["content"] == {"text": "Grüße", "encoding": 106}
    assert again(pack_message("UNKNOWN", "D", b"\1\2"))["content"] == {"base64": "AQI="}
    assert again(pack_message("IMAGE", "D", b""))["content"] == {"empty": True}


def test_few_pixels_are_a_list_and_many_are_base64() -> None:
    few = encode_image("US", np.arange(-3, 3, dtype=np.int16).reshape(2, 3), np.eye(4), endian="big")
    assert again(few)["content"]["pixels"] == [-3, -2, -1, 0, 1, 2]
    many = encode_image("US", np.zeros((20, 20), np.uint8), np.eye(4))
    assert again(many)["content"]["pixels"] == base64.b64encode(bytes(400)).decode()
    nan = encode_image("US", np.full((2, 2), np.nan, np.float32), np.eye(4))
    assert isinstance(again(nan)["content"]["pixels"], str)
    unknown_order = bytearray(pack_message("IMAGE", "US", few[58:]))
    unknown_order[58 + 4] = 7
    unknown_order = bytearray(pack_message("IMAGE", "US", bytes(unknown_order[58:])))
    assert isinstance(again(bytes(unknown_order))["content"]["pixels"], str)


def test_numbers_that_json_has_not() -> None:
    assert again(encode_content("S", SensorContent(np.array([1.5, 2.5]))))["content"]["values"] == [1.5, 2.5]
    sensor = again(encode_content("S", SensorContent(np.array([1.5, np.nan, -np.inf]))))
    assert set(sensor["content"]["values"]) == {"dtype", "shape", "base64"}
    for array in (np.array([[1 + 2j]]), np.zeros((0, 3), np.uint8), np.array(5, np.int8), np.zeros(300, np.float32)):
        content = again(encode_content("N", NdarrayContent(array)))["content"]["array"]
        assert (content["dtype"], content["shape"]) == (str(array.dtype), list(array.shape))
    # A pose that is not finite is shown, and goes out as it came, but only as raw bytes.
    broken = again(pack_message("TRANSFORM", "T", b"\x7f\xc0\0\0" + bytes(44)))
    assert "base64" in broken["content"]["matrix"]
    assert base64.b64decode(broken.pop("content_raw")) == b"\x7f\xc0\0\0" + bytes(44)
    with pytest.raises(EncodeError, match="finite"):
        message_from_json(broken)
    point = again(pack_message("POINT", "P", bytes(100) + b"\x7f\xc0\0\0" + bytes(32)))
    assert point["content"]["points"][0]["position"] == ["nan", 0.0, 0.0]


def test_what_text_alone_does_not_say_stands_beside_it() -> None:
    raw = bytearray(pack_message("STRING", "Dev", b"\0\3\0\1\xff", version=2, extension=b"xy", has_index=False))
    raw[14:34] = b"Dev\0junk".ljust(20, b"\0")
    written = again(bytes(raw))
    assert written["device"] == "Dev"
    assert base64.b64decode(written["device_raw"]) == raw[14:34]
    assert written["content"]["text"] == "�"
    assert base64.b64decode(written["content"]["text_raw"]) == b"\xff"
    assert written["metadata_index"] is False
    assert base64.b64decode(written["extension"]) == b"xy"
    capability = again(pack_message("CAPABILITY", "D", b"IMAGE\0x\0\0\0\0\0"))
    assert capability["content"]["types"][0]["text"] == "IMAGE"


def test_metadata_that_an_object_cannot_hold() -> None:
    plain = [MetadataEntry("a", "1"), MetadataEntry("b", "é")]
    assert "metadata_entries" not in again(encode_content("D", StatusContent(), version=2, metadata=plain))
    for entries in (
        [MetadataEntry("a", "1"), MetadataEntry("a", "2")],
        [MetadataEntry("a", "1", 106)],
        [MetadataEntry("a", "é", 4)],
        [MetadataEntry("a", WireText("�", b"\xff"), 3)],
        [MetadataEntry(WireText("�", b"\xff"), "a", 3)],
    ):
        written = again(encode_content("D", StatusContent(), version=2, metadata=entries))
        assert len(written["metadata_entries"]) == len(entries)
        assert written["metadata"][str(entries[-1].key)] == str(entries[-1].value)


def test_bind_is_taken_apart_but_not_without_end() -> None:
    inner = BindContent((BindChild("STRING", "Note", STRING[58:]), BindChild("STATUS", "Bad", b"short"))).pack()
    written = again(encode_content("B", BindContent((BindChild("BIND", "Inner", inner),))))
    (child,) = written["content"]["children"]
    note, bad = child["content"]["children"]
    assert note["content"] == {"text": "Grüße", "encoding": 106}
    assert base64.b64decode(bad["content"]) == b"short"
    body = inner
    for _ in range(2000):
        body = BindContent((BindChild("BIND", "x", body),)).pack()
    assert len(json.dumps(again(pack_message("BIND", "B", body)))) < 3 * len(body)


def test_the_least_that_a_message_needs() -> None:
    raw = message_from_json({"type": "STATUS", "content": {}})
    message = parse_message(raw)
    assert (message.version, message.device, message.sender_ns) == (1, "", None)
    assert raw == encode_status("")
    stamped = {"type": "GET_STATUS", "timestamp": {"ns": 1_500_000_000}, "content": {}}
    assert parse_message(message_from_json(stamped)).stamp == (1, 1 << 31)
    fraction = {"type": "GET_STATUS", "timestamp": {"seconds": 1, "fraction": 7}, "content": {}}
    assert parse_message(message_from_json(fraction)).stamp == (1, 7)
    typed = {"dtype": "uint8", "shape": [2, 2], "values": [1, 2, 3, 4]}
    raw = message_from_json({"type": "NDARRAY", "content": {"array": typed}})
    assert raw[58:] == b"\3\2\0\2\0\2\1\2\3\4"


IDENTITY = np.eye(4).tolist()


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ([], "message: expected an object"),
        ({}, "type: is missing"),
        ({"type": 3, "content": {}}, "type: is missing"),
        ({"type": "STATUS", "error": {}}, "could not be decoded"),
        ({"type": "STATUS"}, "content: expected an object"),
        ({"type": "STATUS", "content": [], "body": 3}, "unknown keys body"),
        ({"type": "STATUS", "content": {"kode": 1}}, "content: unknown keys kode; known: code"),
        ({"type": "STATUS", "content": {"code": 1.5}}, "content.code: 1.5 is no whole number"),
        ({"type": "STATUS", "content": {"code": True}}, "content.code: True"),
        ({"type": "STATUS", "content": {"text": 3}}, "content.text: expected text"),
        ({"type": "STATUS", "content": {"text": "a", "text_raw": "?"}}, "content.text_raw: no base64"),
        ({"type": "STATUS", "content": {"code": 70000}}, "content: STATUS"),
        ({"type": "STATUS", "device": "x" * 21, "content": {}}, "limit 20 bytes"),
        ({"type": "STATUS", "content": {"empty": True, "code": 1}}, "unknown keys empty"),
        ({"type": "GET_IMAGE", "content": {"empty": True}}, "unknown keys empty"),
        ({"type": "UNKNOWN", "content": {}}, "'UNKNOWN' is not known"),
        ({"type": "UNKNOWN", "content": {"base64": 3}}, "content.base64: expected base64"),
        ({"type": "STATUS", "version": "2", "content": {}}, "version: '2'"),
        ({"type": "STATUS", "version": 3, "content": {}}, "header version 3"),
        ({"type": "STATUS", "timestamp": 5, "content": {}}, "timestamp: expected an object"),
        ({"type": "STATUS", "timestamp": {"s": 5}, "content": {}}, "timestamp: unknown keys s"),
        ({"type": "STATUS", "timestamp": {"ns": 5, "seconds": 1}, "content": {}}, "leave one out"),
        ({"type": "STATUS", "timestamp": {"ns": -5}, "content": {}}, "1970"),
        ({"type": "STATUS", "timestamp": {"seconds": 1 << 32}, "content": {}}, "32 bits"),
        ({"type": "STATUS", "metadata": {"a": 1}, "content": {}}, "metadata: expected"),
        ({"type": "STATUS", "metadata_entries": {"a": 1}, "content": {}}, "metadata_entries: expected a list"),
        ({"type": "STATUS", "metadata_entries": [{"key": "a"}], "content": {}}, "metadata_entries[0].value"),
        ({"type": "TRANSFORM", "content": {}}, "content.matrix: is missing"),
        ({"type": "TRANSFORM", "content": {"matrix": 3}}, "content.matrix: expected a list"),
        ({"type": "TRANSFORM", "content": {"matrix": [[1, 2], [3]]}}, "rows of different length"),
        ({"type": "TRANSFORM", "content": {"matrix": [["a"]]}}, "expected numbers"),
        ({"type": "TRANSFORM", "content": {"matrix": IDENTITY[:3]}}, "shape (3, 4)"),
        ({"type": "TRANSFORM", "content": {"matrix": {"base64": "AAAA"}}}, "no whole number of float64"),
        ({"type": "TRANSFORM", "content": {"matrix": {"base64": "", "shape": [4, 4]}}}, "does not fit 0"),
        ({"type": "POSITION", "content": {"position": [1, 2]}}, "content.position: 2 values, expected 3"),
        ({"type": "POSITION", "content": {"position": [1, 2, "x"]}}, "content.position[2]: 'x' is no number"),
        ({"type": "POSITION", "content": {"position": [1, 2, "nan"]}}, "finite"),
        ({"type": "TDATA", "content": {"tools": [{"name": "a", "matrix": IDENTITY, "kind": 9}]}}, "kind 9"),
        ({"type": "TDATA", "content": {"tools": [3]}}, "content.tools[0]: expected an object"),
        ({"type": "NDARRAY", "content": {"array": [1]}}, "content.array.dtype"),
        ({"type": "NDARRAY", "content": {"array": {"dtype": "O", "values": [1]}}}, "content.array.dtype"),
        ({"type": "NDARRAY", "content": {"array": {"dtype": "uint8", "values": [256]}}}, "whole numbers of 0 to 255"),
        ({"type": "NDARRAY", "content": {"array": {"dtype": "uint8", "values": [1.5]}}}, "whole numbers"),
        ({"type": "NDARRAY", "content": {"array": {"dtype": "float32", "values": [1e39]}}}, "not finite in float32"),
        ({"type": "BIND", "content": {"children": [{"type_name": "STATUS", "name": "s", "content": {"code": "x"}}]}},
         "content.children[0].content.code"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_path(spec: Any, what: str) -> None:
    with pytest.raises(EncodeError) as caught:
        message_from_json(spec)
    assert what in str(caught.value)


def test_an_image_from_a_list_of_pixels() -> None:
    image = message_as_json(encode_image("US", np.arange(6, dtype=np.uint8).reshape(2, 3), np.eye(4)))
    for change, what in (
        ({"endian": 0}, "a list needs scalar"),
        ({"pixels": [0, 1, 2, 3, 4, 256]}, "whole numbers of 0 to 255"),
        ({"pixels": [0, 1, 2, 3, 4]}, "5 bytes of pixels"),
        ({"pixels": None}, "expected base64"),
    ):
        with pytest.raises(EncodeError, match=what):
            message_from_json(image | {"content": image["content"] | change})


def test_a_wrong_crc_or_content_is_no_json() -> None:
    with pytest.raises(ContentError, match="30 bytes"):
        message_as_json(BROKEN)
    damaged = bytearray(STRING)
    damaged[-1] ^= 1
    with pytest.raises(WireError, match="CRC"):
        message_as_json(bytes(damaged))


# ------------------------------------------------------------------------------------------------------- command line


def decode_json(file: Path, capsys: pytest.CaptureFixture[str], code: int) -> list[dict[str, Any]]:
    assert main(["igtl", "decode", str(file), "--json"]) == code
    out = capsys.readouterr().out
    messages = json.loads(out)
    assert isinstance(messages, list)
    return messages


def test_decode_and_encode_give_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, spec, out = tmp_path / "in.bin", tmp_path / "spec.json", tmp_path / "out.bin"
    file.write_bytes(TRANSFORM + STRING)
    messages = decode_json(file, capsys, ExitCode.OK)
    assert [m["offset"] for m in messages] == [0, len(TRANSFORM)]
    spec.write_text(json.dumps(messages))
    assert main(["igtl", "encode", str(spec), "--out", str(out)]) == ExitCode.OK
    assert "2 messages" in capsys.readouterr().out
    assert out.read_bytes() == TRANSFORM + STRING
    spec.write_text(json.dumps(messages[0]))
    assert main(["igtl", "encode", str(spec), "--out", str(out)]) == ExitCode.OK
    assert out.read_bytes() == TRANSFORM


def test_decode_names_what_is_wrong_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "in.bin"
    damaged = bytearray(STRING)
    damaged[-1] ^= 1
    file.write_bytes(TRANSFORM + BROKEN + bytes(damaged) + STRING + TRANSFORM[:-3])
    good, broken, bad_crc, last, cut = decode_json(file, capsys, ExitCode.INPUT)
    assert "error" not in good
    assert "error" not in last
    assert (broken["type"], broken["crc"]["ok"], "content" in broken) == ("STATUS", True, False)
    assert broken["error"]["kind"] == "ContentError"
    assert broken["error"]["offset"] == len(TRANSFORM) + 58
    assert (bad_crc["crc"]["ok"], bad_crc["error"]["kind"]) == (False, "WireError")
    assert bad_crc["error"]["offset"] == len(TRANSFORM) + len(BROKEN) + 50
    assert cut["error"]["offset"] == cut["offset"] + 42
    assert cut["error"]["value"] == len(TRANSFORM) - 58


@pytest.mark.parametrize(
    ("rest", "offset", "what"),
    [(b"x" * 57, 0, "header"), (b"\0\3" + bytes(56), 0, "version"), (b"\0\1" + bytes(56), 2, "message type")],
)
def test_where_nothing_can_be_framed_the_rest_is_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rest: bytes, offset: int, what: str
) -> None:
    file = tmp_path / "in.bin"
    file.write_bytes(STRING + rest)
    good, error = decode_json(file, capsys, ExitCode.INPUT)
    assert good["type"] == "STRING"
    assert error.keys() == {"offset", "error"}
    assert error["error"]["offset"] == len(STRING) + offset
    assert what in error["error"]["what"]


def test_decode_for_a_person(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "in.bin"
    file.write_bytes(TRANSFORM + BROKEN + STRING + b"x")
    assert main(["igtl", "decode", str(file)]) == ExitCode.INPUT
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "v2 TRANSFORM 'NeedleToTracker'" in lines[0]
    assert "TransformStatus=OK" in lines[0]
    assert "ContentError" in lines[1]
    assert "no stamp" in lines[2]
    assert "58 bytes" in lines[3]


def test_files_that_are_no_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    assert main(["igtl", "decode", str(file)]) == ExitCode.INPUT
    file.write_bytes(b"")
    assert main(["igtl", "decode", str(file)]) == ExitCode.INPUT
    assert "is empty" in capsys.readouterr().err
    out = tmp_path / "out.bin"
    for text, what in (("{", "no JSON"), ("[]", "no message"), ('[{"type": "STATUS"}, 3]', "message 1: ")):
        file.write_text(text)
        assert main(["igtl", "encode", str(file), "--out", str(out)]) == ExitCode.INPUT
        assert what in capsys.readouterr().err
        assert not out.exists()
