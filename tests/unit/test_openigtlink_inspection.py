"""The table of what a server sends: counts, rates, gaps, stamps, values, frames and findings, on a hand-moved clock."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from drivers.openigtlink.codec import (
    decode,
    encode_content,
    encode_image,
    encode_status,
    encode_string,
    encode_tdata,
    encode_transform,
)
from drivers.openigtlink.contents import CapabilityContent, ImageMeta, ImageMetaContent, SensorContent, TrackedTool
from drivers.openigtlink.frame_groups import FrameGroups
from drivers.openigtlink.in_short import LONGEST
from drivers.openigtlink.inspection import LINKS, STREAMS, StreamRow, StreamTable
from drivers.openigtlink.wire import pack_message
from nav.runtime.messages import LinkMessage, LinkState

MS = 1_000_000
S = 1_000_000_000
UTC = 1_700_000_000 * S


class Server:
    """Says things to a table at chosen moments."""

    def __init__(self) -> None:
        self.table = StreamTable()
        self.now = S
        self.number = 0

    def says(self, raw: bytes, wait: int = 20 * MS) -> None:
        self.now += wait
        self.number += 1
        message = decode(raw, source="s", sequence=self.number, arrival_ns=self.now)
        self.table.take(message, raw, utc_minus_local_ns=UTC)

    def link(self, state: LinkState, detail: str = "", wait: int = 0) -> None:
        self.now += wait
        self.table.take(LinkMessage("s", 0, self.now, "", None, state=state, detail=detail), None)

    def pose(self, name: str = "NeedleToTracker", wait: int = 20 * MS, scale: float = 1.0, **options: Any) -> None:
        self.says(encode_transform(name, at(self.number, scale), **options), wait)

    def row(self, type_name: str = "TRANSFORM", device: str = "NeedleToTracker") -> StreamRow:
        return next(r for r in self.table.rows() if (r.type_name, r.device) == (type_name, device))

    def codes(self) -> set[str]:
        return {f.code for f in self.table.findings()}

    def report(self) -> dict[str, Any]:
        return self.table.report(self.now, since_ns=S)


def at(n: int, scale: float = 1.0) -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, 3] = np.array([100.0 + n % 7, -40.0, -900.0 + n % 5]) * scale
    return matrix


def test_rate_and_age_of_an_even_stream() -> None:
    server = Server()
    for _ in range(101):
        server.pose()
    row = server.row()
    assert row.count == 101
    assert row.rate_hz == pytest.approx(50.0)
    assert row.usual_ms == pytest.approx(20.0)
    assert row.gaps == 0
    assert row.age_ms(server.now + 35 * MS) == pytest.approx(35.0)
    assert row.bytes_per_s == pytest.approx(106 * 50.0)
    assert "gaps" not in server.codes()


def test_one_message_has_no_rate() -> None:
    server = Server()
    server.pose()
    row = server.row()
    assert (row.rate_hz, row.usual_ms, row.bytes_per_s) == (None, None, None)
    stream = server.report()["streams"][0]
    assert stream["rate_hz"] is None
    assert stream["longest_interval_ms"] is None


def test_gaps_are_intervals_longer_than_three_usual_ones() -> None:
    server = Server()
    for n in range(60):
        server.pose(wait=20 * MS if n % 20 != 19 else 61 * MS)
    row = server.row()
    assert row.gaps == 3
    assert row.longest_ns == 61 * MS
    finding = next(f for f in server.table.findings() if f.code == "gaps")
    assert finding.device == "NeedleToTracker"
    assert "3 gaps" in finding.value
    assert "61 ms" in finding.value


def test_an_interval_of_just_three_usual_ones_is_no_gap() -> None:
    server = Server()
    for n in range(60):
        server.pose(wait=20 * MS if n != 40 else 60 * MS)
    assert server.row().gaps == 0


def test_a_reconnection_is_neither_a_gap_nor_counted_into_the_rate() -> None:
    server = Server()
    server.link(LinkState.CONNECTED)
    for _ in range(30):
        server.pose()
    server.link(LinkState.CLOSED, "the peer closed the connection", wait=5 * MS)
    server.link(LinkState.CONNECTED, wait=10 * S)
    for _ in range(30):
        server.pose()
    row = server.row()
    assert row.gaps == 0
    assert row.longest_ns == 20 * MS
    assert row.rate_hz == pytest.approx(50.0)
    report = server.report()
    assert report["connections"] == 2
    assert [entry["state"] for entry in report["link"]] == ["connected", "closed", "connected"]


def test_clock_offset_is_the_senders_clock_minus_ours() -> None:
    server = Server()
    for n in range(20):
        stamp = UTC + server.now + 20 * MS + 250 * MS - (3 + n % 4) * MS  # a quarter of a second ahead, 3 to 6 ms late
        server.pose(sender_ns=stamp)
    assert server.table.clock_offset_ms("NeedleToTracker") == pytest.approx(247.0)
    assert server.table.jitter_ms("NeedleToTracker") == pytest.approx(3.0, abs=0.3)
    stamps = server.report()["streams"][0]["stamps"]
    assert stamps["stamped"] == 20
    assert stamps["offset_ms"] == pytest.approx(247.0)
    assert stamps["newest_ns"] == UTC + server.now + 247 * MS - 3 * MS
    assert "clock_ahead" in server.codes()


def test_unstamped_stream_has_no_clock() -> None:
    server = Server()
    server.pose()
    assert server.table.clock_offset_ms("NeedleToTracker") is None
    assert server.report()["streams"][0]["stamps"] == {
        "stamped": 0, "newest_ns": None, "offset_ms": None, "lag_ms": None, "jitter_ms": None, "drift_ppm": None,
    }  # fmt: skip


def test_metres_cut_names_and_missing_status_are_found() -> None:
    server = Server()
    for _ in range(60):
        server.pose(scale=0.001)
        server.pose("StylusTipToReferenc")
        server.pose("StylusToReference")
        server.pose("ProbeSensorToReferen")  # 20 bytes, cut
    codes = {(f.code, f.device) for f in server.table.findings()}
    assert ("pose_metres", "NeedleToTracker") in codes
    assert ("name_cut", "ProbeSensorToReferen") in codes
    assert ("status_missing_v1", "NeedleToTracker") in codes
    assert ("pose_metres", "StylusToReference") not in codes


def test_mirrored_and_centreless_images_are_found() -> None:
    server = Server()
    mirrored = np.diag([0.2, -0.2, 1.0, 1.0])
    mirrored[:3, 3] = [10, 20, 30]
    server.says(encode_image("Mirrored", np.zeros((1, 8, 8), np.uint8), mirrored))
    corner = np.diag([0.5, 0.5, 1.0, 1.0])
    corner[:2, 3] = -0.5 * 3.5
    server.says(encode_image("Centreless", np.zeros((1, 8, 8), np.uint8), corner))
    codes = {(f.code, f.device) for f in server.table.findings()}
    assert ("image_mirrored", "Mirrored") in codes
    assert ("image_without_centre", "Centreless") in codes
    assert server.report()["streams"][0]["value"] == "8×8, uint8, 0.5×0.5 mm, centre 0.0 0.0 0.0 RAS"


def test_tools_of_tdata_and_their_frames() -> None:
    server = Server()
    for n in range(4):
        tools = [TrackedTool("NeedleToTracker", at(n))]
        if n % 2:
            tools.append(TrackedTool("ProbeToTracker", at(n)))
        server.says(encode_tdata("TDATA", tools))
    server.says(encode_tdata("TDATA", []))
    row = server.row("TDATA", "TDATA")
    assert row.tools == {"NeedleToTracker": 4, "ProbeToTracker": 2}
    assert row.value == "no tool seen"
    assert server.table.frames.groups() == [["Needle", "Probe", "Tracker"]]


def test_status_of_poses_is_counted_and_a_lost_tool_shows_no_pose() -> None:
    server = Server()
    server.pose(version=2, metadata={"TransformStatus": "OK"})
    server.pose(version=2, metadata={"TransformStatus": "OUT_OF_VIEW"})
    row = server.row()
    assert dict(row.statuses) == {"OK": 1, "OUT_OF_VIEW": 1}
    assert row.value == "NeedleToTracker: OUT_OF_VIEW"
    assert row.versions == {2}


def test_unknown_types_and_refused_contents_are_named() -> None:
    server = Server()
    server.says(pack_message("VENDORTYPE", "Box", b"\x01\x02"))
    server.says(pack_message("TRANSFORM", "Short", b"\x00" * 12))
    found = {(f.code, f.device): f for f in server.table.findings()}
    assert found["type_unknown", "Box"].count == 1
    assert ("content_refused", "Short") in found
    streams = {s["type"]: s for s in server.report()["streams"]}
    assert not streams["VENDORTYPE"]["understood"]
    assert streams["TRANSFORM"]["value"].startswith("refused: TRANSFORM content")


def test_metadata_that_contradicts_itself_is_counted_and_named() -> None:
    server = Server()
    raw = bytearray(encode_transform("NeedleToTracker", at(0), version=2, metadata={"a": "b"}))
    raw[60:62] = (200).to_bytes(2, "big")  # size of the metadata's index
    server.says(bytes(raw))
    assert server.row().count == 1
    assert server.row().value.startswith("refused: metadata")


def test_broken_streams_are_told_from_refused_connections() -> None:
    server = Server()
    server.link(LinkState.FAILED, "cannot connect to 127.0.0.1:1: Connection refused; retrying")
    assert "framing" not in server.codes()
    server.link(LinkState.CONNECTED)
    server.link(LinkState.FAILED, "header version: 9 at byte 0, allowed: 1 or 2; the connection is given up")
    server.link(LinkState.FAILED, "cannot connect to 127.0.0.1:1: Connection refused; retrying")
    finding = next(f for f in server.table.findings() if f.code == "framing")
    assert finding.count == 1
    assert "at byte 0" in finding.value


def test_names_without_end_do_not_fill_the_memory() -> None:
    server = Server()
    for n in range(STREAMS + 50):
        server.says(encode_string(f"Name{n}", "x"))
    assert len(server.table.rows()) == STREAMS
    assert server.table.received == STREAMS + 50
    assert next(f for f in server.table.findings() if f.code == "too_many_names").value.startswith("50 messages")


def test_links_without_end_keep_the_first_and_the_newest() -> None:
    server = Server()
    for n in range(LINKS + 20):
        server.link(LinkState.CONNECTED, f"number {n}", wait=MS)
    report = server.report()
    assert len(report["link"]) == LINKS
    assert report["link_left_out"] == 20
    assert report["link"][0]["detail"] == "number 0"
    assert report["link"][-1]["detail"] == f"number {LINKS + 19}"


def test_several_types_under_one_name() -> None:
    server = Server()
    server.pose("US")
    server.says(encode_image("US", np.zeros((1, 4, 4), np.uint8), at(1)))
    assert next(f for f in server.table.findings() if f.code == "name_shared").value == "IMAGE, TRANSFORM"
    other = Server()
    other.pose("US")
    other.says(encode_status("US"))
    assert "name_shared" not in other.codes()


def test_dropped_images_and_too_large_messages_come_from_the_source() -> None:
    server = Server()
    server.says(encode_image("US", np.zeros((1, 4, 4), np.uint8), at(1)))
    report = server.table.report(server.now, since_ns=S, dropped={("IMAGE", "US"): 3}, skipped={"VENDOR": 2})
    assert report["streams"][0]["dropped"] == 3
    assert {"images_dropped", "message_too_large"} <= {f["code"] for f in report["findings"]}


def test_values_in_short() -> None:
    server = Server()
    server.says(encode_status("T", 13, 0, "NotReady", "wait"))
    server.says(encode_string("S", "tab\there " + "x" * 400))
    server.says(encode_content("C", CapabilityContent(("IMAGE", "TRANSFORM"))))
    server.says(encode_content("V", SensorContent(np.array([1.5, 2.0, 3.0, 4.0, 5.0]))))
    server.says(encode_content("M", ImageMetaContent((ImageMeta("CT", "ct", patient_name="Doe^Jane"),))))
    values = {row.device: row.value for row in server.table.rows()}
    assert values["T"] == "device not ready (code 13), NotReady, wait"
    assert values["S"].startswith('"tab here ')
    assert len(values["S"]) == LONGEST
    assert values["C"] == "2 types: IMAGE, TRANSFORM"
    assert values["V"] == "5 values: 1.5 2 3 4 …"
    assert values["M"] == "1 image: ct"
    assert "Doe" not in json.dumps(server.report())


def test_the_report_is_plain_json_with_the_documented_keys() -> None:
    server = Server()
    server.link(LinkState.CONNECTED)
    server.pose()
    report = json.loads(json.dumps(server.report(), allow_nan=False))
    assert set(report) == {
        "duration_s", "connected", "connections", "link", "link_left_out", "received", "bytes", "clock_steps",
        "streams", "frames", "skipped", "findings",
    }  # fmt: skip
    assert set(report["streams"][0]) == {
        "type", "device", "understood", "versions", "count", "dropped", "bytes", "bytes_per_s", "rate_hz",
        "usual_interval_ms", "age_ms", "gaps", "longest_interval_ms", "stamps", "tools", "statuses", "value",
    }  # fmt: skip
    assert set(report["findings"][0]) == {
        "code", "device", "text", "value", "limit", "what_to_do", "severity", "count",
    }  # fmt: skip


def test_a_message_needs_its_bytes() -> None:
    server = Server()
    message = decode(encode_status("T"), source="s", sequence=1, arrival_ns=2 * S)
    with pytest.raises(ValueError, match="bytes are missing"):
        server.table.take(message, None)


# -- frames ----------------------------------------------------------------------------------------------------------


def groups_of(*names: str, images: tuple[str, ...] = ()) -> FrameGroups:
    frames = FrameGroups()
    for name in names:
        frames.transform(name)
    for image in images:
        frames.image(image)
    return frames


def test_frames_that_nothing_joins_are_named() -> None:
    frames = groups_of("NeedleToTracker", "ReferenceToTracker", "ProbeToHead")
    assert frames.groups() == [["Needle", "Reference", "Tracker"], ["Head", "Probe"]]
    assert frames.missing() == ["nothing joins Head, Probe to Needle, Reference, Tracker"]


def test_a_ring_of_transforms_is_named() -> None:
    frames = groups_of("NeedleToTracker", "ReferenceToTracker", "NeedleToReference")
    assert frames.missing() == [
        "ReferenceToTracker is one way too many from Reference to Tracker: the other transforms join them already"
    ]


def test_no_reference_is_said() -> None:
    (said,) = groups_of("NeedleToTracker").missing()
    assert said.startswith("no frame is called Reference")


def test_the_frame_of_an_image_and_names_without_frames() -> None:
    frames = groups_of("ReferenceToTracker", "Tool 1", images=("Image_Reference", "Image", "US_nonsense"))
    report = frames.report()
    assert report["names_without_frames"] == ["Tool 1"]
    assert report["images"] == [
        {"name": "Image", "frame": None},
        {"name": "Image_Reference", "frame": "Reference"},
        {"name": "US_nonsense", "frame": None},
    ]
    assert report["groups"] == [["Reference", "Tracker"]]
    assert report["missing"] == []
    assert groups_of().missing() == []
