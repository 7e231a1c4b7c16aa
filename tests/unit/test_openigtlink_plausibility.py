"""What looks wrong in what a server sends, message by message and over a conversation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from drivers.openigtlink.codec import decode, encode_image, encode_status, encode_tdata, encode_transform
from drivers.openigtlink.contents import TrackedTool, unpack_content
from drivers.openigtlink.image_checks import Finding
from drivers.openigtlink.plausibility import PlausibilityChecks
from drivers.openigtlink.wire import parse_message
from nav.config.room import ImageStreamConfig, SourceConfig, ToolStreamConfig
from nav.runtime.messages import ImageMessage

MS = 1_000_000
S = 1_000_000_000
UTC = 1_700_000_000 * S
NAME = "NeedleToTracker"


class Conversation:
    """Feeds raw messages to the checks on a hand-moved clock."""

    def __init__(self, options: SourceConfig | None = None) -> None:
        self.options = options
        self.checks = PlausibilityChecks(options)
        self.now = S
        self.number = 0
        self.rng = np.random.default_rng(11)

    def take(self, raw: bytes, wait: int = 20 * MS) -> None:
        self.now += wait
        self.number += 1
        message = decode(raw, source="s", sequence=self.number, arrival_ns=self.now, options=self.options)
        wire = parse_message(raw)
        content = unpack_content(wire.type_name, wire.content)
        self.checks.observe(message, wire, content, utc_minus_local_ns=UTC)

    def measured(self) -> NDArray[np.float64]:
        matrix = np.eye(4)
        matrix[:3, 3] = np.array([100.0, -40.0, -900.0]) + self.rng.standard_normal(3)
        return matrix

    def pose(
        self,
        matrix: NDArray[np.float64] | None = None,
        *,
        wait: int = 20 * MS,
        late: int = 5 * MS,
        name: str = NAME,
        version: int = 2,
        metadata: dict[str, str] | None = None,
    ) -> None:
        raw = encode_transform(
            name,
            self.measured() if matrix is None else matrix,
            sender_ns=UTC + self.now + wait - late,
            version=version,
            metadata={"TransformStatus": "OK"} if metadata is None and version == 2 else metadata,
        )
        self.take(raw, wait)

    def codes(self) -> set[str]:
        return {f.code for f in self.checks.findings()}

    def found(self, code: str) -> Finding:
        return next(f for f in self.checks.findings() if f.code == code)


def volume(kind: str = "<i2") -> NDArray[Any]:
    """A smooth CT-like volume of 24 x 40 x 48 voxels, HU."""
    k, j, i = np.mgrid[0:24, 0:40, 0:48]
    hu = 1000.0 * np.exp(-((i - 24.0) ** 2 + (j - 20.0) ** 2) / 200.0) - 1000.0 + 40.0 * np.sin(k / 3.0)
    hu += np.random.default_rng(2).normal(0.0, 15.0, hu.shape)
    return np.rint(hu - (hu.min() if kind.lstrip("<>")[0] == "u" else 0.0)).astype(kind)


def placed(**changes: float) -> NDArray[np.float64]:
    m = np.diag([-0.8, -0.8, 2.5, 1.0])
    m[:3, 3] = 11.0, 19.0, -20.0
    for key, value in changes.items():
        m["xyz".index(key[0]), "xyzt".index(key[1])] = value
    return m


def image_codes(raw: bytes, **options: Any) -> set[str]:
    """Codes of the warnings that the decoded message carries into guidance."""
    source = SourceConfig(
        name="s", images=(ImageStreamConfig(device="CT", placed_by="header", frame="Ras"),), **options
    )
    message = decode(raw, source="s", sequence=0, arrival_ns=0, options=source)
    assert isinstance(message, ImageMessage)
    return {f.code for f in message.findings}


def header_codes(raw: bytes, **options: Any) -> set[str]:
    """Codes of everything that is said of one image."""
    talk = Conversation(SourceConfig(name="s", images=(ImageStreamConfig(device="CT", placed_by="header"),), **options))
    talk.take(raw)
    return {c for c in talk.codes() if c.startswith("image")}


# -- images ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["<i2", "<u2", "<i4", "<f4", "|u1"])
@pytest.mark.parametrize("endian", ["big", "little"])
@pytest.mark.parametrize("coordinate", ["ras", "lps"])
def test_an_ordinary_image_looks_right(kind: str, endian: str, coordinate: str) -> None:
    array = (volume("<u2") // 8).astype("u1") if kind == "|u1" else volume(kind)
    assert header_codes(encode_image("CT", array, placed(), endian=endian, coordinate=coordinate)) == set()


def test_a_mirrored_image_degrades_unless_it_was_checked() -> None:
    mirrored = encode_image("CT", volume(), placed(xx=0.8))
    assert image_codes(mirrored) == {"image_mirrored"}
    options = SourceConfig(name="s", images=(ImageStreamConfig(device="CT", placed_by="header", left_handed=True),))
    message = decode(mirrored, source="s", sequence=0, arrival_ns=0, options=options)
    assert isinstance(message, ImageMessage)
    assert message.findings == ()


def test_a_finding_names_value_limit_and_what_to_do() -> None:
    talk = Conversation()
    talk.take(encode_image("CT", volume(), placed(xx=0.8)))
    found = talk.found("image_mirrored")
    assert found.sentence() == (
        "CT: left-handed axes: the picture is mirrored, or its slices run backwards "
        "(determinant -1.6; limit: positive). Check left and right on an object; if they are right, set "
        "left_handed = true for this image"
    )


def test_an_image_without_a_centre() -> None:
    corner_at_origin = encode_image("CT", volume(), np.diag([0.8, 0.8, 2.5, 1.0]), origin_is_corner=True)
    assert image_codes(corner_at_origin) == {"image_without_centre"}
    assert image_codes(corner_at_origin, origin_is_corner=True) == set()
    talk = Conversation()
    for _ in range(3):
        talk.take(corner_at_origin)
    assert talk.found("image_without_centre").count == 3
    talk.take(encode_image("CT", volume(), placed()))  # a table that once stood at 0, 0, 0
    assert talk.codes() == set()


def test_a_corner_where_the_centre_belongs_and_the_converse() -> None:
    around_origin = np.diag([-0.8, -0.8, 2.5, 1.0])
    around_origin[:3, 3] = 0.8 * 23.5 + 1.0, 0.8 * 19.5 - 1.0, 40.0
    as_corner = encode_image("CT", volume(), around_origin, origin_is_corner=True)
    as_centre = encode_image("CT", volume(), around_origin)
    assert header_codes(as_centre) == set()
    assert header_codes(as_corner) == {"image_corner_as_centre"}
    assert header_codes(as_corner, origin_is_corner=True) == set()
    assert header_codes(as_centre, origin_is_corner=True) == {"image_centre_as_corner"}


def test_metres_for_millimetres() -> None:
    m = placed()
    m[:3] *= 1e-3
    assert image_codes(encode_image("CT", volume(), m)) == {"image_spacing"}


def test_the_axes_flag_and_its_override() -> None:
    ras = encode_image("CT", volume(), placed())
    assert header_codes(ras, coordinate_override="lps") == {"image_axes_override"}
    assert image_codes(ras, coordinate_override="lps") == set()  # the site has decided
    raw = bytearray(ras)
    assert raw[58 + 5] == 1
    raw[58 + 5] = 0
    talk = Conversation(SourceConfig(name="s", coordinate_override="ras"))
    talk.take(bytes(raw))
    assert talk.found("image_axes_unknown").severity == "note"
    refused = Conversation()
    refused.take(bytes(raw))
    assert {"image_axes_unknown", "content_refused"} <= refused.codes()


@pytest.mark.parametrize("kind", ["<i2", "<u2", "<i4"])
def test_the_wrong_byte_order_is_told_by_the_voxels(kind: str) -> None:
    raw = bytearray(encode_image("CT", volume(kind), placed(), endian="little"))
    assert raw[58 + 4] == 2
    raw[58 + 4] = 1  # the C++ library's default flag over native little-endian voxels
    assert image_codes(bytes(raw)) == {"image_byte_order"}
    assert image_codes(bytes(raw), endian_override="little") == set()
    raw[58 + 4] = 2
    assert image_codes(bytes(raw)) == set()
    assert image_codes(bytes(raw), endian_override="big") == {"image_byte_order"}


def test_an_even_image_says_nothing_of_its_byte_order() -> None:
    assert image_codes(encode_image("CT", np.full((4, 20, 20), -1000, np.int16), placed())) == set()


def test_a_picture_placed_by_calibration_is_not_judged_by_its_header() -> None:
    options = SourceConfig(name="s", images=(ImageStreamConfig(device="US", frame="Image"),))
    message = decode(
        encode_image("US", np.zeros((30, 40), np.uint8), np.diag([-1.0, 1.0, 1.0, 1.0])),
        source="s", sequence=0, arrival_ns=0, options=options,
    )  # fmt: skip
    assert isinstance(message, ImageMessage)
    assert message.findings == ()


# -- poses -------------------------------------------------------------------------------------------------------------


def test_a_good_tracker_looks_right() -> None:
    talk = Conversation()
    for _ in range(600):
        talk.pose()
    assert talk.checks.findings() == ()


def test_identity_because_lost() -> None:
    talk = Conversation()
    for n in range(100):
        talk.pose(np.eye(4) if n % 4 == 0 else None, version=1)
    found = talk.found("identity_because_lost")
    assert (found.count, found.value) == (25, "25 of 100 poses")
    assert "status_missing_v1" in talk.codes()
    stated = Conversation()
    stated.pose(np.eye(4))
    assert stated.codes() == set()


def test_frozen_metres_invalid() -> None:
    talk = Conversation()
    still = talk.measured()
    for _ in range(40):
        talk.pose(still)
    assert talk.codes() == {"pose_frozen"}
    metres = Conversation()
    for _ in range(60):
        m = metres.measured()
        m[:3, 3] *= 1e-3
        metres.pose(m)
    assert metres.codes() == {"pose_metres"}
    scaled = Conversation()
    scaled.pose(np.diag([2.0, 2.0, 2.0, 1.0]))
    assert "not a rotation" in scaled.found("pose_invalid").text


def test_names_that_were_cut() -> None:
    talk = Conversation()
    cut = "StylusTipToReference"[:20]
    assert len("StylusTipToReference") == 20
    talk.pose(name=cut)
    assert talk.codes() == set()  # 20 bytes and whole
    talk.pose(name="ReferenceToTracker")
    talk.pose(name="NeedleBaseToReferenc")
    assert talk.found("name_cut").device == "NeedleBaseToReferenc"
    assert "NeedleBaseToReference" in talk.found("name_cut").text
    plus = Conversation()
    plus.pose(
        name="UltrasoundProbeToTra",
        metadata={"TransformStatus": "OK", "IGTL_DEVICE_NAME": "UltrasoundProbeToTracker"},
    )
    assert plus.found("name_cut").severity == "note"
    assert "in full UltrasoundProbeToTracker" in plus.found("name_cut").text


def test_cut_names_of_tools_in_tracking_data() -> None:
    options = SourceConfig(name="s", tools=(ToolStreamConfig(device="x", transform="ReferenceToTracker"),))
    talk = Conversation(options)
    talk.take(encode_tdata("TDATA_2Elem", [TrackedTool("NeedleShaftToTracke", talk.measured(), 2)]))
    assert "name_cut" not in talk.codes()  # 19 bytes: the sender's own spelling
    talk.take(encode_tdata("TDATA_2Elem", [TrackedTool("NeedleShaft1ToTracke", talk.measured(), 2)]))
    assert talk.found("name_cut").device == "NeedleShaft1ToTracke"


def test_sent_only_on_change_with_and_without_hold_last() -> None:
    talk = Conversation()
    for _ in range(6):
        talk.pose()
        for _ in range(8):
            talk.take(encode_status("", 1), 250 * MS)
    assert talk.codes() == {"hold_last_missing"}
    held = Conversation(SourceConfig(name="s", tools=(ToolStreamConfig(device=NAME, transform=NAME, hold_last=True),)))
    for _ in range(6):
        held.pose()
        for _ in range(8):
            held.take(encode_status("", 1), 250 * MS)
    assert held.codes() == set()
    for _ in range(600):
        held.pose()
    assert held.codes() == {"hold_last_steady"}


# -- clock and server --------------------------------------------------------------------------------------------------


def test_clocks_that_disagree() -> None:
    ahead = Conversation()
    for _ in range(10):
        ahead.pose(late=-2 * S)
    assert ahead.codes() == {"clock_ahead"}
    assert ahead.found("clock_ahead").value == "+2.000 s"
    behind = Conversation()
    for _ in range(10):
        behind.pose(late=3600 * S)
    assert behind.codes() == {"clock_behind"}


def test_steps_missing_stuck_and_backward_stamps() -> None:
    talk = Conversation()
    for n in range(100):
        talk.pose(late=5 * MS if n < 50 else 805 * MS)
    assert {"clock_step", "stamp_backwards"} <= talk.codes()
    assert talk.checks.clock_steps == 1
    none = Conversation()
    for _ in range(30):
        none.take(encode_transform(NAME, none.measured(), version=2, metadata={"TransformStatus": "OK"}))
    assert none.codes() == {"stamp_missing"}
    told = Conversation(SourceConfig(name="s", stamps="arrival"))
    for _ in range(30):
        told.take(encode_transform(NAME, told.measured(), version=2, metadata={"TransformStatus": "OK"}))
    assert told.codes() == set()


def test_timing_of_a_device_is_to_be_had() -> None:
    talk = Conversation()
    for _ in range(100):
        talk.pose()
    timing = talk.checks.timing(NAME)
    assert timing is not None
    assert timing.offset_ns == pytest.approx(5 * MS - UTC, abs=2)
    assert timing.jitter_ms == pytest.approx(0.0, abs=1e-3)


def test_what_the_server_says_of_itself() -> None:
    talk = Conversation()
    talk.take(encode_status("Robot", 18, 3, "MOTOR", "axis 2 stalled"))
    talk.take(encode_status("Robot", 18, 3, "MOTOR", "axis 2 stalled"))
    found = talk.found("server_status")
    assert found.text == 'server says "hardware failure" (code 18, subcode 3, MOTOR, axis 2 stalled)'
    assert found.count == 2


def test_invented_names_do_not_fill_the_memory() -> None:
    talk = Conversation()
    for n in range(3000):
        talk.pose(np.eye(4), name=f"T{n}", version=1, wait=MS)
    assert len(talk.checks.findings()) < 5000
    assert sum(f.code == "identity_because_lost" for f in talk.checks.findings()) == 1024
