"""Our bytes through the OpenIGTLink C++ library: it reads them, takes them apart, and packs the same again.

The library of Debian (1.11) knows header version 1.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivers.openigtlink.codec import encode_content, encode_image
from drivers.openigtlink.contents import (
    CapabilityContent,
    Content,
    ImageMeta,
    ImageMetaContent,
    LabelMeta,
    LabelMetaContent,
    NdarrayContent,
    Point,
    PointContent,
    PolyAttribute,
    PolyDataContent,
    PositionContent,
    QuaternionTool,
    QuaternionTrackingContent,
    ReplyContent,
    SensorContent,
    StartTrackingContent,
    StatusContent,
    StringContent,
    TrackedTool,
    TrackingContent,
    Trajectory,
    TrajectoryContent,
    cell_array,
)
from tests.system.openigtlink_examples import HEADERS

SOURCE = Path(__file__).with_name("openigtlink_reread.cxx")


@pytest.fixture(scope="module")
def reread(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++")
    if compiler is None or not HEADERS.is_dir():
        pytest.skip("libopenigtlink-dev and g++ are needed")
    program = tmp_path_factory.mktemp("reread") / "reread"
    command = [compiler, "-w", f"-I{HEADERS}", str(SOURCE), "-o", str(program), "-lOpenIGTLink", "-lpthread"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


def through(program: Path, raw: bytes) -> tuple[int, bytes]:
    """How it ended (0, or the number of the message that could not be read), and what it packed."""
    done = subprocess.run([str(program)], input=raw, capture_output=True, check=False, timeout=20)
    return done.returncode, done.stdout


TURNED = np.array([[0.0, -1.0, 0.0, 10.5], [1.0, 0.0, 0.0, -20.25], [0.0, 0.0, 1.0, 30.0], [0.0, 0.0, 0.0, 1.0]])
POINTS = np.array([[0, 0, 0], [1, 0, 0], [1, 2, 0], [0, 1, 3.5]], np.float32)
SURFACE = PolyDataContent(
    POINTS,
    vertices=cell_array([[0], [3]]),
    lines=cell_array([[0, 1], [1, 2, 3]]),
    polygons=cell_array([[0, 1, 2], [0, 1, 2, 3]]),
    strips=cell_array([[0, 1, 2, 3]]),
    attributes=(
        PolyAttribute(0, "margin", np.arange(8, dtype=np.float32).reshape(4, 2)),
        PolyAttribute(2, "normals", np.ones((4, 3), np.float32)),
        PolyAttribute(3, "odd", np.ones((1, 9), np.float32)),
    ),
)

CASES: list[tuple[str | None, Content]] = [
    (None, QuaternionTrackingContent((QuaternionTool("Needle", (1, 2, 3), (0, 0, 0.5, 0.75)),))),
    (None, TrackingContent((TrackedTool("Needle", TURNED), TrackedTool("Stylus", np.eye(4), 3)))),
    ("STT_TDATA", StartTrackingContent(50, "Patient")),
    ("STT_QTDATA", StartTrackingContent(20, "")),
    ("RTS_TDATA", ReplyContent(1)),
    (None, PositionContent((1.5, 2.5, 3.5), (0.0, 0.6, 0.0, 0.8))),
    (None, StatusContent(13, -7, "NOT_READY", "warming up")),
    (None, StringContent("Grüße", 106)),
    (None, PointContent((Point("Target", (1, 2, 3), "Labeled Point", (1, 2, 3, 4), 5.5, "CT"),))),
    (None, TrajectoryContent((Trajectory("Path", (1, 2, 3), (4, 5, 6), "Plan", 3, (9, 8, 7, 6), 2.5, "CT"),))),
    (None, SensorContent(np.array([1.5, -2.25]), 0x02C0100000000000)),
    (None, NdarrayContent(np.arange(24, dtype=np.int16).reshape(2, 3, 4))),
    (None, NdarrayContent(np.arange(3, dtype=np.float32))),
    (None, LabelMetaContent((LabelMeta("Tumour", "Labels", 2, (255, 0, 0, 255), (4, 5, 6), "CT"),))),
    (None, CapabilityContent(("IMAGE", "GET_TRANS", "ABCDEFGHIJKL"))),
    (None, SURFACE),
]


@pytest.mark.parametrize(("type_name", "content"), CASES, ids=[f"{type(c).__name__}-{t}" for t, c in CASES])
def test_the_library_packs_the_same_again(reread: Path, type_name: str | None, content: Content) -> None:
    raw = encode_content("Device", content, type_name=type_name, sender_ns=1_700_000_000_500_000_000)
    assert through(reread, raw) == (0, raw)


@pytest.mark.parametrize(
    "options",
    [
        {"endian": "little"},
        {"endian": "big", "coordinate": "lps"},
        {"endian": "big", "whole_size": (9, 8, 7), "offset": (1, 2, 3)},
    ],
)
def test_the_library_packs_the_same_images_again(reread: Path, options: dict[str, Any]) -> None:
    for dtype in ("i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"):
        raw = encode_image("CT", np.arange(24, dtype=dtype).reshape(2, 3, 4), TURNED, sender_ns=10**9, **options)
        assert through(reread, raw) == (0, raw), dtype


def test_the_library_reads_imgmeta(reread: Path) -> None:
    """It packs another time than it has read: it takes the stamp of an image for a number of seconds."""
    raw = encode_content("L", ImageMetaContent((ImageMeta("CT", "CT1", "CT", "N", "7", (3, 1 << 31), (4, 5, 6), 4),)))
    code, again = through(reread, raw)
    assert code == 0
    assert len(again) == len(raw)


def test_the_library_refuses_what_is_wrong(reread: Path) -> None:
    raw = encode_content("Device", SURFACE)
    damaged = bytearray(raw)
    damaged[-1] ^= 1
    assert through(reread, raw + bytes(damaged)) == (2, raw)
