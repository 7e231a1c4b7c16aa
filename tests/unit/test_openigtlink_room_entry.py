"""The entry for the room's configuration: valid as it stands, with everything that was seen."""

from __future__ import annotations

import tomllib

import pytest

from drivers.openigtlink.inspection import StreamRow
from drivers.openigtlink.room_entry import source_entry
from nav.config.room import RoomConfig, SourceConfig, SubscriptionConfig

MS = 1_000_000


def row(
    type_name: str, device: str, hz: float = 60.0, *, stamped: bool = True, tools: tuple[str, ...] = ()
) -> StreamRow:
    made = StreamRow(type_name, device)
    for n in range(40):
        made.take(1, n if stamped else None, 106, round(n * 1e9 / hz))
    made.tools = dict.fromkeys(tools, 40)
    return made


def entry(*rows: StreamRow, **options: object) -> tuple[SourceConfig, str, tuple[str, ...]]:
    made = source_entry("tracker", "tracker.local", 18944, list(rows), **options)  # type: ignore[arg-type]
    room = RoomConfig.model_validate(tomllib.loads(made.text))
    return room.sources[0], made.text, made.open_questions


def test_named_transforms_need_no_decision() -> None:
    source, _, questions = entry(
        row("TRANSFORM", "NeedleToTracker", 59.2), row("TRANSFORM", "ReferenceToTracker", 20.3)
    )
    assert (source.host, source.port, source.header_version, source.stamps) == ("tracker.local", 18944, 1, "sender")
    assert [(t.device, t.transform, t.nominal_hz) for t in source.tools] == [
        ("NeedleToTracker", "NeedleToTracker", 60.0),
        ("ReferenceToTracker", "ReferenceToTracker", 20.0),
    ]
    assert questions == ()


@pytest.mark.parametrize(
    ("devices", "transforms"),
    [
        (["Tool 1", "tool-2"], ["Tool1ToTracker", "Tool2ToTracker"]),
        (["Tracker"], ["ToolToTracker"]),
        (["123", "456"], ["ToolToTracker", "Tool2ToTracker"]),
        (["AToBToC"], ["ABCToTracker"]),
        (['a "quoted" \\ name'], ["AQuotedNameToTracker"]),
        (["needle", "Needle"], ["NeedleToTracker", "Needle2ToTracker"]),
        (["NeedleToTracker", "needle"], ["NeedleToTracker", "Needle2ToTracker"]),
        (["To"], ["ToolToTracker"]),
    ],
)
def test_other_names_are_guessed_and_asked_about(devices: list[str], transforms: list[str]) -> None:
    source, _, questions = entry(*(row("TRANSFORM", device) for device in devices))
    assert [t.device for t in source.tools] == devices
    guessed = [t.transform for t in source.tools]
    assert guessed == transforms
    assert len(questions) == sum(d != t for d, t in zip(devices, guessed, strict=True))


def test_tools_of_tdata_with_what_was_asked() -> None:
    source, _, _ = entry(
        row("TDATA", "Tracker", 49.0, stamped=False, tools=("NeedleToTracker", "Channel 0")),
        subscribe=SubscriptionConfig(kind="tdata", interval_ms=20),
        header_version=2,
    )
    assert source.subscribe[0].kind == "tdata"
    assert source.header_version == 2
    assert source.stamps == "arrival"
    assert {t.device: t.transform for t in source.tools} == {
        "NeedleToTracker": "NeedleToTracker",
        "Channel 0": "Channel0ToTracker",
    }
    assert {t.nominal_hz for t in source.tools} == {50.0}


def test_a_slow_tool_gets_its_own_limit_and_a_question() -> None:
    source, _, questions = entry(row("TRANSFORM", "NeedleToTracker", 4.0))
    assert source.tools[0].nominal_hz == 4.0
    assert source.tools[0].lost_ms == 750.0
    assert "fast enough" in questions[0]


def test_images_are_asked_about() -> None:
    source, _, questions = entry(row("IMAGE", "Image", 30.1), row("VIDEO", "Camera", 24.9), row("STATUS", "S"))
    assert [(i.device, i.name, i.nominal_hz) for i in source.images] == [
        ("Image", "ultrasound", 30.0),
        ("Camera", "ultrasound2", 25.0),
    ]
    assert source.tools == ()
    assert len(questions) == 2


def test_a_rate_in_bursts_is_the_mean() -> None:
    made = StreamRow("TRANSFORM", "NeedleToTracker")
    for n in range(80):  # four at once, ten times a second
        made.take(1, n, 106, (n // 4) * 100 * MS + (n % 4) * MS)
    source, _, _ = entry(made)
    assert source.tools[0].nominal_hz == 40.0


def test_nothing_seen_is_still_valid() -> None:
    source, text, questions = entry()
    assert "tools" not in text
    assert (source.tools, source.images, questions) == ((), (), ())
