"""``register surface``: surface files in, transform and a report out; and the readers of those files."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from nav.cli.errors import ExitCode
from nav.cli.main import main
from nav.geometry.rigid import Rigid
from nav.geometry.volume import Volume
from nav.imaging.surfaces import sphere_mesh
from nav.io.errors import SurfaceFileError
from nav.io.image_file import swap_lps_ras
from nav.io.itk_transform import read_itk_rigid
from nav.io.surface_files import read_surface_file, write_vtk_points
from nav.io.volume_file import write_volume

BALL = sphere_mesh(np.array([10.0, 20.0, 30.0]), 50.0, 3)
#: A lopsided body with lobes.
VERTICES = BALL.vertices + 9.0 * np.sin(BALL.vertices[:, [1, 2, 0]] / 14.0) * (1.0, 0.7, 0.4)
TRIANGLES = BALL.triangles.astype(np.int64)


def binary_stl(lps: NDArray[np.float64]) -> bytes:
    body = b"".join(struct.pack("<12fH", 0, 0, 0, *lps[t].ravel(), 0) for t in TRIANGLES)
    return b"solid but binary".ljust(80, b" ") + struct.pack("<I", len(TRIANGLES)) + body


def text_stl(lps: NDArray[np.float64]) -> bytes:
    corners = ["".join(f"vertex {a:.9g} {b:.9g} {c:.9g}\n" for a, b, c in lps[t]) for t in TRIANGLES]
    return ("solid a\n" + "".join(f"facet\nouter loop\n{c}endloop\nendfacet\n" for c in corners) + "endsolid").encode()


def text_ply(lps: NDArray[np.float64]) -> bytes:
    head = f"ply\nformat ascii 1.0\nelement vertex {len(lps)}\nproperty float x\nproperty float y\nproperty float z\n"
    head += f"element face {len(TRIANGLES)}\nproperty list uchar int vertex_indices\nend_header\n"
    rows = "\n".join([*(f"{a:.9g} {b:.9g} {c:.9g}" for a, b, c in lps), *(f"3 {a} {b} {c}" for a, b, c in TRIANGLES)])
    return (head + rows + "\n").encode()


def binary_ply(lps: NDArray[np.float64], order: str) -> bytes:
    name = "little" if order == "<" else "big"
    head = f"ply\nformat binary_{name}_endian 1.0\nelement vertex {len(lps)}\nproperty double x\nproperty double y\n"
    head += f"property double z\nproperty uchar red\nelement face {len(TRIANGLES)}\n"
    head += "property list uchar int vertex_indices\nproperty uchar k\nend_header\n"
    rows = b"".join(struct.pack(order + "3dB", *p, 7) for p in lps)
    return head.encode() + rows + b"".join(struct.pack(order + "B3iB", 3, *t, 1) for t in TRIANGLES)


def obj(lps: NDArray[np.float64]) -> bytes:
    rows = [f"v {a:.9g} {b:.9g} {c:.9g}" for a, b, c in lps]
    return "\n".join(["# a", *rows, *(f"f {a + 1}/1/1 {b + 1}//2 {c - len(lps)}" for a, b, c in TRIANGLES)]).encode()


def vtk(lps: NDArray[np.float64], kind: str) -> bytes:
    n, m = len(lps), len(TRIANGLES)
    cells = np.column_stack([np.full(m, 3), TRIANGLES])
    head = f"# vtk DataFile Version 3.0\nx\n{'ASCII' if kind == 'text' else 'BINARY'}\nDATASET POLYDATA\n"
    if kind == "text":
        rows = "\n".join(" ".join(f"{v:.9g}" for v in p) for p in lps)
        faces = "\n".join(" ".join(map(str, c)) for c in cells)
        return f"{head}POINTS {n} float\n{rows}\nPOLYGONS {m} {4 * m}\n{faces}\n".encode()
    points = f"{head}POINTS {n} double\n".encode() + lps.astype(">f8").tobytes()
    if kind == "binary":
        return points + f"\nPOLYGONS {m} {4 * m}\n".encode() + cells.astype(">i4").tobytes()
    ends = np.arange(0, 3 * m + 1, 3).astype(">i8").tobytes()
    flat = TRIANGLES.astype(">i8").tobytes()
    return (
        points
        + f"\nPOLYGONS {m + 1} {3 * m}\nOFFSETS vtktypeint64\n".encode()
        + ends
        + b"\nCONNECTIVITY vtktypeint64\n"
        + flat
    )


FILES = {
    "a.stl": binary_stl,
    "b.stl": text_stl,
    "a.ply": text_ply,
    "b.ply": lambda lps: binary_ply(lps, "<"),
    "c.ply": lambda lps: binary_ply(lps, ">"),
    "a.obj": obj,
    "a.vtk": lambda lps: vtk(lps, "text"),
    "b.vtk": lambda lps: vtk(lps, "binary"),
    "c.vtk": lambda lps: vtk(lps, "version 5"),
}


@pytest.mark.parametrize("name", list(FILES))
def test_every_kind_of_file_is_read(name: str, tmp_path: Path) -> None:
    data = FILES[name](swap_lps_ras(VERTICES))
    (tmp_path / name).write_bytes(data)
    points, triangles = read_surface_file(tmp_path / name)
    np.testing.assert_allclose(points[triangles], VERTICES[TRIANGLES], atol=1e-4)
    # OBJ announces no counts: only what is there can be wrong.
    half = b"f 1 2\n" if name == "a.obj" else data[: len(data) // 2]
    for broken in (half, b"", b"nothing of the kind\n" * 9):
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(SurfaceFileError, match=name):
            read_surface_file(tmp_path / name)


def test_a_file_that_says_ras_is_ras(tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_bytes(b"# 3D Slicer output. SPACE=RAS\n" + obj(VERTICES))
    np.testing.assert_allclose(read_surface_file(tmp_path / "a.obj")[0], VERTICES, atol=1e-4)
    write_vtk_points(tmp_path / "p.vtk", VERTICES)
    points, triangles = read_surface_file(tmp_path / "p.vtk")
    np.testing.assert_allclose(points, VERTICES, atol=1e-5)
    assert len(triangles) == 0
    with pytest.raises(SurfaceFileError, match="expected one of"):
        read_surface_file(tmp_path / "a.gltf")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rigid]:
    """A folder with fixed.stl, labels.nrrd (the same as label 2), touched.mrk.json and truth."""
    folder = tmp_path_factory.mktemp("surfaces")
    (folder / "fixed.stl").write_bytes(binary_stl(swap_lps_ras(VERTICES)))
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", [20, -10, 15], degrees=True).as_matrix()
    matrix[:3, 3] = 12.0, -8.0, 10.0
    truth = Rigid.from_matrix(matrix, "MovingToFixed")
    rng = np.random.default_rng(4)
    corners = VERTICES[TRIANGLES[rng.choice(len(TRIANGLES), 400)]]
    touched = truth.inverse().apply(np.einsum("nk,nka->na", rng.dirichlet(np.ones(3), 400), corners))
    touched = touched + rng.normal(0, 0.4, touched.shape)
    points = [{"label": str(n), "position": p} for n, p in enumerate(swap_lps_ras(touched).tolist())]
    markups = {"markups": [{"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": points}]}
    (folder / "touched.mrk.json").write_text(json.dumps(markups))
    targets = np.array([10.0, 20.0, 30.0]) + rng.uniform(-20, 20, (5, 3))
    for name, ras in (("fixed.txt", targets), ("moving.txt", truth.inverse().apply(targets))):
        rows = "\n".join(" ".join(f"{v:.6f}" for v in row) for row in swap_lps_ras(ras))
        (folder / name).write_text(f"point\n{len(ras)}\n{rows}\n")
    return folder, truth


def test_touched_points_onto_a_mesh(
    case: tuple[Path, Rigid], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, truth = case
    pairs = ["--fixed-points", str(folder / "fixed.txt"), "--moving-points", str(folder / "moving.txt")]
    inputs = [str(folder / "fixed.stl"), str(folder / "touched.mrk.json")]
    code = main(["register", "surface", *inputs, "--out", str(tmp_path), "--json", "--threads", "1", *pairs])
    report = json.loads(capsys.readouterr().out)
    assert (code, report["verdict"], report["reasons"]) == (ExitCode.OK, "good", [])
    assert report["tre_mm"]["before"]["mean"] > 10 > 1 > report["tre_mm"]["after"]["max"]
    assert report["tre_mm"]["after"]["median"] < report["expected_error_mm"]["p95"] < 2.0
    assert report["similarity"]["after"] < 2.0 < report["similarity"]["before"]
    assert report["jacobian"] == {"min": 1.0, "max": 1.0, "folded_fraction": 0.0}
    written = read_itk_rigid(tmp_path / "transform.tfm", "MovingToFixed")
    np.testing.assert_allclose(written.matrix, report["transform"]["matrix_ras_mm"], atol=1e-9)
    assert np.linalg.norm(written.apply([10.0, 20, 30]) - truth.apply([10.0, 20, 30])) < 1.0


def test_a_label_map_and_points_that_move_on_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    k, j, i = np.indices((50, 55, 60))
    grid = np.diag([2.5, 2.5, 2.5, 1.0])
    grid[:3, 3] = -70.0, -50.0, -30.0
    inside = ((i - 32) / 22) ** 2 + ((j - 28) / 15) ** 2 + ((k - 24) / 11.0 * (1 - i / 120)) ** 2 < 1
    write_volume(tmp_path / "labels.nrrd", Volume.of((2 * inside).astype(np.uint8), grid))
    labels = [str(tmp_path / "labels.nrrd")] * 2
    out = tmp_path / "out"
    options = ["--fixed-label", "2", "--deformable", "--preset", "fast", "--json"]
    main(["register", "surface", *labels, "--out", str(out), *options])
    report = json.loads(capsys.readouterr().out)
    assert report["similarity"]["after"] < 3.0
    assert np.abs(np.array(report["transform"]["matrix_ras_mm"]) - np.eye(4)).max() < 0.2
    moved, _ = read_surface_file(out / "moved.vtk")
    assert len(moved) == 5000
    assert report["jacobian"]["min"] > 0.3
    code = main(["register", "surface", *labels, "--out", str(out), "--fixed-label", "7"])
    assert code == ExitCode.INPUT
    assert "label 7 does not occur" in capsys.readouterr().err
