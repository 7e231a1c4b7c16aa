"""Shared fixtures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from drivers.room.geometry import RoomSetup
    from drivers.room.patient import PatientModel
    from nav.config.room import RoomConfig

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real data; tests that need it skip where it is absent."""
    path = Path(os.environ.get("ABLATION_NAV_DATA", _REPO.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip("real data folder not found (set ABLATION_NAV_DATA to its path)")
    return path


@pytest.fixture(scope="session")
def room_patient(tmp_path_factory: pytest.TempPathFactory) -> PatientModel:
    """The built-in patient of the simulated room, painted once per test session."""
    from drivers.room.patient import build_patient

    return build_patient(cache=tmp_path_factory.mktemp("patients"))


@pytest.fixture(scope="session")
def room_config() -> RoomConfig:
    """The default simulated room."""
    from nav.config.load import load_toml, shipped_config
    from nav.config.room import RoomConfig

    return load_toml(shipped_config("rooms", "simulated.toml"), RoomConfig)


@pytest.fixture(scope="session")
def room_setup(room_config: RoomConfig) -> RoomSetup:
    """Settings and true calibrations of the default simulated room."""
    from drivers.room.geometry import RoomSetup

    return RoomSetup.from_room(room_config)
