"""A case prepared and guided in the window alone: files opened by the set-up pages, landmarks by key, real streams."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest

from drivers.room.patient import PatientModel, patient_case
from drivers.room.server import RoomProcesses, start_room
from nav.cli.live import LiveSession, LiveStreams, essentials_of
from nav.geometry.volume import Volume
from nav.guidance.numbers import GateState
from nav.hud.app import create_application
from nav.hud.main_window import MainWindow
from nav.io.markups import write_landmarks, write_paths
from nav.runtime.clock import SystemClock
from nav.runtime.plugins import make_source
from nav.runtime.snapshot import NavigationSnapshot
from tests.virtual_room import simulated_room


def write_nrrd(path: Path, volume: Volume) -> None:
    """A volume as another program would write it: LPS on disk."""
    image = SimpleITK.GetImageFromArray(np.asarray(volume.array))
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.ras_from_index
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    SimpleITK.WriteImage(image, str(path))


@pytest.fixture
def files(room_patient: PatientModel, tmp_path: Path) -> Path:
    case = patient_case(room_patient)
    assert case.tumour is not None
    write_nrrd(tmp_path / "ct.nrrd", case.ct)
    write_nrrd(tmp_path / "tumour.nrrd", case.tumour)
    write_landmarks(tmp_path / "landmarks.mrk.json", case.landmarks)
    write_paths(tmp_path / "plan.mrk.json", case.paths)
    return tmp_path


@pytest.fixture
def room(room_patient: PatientModel) -> Iterator[RoomProcesses]:
    with start_room(simulated_room(), patient=room_patient, automatic_ports=True) as processes:
        yield processes


def test_from_an_empty_window_to_guidance(room: RoomProcesses, files: Path) -> None:
    app = create_application(headless=True)
    clock = SystemClock()
    sources = tuple(make_source(s, clock) for s in room.room.sources)
    # Without a foot switch: everything is done by hand in the window.
    config = room.room.model_copy(
        update={"sources": tuple(s.model_copy(update={"footswitch": ""}) for s in room.room.sources)}
    )
    streams = LiveStreams(config, sources, clock, essentials_of(None, config), out=None)
    session = LiveSession(config, streams, clock, case=None, out=None)
    session.set_layout("plan")
    window = MainWindow(session)
    window.resize(1600, 900)
    window.show()
    session.start()
    window.start()

    def snapshot() -> NavigationSnapshot:
        found = session.latest_snapshot()
        assert found is not None
        return found

    def until(what: Callable[[], bool], timeout_s: float = 15.0) -> None:
        end = time.monotonic() + timeout_s
        while not what():
            app.processEvents()
            time.sleep(0.002)
            assert time.monotonic() < end, (snapshot().setup, snapshot().gate)

    def answer(path: Path) -> None:
        window.setup.path_asker = lambda *_: str(path)

    try:
        until(lambda: session.latest_snapshot() is not None)
        pages = window.setup.pages
        assert snapshot().setup.step == "case"
        window.setup.open_step("case")
        answer(files / "ct.nrrd")
        QTest.mouseClick(pages["case"].file, Qt.MouseButton.LeftButton)  # type: ignore[attr-defined]
        until(lambda: "case" in snapshot().setup.done)
        until(lambda: not window.setup.work.busy)
        window.setup.open_step("tumour")
        answer(files / "tumour.nrrd")
        until(pages["tumour"].load.isEnabled)  # type: ignore[attr-defined]
        QTest.mouseClick(pages["tumour"].load, Qt.MouseButton.LeftButton)  # type: ignore[attr-defined]
        until(lambda: "tumour" in snapshot().setup.done)
        until(lambda: not window.setup.work.busy)
        window.setup.open_step("plan")
        answer(files / "plan.mrk.json")
        pages["plan"].open_path(str(files / "plan.mrk.json"))  # type: ignore[attr-defined]
        until(lambda: "plan" in snapshot().setup.done)
        until(lambda: not window.setup.work.busy)
        window.setup.open_step("landmarks")
        answer(files / "landmarks.mrk.json")
        pages["landmarks"]._load()  # type: ignore[attr-defined]
        until(lambda: len(snapshot().setup.landmarks) == 8)

        until(lambda: not window.setup.work.busy)
        truth = room.begin(9.0)
        touches = [e for e in truth.script.events if e.event.kind == "collect_landmark"]
        for touch in touches:
            # The operator presses the key where the script presses the foot switch.
            until(lambda at=touch.time_s: time.monotonic_ns() >= truth.local_ns(at) + 30_000_000)  # type: ignore[misc]
            assert snapshot().setup.active_landmark == touch.event.name  # type: ignore[attr-defined]
            QTest.keyClick(window, Qt.Key.Key_L)
            until(lambda t=touch: any(r.name == t.event.name and r.collected for r in snapshot().setup.landmarks), 0.3)  # type: ignore[misc, attr-defined]
        rows = snapshot().setup.landmarks
        assert all(r.collected and r.residual_mm is not None and r.residual_mm < 4.0 for r in rows)
        QTest.mouseClick(pages["landmarks"].apply, Qt.MouseButton.LeftButton)  # type: ignore[attr-defined]
        until(lambda: snapshot().registration is not None, 1.0)
        window.setup.open_step("guide")
        until(pages["guide"].start.isEnabled, 1.0)  # type: ignore[attr-defined]
        QTest.mouseClick(pages["guide"].start, Qt.MouseButton.LeftButton)  # type: ignore[attr-defined]
        window.controller.trigger("breath_hold")
        until(lambda: snapshot().guidance is not None and snapshot().gate.state is not GateState.BLANK, 2.0)
        final = snapshot()
        assert final.registration is not None
        assert final.registration.method == "landmarks"
        assert final.zone is not None
        assert final.margin is not None
        assert final.needle.pose is not None
        error = np.linalg.norm(final.needle.pose.translation - truth.tip_ras(final.needle.acquired_ns))
        assert error < 3.0
    finally:
        window.stop()
        session.stop()
        window.close()
    assert streams.problem == ""
