"""The main job from the command line, as a user starts it: simulated room, window off screen, recording, replay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

STREAMS = {"NeedleToTracker", "StylusToTracker", "ProbeToTracker", "ReferenceToTracker", "ultrasound", "fluoro"}


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nav.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=110,
        env={**os.environ, "QT_QPA_PLATFORM": "offscreen"},
        check=False,
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    done = command("demo", "--headless", "--duration", "9", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "problem" not in done.stderr
    return out


@pytest.fixture(scope="module")
def summary(demo: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((demo / "summary.json").read_text())
    return loaded


def test_summary_holds_every_key_of_the_interface(summary: dict[str, Any]) -> None:
    assert set(summary["streams"]) == STREAMS
    for stream in summary["streams"].values():
        assert {"received", "dropped", "gaps", "rate_hz", "age_ms"} <= set(stream)
        assert set(stream["age_ms"]) == {"p50", "p95", "max"}
    assert {"method", "fre_mm", "tre_at_target_mm", "landmarks"} <= set(summary["registration"])
    assert all({"name", "residual_mm", "used"} <= set(m) for m in summary["registration"]["landmarks"])
    keys = {"tip_to_target_mm", "min_margin_mm", "lateral_mm", "depth_mm", "angle_deg"}
    assert keys | {"n"} == set(summary["navigation"])
    assert all({"last", "p50", "p95"} <= set(summary["navigation"][k]) for k in keys)
    assert set(summary["hud"]) == {"fps", "pose_age_at_paint_ms"}
    assert set(summary["truth"]) == {"tip_error_mm", "at_rest_tip_error_mm", "moving_tip_error_mm"}
    assert set(summary["gate"]) == {"ok_s", "degraded_s", "blank_s", "reasons"}
    assert {"version", "config_sha256"} <= set(summary["software"])
    assert summary["room_cpu_cores"] > 0.0


def test_the_job_was_really_done(summary: dict[str, Any]) -> None:
    assert summary["registration"]["method"] == "landmarks"
    assert len(summary["registration"]["landmarks"]) == 8
    assert summary["navigation"]["n"] > 60
    assert summary["gate"]["ok_s"] > 1.0
    # Far above what the default room reaches on an idle computer; a wrong frame or a lost latency would exceed it.
    assert summary["truth"]["at_rest_tip_error_mm"]["p50"] < 1.5
    assert summary["truth"]["moving_tip_error_mm"]["p50"] < 3.0
    assert summary["streams"]["NeedleToTracker"]["rate_hz"] > 50.0
    assert summary["streams"]["ultrasound"]["received"] > 200


def test_screenshots_were_taken_in_every_phase(demo: Path) -> None:
    shots = {p.name for p in demo.glob("hud-*.png")}
    assert {"hud-landmarks.png", "hud-rest.png", "hud-advance.png", "hud-final.png"} <= shots
    assert all((demo / name).stat().st_size > 50_000 for name in shots)


def test_replay_gives_the_same_navigation_bit_for_bit(demo: Path, summary: dict[str, Any], tmp_path: Path) -> None:
    done = command("replay", demo / "recording.mcap", "--headless", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / "summary.json").read_text())
    assert again["navigation"] == summary["navigation"]
    assert again["gate"] == summary["gate"]
    assert (tmp_path / "hud-replay.png").is_file()


def test_a_cut_recording_replays_up_to_the_cut(demo: Path, tmp_path: Path) -> None:
    whole = (demo / "recording.mcap").read_bytes()
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(whole[: int(len(whole) * 0.8)])
    done = command("replay", cut, "--headless", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["navigation"]["n"] > 10


def test_nothing_of_the_patient_in_the_recording(demo: Path) -> None:
    from nav.runtime.recording import Recording

    with Recording.open(demo / "recording.mcap") as recording:
        room = json.loads(recording.attachment("room.json"))
        assert not room["privacy"]["record_patient"]
        text = json.dumps(recording.metadata)
    assert str(Path.home()) not in text
