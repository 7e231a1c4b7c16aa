"""Shared fixtures of the tests over real sockets."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.openigtlink_examples import build_all

#: From so many tests on, building everything at once, two at a time, is sooner done.
MANY = 6


@pytest.fixture(scope="session")
def examples(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder into which `openigtlink_examples.build` builds, each program once per session."""
    folder = tmp_path_factory.mktemp("openigtlink-examples")
    if sum("examples" in getattr(item, "fixturenames", ()) for item in request.session.items) >= MANY:
        build_all(folder)
    return folder
