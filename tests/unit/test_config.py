"""Room configurations: every mistake is listed at once with its path, its value and what is allowed."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from nav.config.load import ConfigError, config_sha256, load_toml, parse_toml, shipped_config
from nav.config.room import CalibrationConfig, ImageStreamConfig, RoomConfig, ToolStreamConfig

REPO = Path(__file__).parents[2]

SMALL = """
[[sources]]
name = "tracker"
port = 18944
tools = [{ device = "NeedleToTracker", transform = "NeedleToTracker", nominal_hz = 60.0 }]
"""


def test_three_mistakes_are_all_listed_with_path_value_and_limit() -> None:
    text = """
[[sources]]
name = "tracker"
port = 70000
tools = [{ device = "NeedleToTracker", transform = "Needle", nominal_hz = 60.0 }]

[uncertainty]
tracker_sigma_mm = -0.5
"""
    with pytest.raises(ConfigError) as caught:
        parse_toml(text, RoomConfig, "room.toml")
    problems = caught.value.problems
    assert len(problems) == 3, problems
    assert str(caught.value).startswith("room.toml: 3 mistakes\n")
    port, transform, sigma = sorted(problems, key=lambda p: ("port" not in p, "transform" not in p))
    assert port.startswith("sources[0].port = 70000:")
    assert "65535" in port
    assert transform.startswith("sources[0].tools[0].transform = 'Needle':")
    assert "NeedleToReference" in transform, "an example of what is allowed"
    assert sigma.startswith("uncertainty.tracker_sigma_mm = -0.5:")
    assert "greater than or equal to 0" in sigma


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["sources: missing"]),
        ("sources = []", ["sources = []"]),
        ("name = 3" + SMALL, ["name = 3"]),
        (SMALL + "\n[limits]\nmargin = 5", ["limits.margin = 5: unknown key"]),
        (SMALL.replace("tracker", "Tracker 1"), ["sources[0].name = 'Tracker 1'"]),
        (SMALL + SMALL, ["source names must differ; given twice: tracker"]),
        (SMALL + SMALL.replace('"tracker"', '"other"'), ["NeedleToTracker"]),
        ("a = = 1", ["not valid TOML"]),
    ],
)
def test_each_mistake_names_its_place(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_toml(text, RoomConfig, "room.toml")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("publish", "words"),
    [
        ('host = "0.0.0.0"', "publish = .*can be reached from the network.*allow"),
        ('host = "theatre.example"', "can be reached from the network"),
        ('allow = ["192.0.2.7/24"]', r"publish.allow\[0\] = '192.0.2.7/24':.*expected a network"),
        ("max_clients = 0", "publish.max_clients = 0"),
    ],
)
def test_publishing_to_a_network_needs_a_list_of_who_may_connect(publish: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_toml(f"{SMALL}\n[publish]\n{publish}\n", RoomConfig, "room.toml")


def test_nothing_is_published_unless_said_and_then_to_this_computer_alone() -> None:
    assert parse_toml(SMALL, RoomConfig, "a").publish is None
    own = parse_toml(SMALL + "\n[publish]\n", RoomConfig, "a").publish
    assert own is not None
    assert (own.host, own.allow) == ("127.0.0.1", ())
    wide = parse_toml(f'{SMALL}\n[publish]\nhost = "0.0.0.0"\nallow = ["192.0.2.0/24"]\n', RoomConfig, "a").publish
    assert wide is not None
    assert wide.allow == ("192.0.2.0/24",)


@pytest.mark.parametrize(
    ("matrix", "kind", "words"),
    [
        ("[[2,0,0,0],[0,2,0,0],[0,0,2,0],[0,0,0,1]]", "rigid", "not orthonormal"),
        ("[[0,0,0,0],[0,1,0,0],[0,0,1,0],[0,0,0,1]]", "pixels", "singular"),
        ("[[1,0,0],[0,1,0],[0,0,1]]", "rigid", "at least 4 items"),
        ("[[1,0,0,nan],[0,1,0,0],[0,0,1,0],[0,0,0,1]]", "rigid", "finite"),
    ],
)
def test_calibrations_are_checked_as_transforms(matrix: str, kind: str, words: str) -> None:
    text = f'{SMALL}\n[[calibrations]]\nname = "NeedleTipToNeedle"\nkind = "{kind}"\nmatrix = {matrix}\n'
    with pytest.raises(ConfigError, match=words):
        parse_toml(text, RoomConfig, "room.toml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_toml(tmp_path / "absent.toml", RoomConfig)
    binary = tmp_path / "latin.toml"
    binary.write_bytes(b'name = "\xe9"')
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load_toml(binary, RoomConfig)


def test_every_shipped_room_is_valid() -> None:
    files = sorted(shipped_config("rooms").glob("*.toml"))
    assert files
    for file in files:
        assert load_toml(file, RoomConfig).sources


def test_default_room_is_the_fixed_one() -> None:
    """Figures are compared with each other only because these stay."""
    simulation = load_toml(shipped_config("rooms", "simulated.toml"), RoomConfig).simulation
    assert simulation is not None
    assert (simulation.tracker_noise_mm, simulation.tracker_noise_deg) == (0.15, 0.1)
    assert simulation.dropout_fraction == 0.02
    assert (simulation.latency_ms, simulation.latency_spread_ms) == (30.0, 10.0)
    assert (simulation.clock_offset_s, simulation.picking_rms_mm, simulation.breathing_mm) == (3.0, 1.0, 10.0)


def test_hash_depends_on_the_settings_and_not_on_the_layout() -> None:
    one = parse_toml(SMALL, RoomConfig, "a")
    same = parse_toml("# a remark\n" + SMALL.replace("port = 18944\n", ""), RoomConfig, "b")
    other = parse_toml(SMALL.replace("18944", "18945"), RoomConfig, "c")
    assert config_sha256(one) == config_sha256(same) != config_sha256(other)


@pytest.mark.parametrize(
    ("hz", "gap", "stale", "lost"),
    [(60.0, 50.0, 100.0, 250.0), (20.0, 150.0, 150.0, 250.0), (10.0, 300.0, 200.0, 250.0)],
)
def test_limits_of_a_tool_follow_from_the_nominal_rate_but_its_number_never_lives_longer_than_250_ms(
    hz: float, gap: float, stale: float, lost: float
) -> None:
    stream = ToolStreamConfig(device="N", transform="NeedleToTracker", nominal_hz=hz)
    limits = (stream.gap_limit_ms, stream.stale_limit_ms, stream.lost_limit_ms)
    assert limits == pytest.approx((gap, stale, lost))


def test_a_tool_too_slow_for_250_ms_must_say_when_it_is_lost() -> None:
    with pytest.raises(ValueError, match=r"nominal_hz 6: .*250 ms.*333 ms.*state lost_ms"):
        ToolStreamConfig(device="N", transform="NeedleToTracker", nominal_hz=6.0)
    slow = ToolStreamConfig(device="N", transform="NeedleToTracker", nominal_hz=6.0, lost_ms=900.0)
    assert (slow.stale_limit_ms, slow.lost_limit_ms) == (500.0, 900.0)
    held = ToolStreamConfig(device="N", transform="NeedleToTracker", nominal_hz=1.0, hold_last=True)
    assert (held.stale_limit_ms, held.lost_limit_ms) == (500.0, 900.0)


def test_limits_of_an_image_follow_from_its_rate() -> None:
    image = ImageStreamConfig(device="I", nominal_hz=6.0)
    limits = (image.gap_limit_ms, image.stale_limit_ms, image.lost_limit_ms)
    assert limits == pytest.approx((500.0, 500.0, 5000 / 6))


def test_transform_names_are_kept_in_wire_spelling() -> None:
    stream = ToolStreamConfig(device="N", transform="tracker_from_needle")
    assert stream.transform == "NeedleToTracker"
    identity = [[float(i == j) for j in range(4)] for i in range(4)]
    assert CalibrationConfig(name="needle_from_needle_tip", matrix=identity).rigid().name.wire == "NeedleTipToNeedle"


def test_reference_page_is_complete_and_fresh() -> None:
    """``docs/configuration.md`` holds every key with its default; ``scripts/config_reference.py`` renews it."""
    reference = runpy.run_path(str(REPO / "scripts" / "config_reference.py"))
    page = (REPO / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert reference["tables"]() in page, "run scripts/config_reference.py"
    undescribed = [
        f"{model.__name__}.{key}"
        for model in _models(RoomConfig)
        for key, field in model.model_fields.items()
        if f"`{key}`" not in page or not field.description
    ]
    assert not undescribed


def _models(root: type[BaseModel]) -> set[type[BaseModel]]:
    found: set[type[BaseModel]] = set()

    def visit(kind: Any) -> None:
        if isinstance(kind, type) and issubclass(kind, BaseModel) and kind not in found:
            found.add(kind)
            for field in kind.model_fields.values():
                visit(field.annotation)
        for part in get_args(kind):
            visit(part)

    visit(root)
    return found
