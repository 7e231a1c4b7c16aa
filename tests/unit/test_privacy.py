"""Who the patient is stays off the screen and out of recordings unless the configuration says otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nav.cli.live import LiveSession, LiveStreams, essentials_of
from nav.config.load import parse_toml
from nav.config.room import RoomConfig
from nav.geometry.volume import Volume
from nav.io.case import Case, CaseIdentity
from nav.runtime.clock import ManualClock
from nav.runtime.recording import Recording

IDENTITY = CaseIdentity(
    "CASE-123abc", patient_name="Doe^Jane", patient_id="4711-0815", study_uid="1.2.840.99.1", series_uid="1.2.840.99.2"
)
SECRETS = ("Doe", "Jane", "4711-0815", "1.2.840.99")


def case() -> Case:
    tumour = np.zeros((12, 12, 12), np.uint8)
    tumour[4:8, 4:8, 4:8] = 1
    return Case(
        IDENTITY,
        Volume.of(np.zeros((12, 12, 12), np.int16), np.eye(4)),
        tumour=Volume.of(tumour, np.eye(4)),
    )


def room(privacy: str) -> RoomConfig:
    return parse_toml(f'[[sources]]\nname = "tracker"\n[privacy]\n{privacy}\n', RoomConfig, "test")


def record(tmp_path: Path, config: RoomConfig) -> tuple[bytes, LiveSession]:
    clock = ManualClock(1_000)
    live = LiveStreams(config, (), clock, essentials_of(case(), config), out=tmp_path, identity=IDENTITY)
    session = LiveSession(config, live, clock, case=case(), out=tmp_path)
    session.take_case(case())
    session.stop()
    return (tmp_path / "recording.mcap").read_bytes(), session


def test_nothing_that_identifies_is_recorded_shown_or_put_into_screenshots(tmp_path: Path) -> None:
    content, session = record(tmp_path, room(""))
    for secret in SECRETS:
        assert secret.encode() not in content
        assert secret not in str(session.case_info())
        assert secret not in str(session.screenshot_metadata())
    with Recording.open(tmp_path / "recording.mcap") as recording:
        assert recording.metadata["pseudonym"] == IDENTITY.pseudonym
        assert "patient" not in recording.metadata


def test_the_configuration_may_say_otherwise(tmp_path: Path) -> None:
    _, session = record(tmp_path, room("show_patient = true\nrecord_patient = true"))
    info = session.case_info()
    assert info is not None
    assert "Doe Jane" in info.pseudonym
    assert "4711-0815" in info.pseudonym
    with Recording.open(tmp_path / "recording.mcap") as recording:
        assert recording.metadata["patient"]["name"] == "Doe^Jane"


def test_summary_holds_no_identity(tmp_path: Path) -> None:
    from nav.cli.run_log import RunLog, write_summary
    from nav.runtime.core import NavigationCore

    config = room("")
    core = NavigationCore(config, essentials_of(case(), config))
    text = str(write_summary(tmp_path, config, core.streams, RunLog()))
    assert not any(secret in text for secret in SECRETS)
