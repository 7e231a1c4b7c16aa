"""Shared fixtures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
