"""Surfaces of other programs: STL, PLY, OBJ and legacy VTK polydata, each text or binary where it has both; to RAS mm.

None of these formats says which way its axes go. 3D Slicer writes ``SPACE=LPS`` or ``SPACE=RAS`` into the title or a
comment, which is obeyed; otherwise LPS is taken, as ITK and Slicer write.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nav.io.errors import SurfaceFileError
from nav.io.image_file import swap_lps_ras

__all__ = ["SURFACE_SUFFIXES", "read_surface_file", "write_vtk_mesh", "write_vtk_points"]

SURFACE_SUFFIXES = (".stl", ".ply", ".obj", ".vtk")

Points = NDArray[np.float64]
Triangles = NDArray[np.int64]

_PLY = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
_VTK = {
    "char": "i1", "unsigned_char": "u1", "short": "i2", "unsigned_short": "u2", "int": "i4", "unsigned_int": "u4",
    "long": "i8", "vtktypeint64": "i8", "float": "f4", "double": "f8",
}  # fmt: skip


def read_surface_file(path: Path | str) -> tuple[Points, Triangles]:
    """Vertices (n, 3) RAS mm, and triangles (m, 3); none where the file holds bare points.

    Raises
    ------
    SurfaceFileError
        Absent, of no known kind, broken off, refers to vertices that are not there, or values that are not finite.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix not in SURFACE_SUFFIXES:
        raise SurfaceFileError(f"{file}: expected one of {', '.join(SURFACE_SUFFIXES)}")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise SurfaceFileError(f"{file}: cannot be read: {error.strerror}") from None
    reader = {".stl": _stl, ".ply": _ply, ".obj": _obj, ".vtk": _vtk}[suffix]
    try:
        points, triangles = reader(data)
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise SurfaceFileError(f"{file}: is damaged or no {suffix[1:].upper()} file ({error}); export again") from None
    if len(points) == 0:
        raise SurfaceFileError(f"{file}: holds no points")
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(bad):
        raise SurfaceFileError(f"{file}: point {bad[0] + 1} is not finite; export it again")
    if triangles.size and (triangles.min() < 0 or triangles.max() >= len(points)):
        raise SurfaceFileError(
            f"{file}: a face refers to vertex {triangles.max() + 1}, there are {len(points)}; export it again"
        )
    space = re.search(rb"SPACE=(LPS|RAS)", data[:4096])
    if space is not None and space.group(1) == b"RAS":
        return points, triangles
    return swap_lps_ras(points), triangles


def write_vtk_points(path: Path | str, points_ras: Points) -> None:
    """Write points, (n, 3) RAS mm, as legacy ASCII VTK polydata in LPS, as Slicer and ITK read them."""
    rows = "\n".join(" ".join(f"{value:.6f}" for value in row) for row in swap_lps_ras(points_ras))
    n = len(points_ras)
    vertices = "\n".join(f"1 {k}" for k in range(n))
    text = f"POINTS {n} double\n{rows}\nVERTICES {n} {2 * n}\n{vertices}\n"
    Path(path).write_text(f"# vtk DataFile Version 3.0\nSPACE=LPS\nASCII\nDATASET POLYDATA\n{text}", encoding="utf-8")


def write_vtk_mesh(
    path: Path | str, vertices_ras: Points, triangles: NDArray[np.integer], values: dict[str, Points]
) -> None:
    """Write a mesh as legacy binary VTK polydata in LPS, with named numbers at its vertices.

    Parameters
    ----------
    vertices_ras : (n, 3) float64
        mm.
    triangles : (m, 3) int
    values : dict
        Name (no spaces) to (n,) numbers.
    """
    n, m = len(vertices_ras), len(triangles)
    rows = np.column_stack([np.full(m, 3), triangles]).astype(">i4")
    parts = [
        f"# vtk DataFile Version 3.0\nSPACE=LPS\nBINARY\nDATASET POLYDATA\nPOINTS {n} double\n".encode(),
        swap_lps_ras(vertices_ras).astype(">f8").tobytes(),
        f"\nPOLYGONS {m} {4 * m}\n".encode(),
        rows.tobytes(),
        f"\nPOINT_DATA {n}\n".encode(),
    ]
    for name, numbers in values.items():
        parts += [f"SCALARS {name} float 1\nLOOKUP_TABLE default\n".encode(), numbers.astype(">f4").tobytes(), b"\n"]
    Path(path).write_bytes(b"".join(parts))


def _fan(faces: list[list[int]]) -> Triangles:
    """Triangles of polygons, by fans."""
    rows = [(face[0], face[k], face[k + 1]) for face in faces for k in range(1, len(face) - 1)]
    return np.array(rows, np.int64).reshape(-1, 3)


def _runs(values: NDArray[np.int64], count: int) -> Triangles:
    """Polygons written as ``n a b c ... n a b c ...``."""
    if len(values) == 4 * count and (values[::4] == 3).all():
        return values.reshape(-1, 4)[:, 1:].copy()
    faces, place = [], 0
    for _ in range(count):
        n = int(values[place])
        faces.append([int(v) for v in values[place + 1 : place + 1 + n]])
        if n < 0 or len(faces[-1]) != n:
            raise ValueError("broken off among the faces")
        place += 1 + n
    return _fan(faces)


def _stl(data: bytes) -> tuple[Points, Triangles]:
    # A binary file may begin with "solid" too: its length tells.
    count = int.from_bytes(data[80:84], "little") if len(data) >= 84 else -1
    if len(data) == 84 + 50 * count:
        record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("rest", "<u2")])
        points = np.frombuffer(data, record, count, 84)["corners"].reshape(-1, 3).astype(np.float64)
    elif data.lstrip()[:5].lower() == b"solid":
        found = re.findall(rb"vertex\s+(\S+)\s+(\S+)\s+(\S+)", data)
        if len(found) % 3 or b"endsolid" not in data:
            raise ValueError(f"broken off after {len(found)} corners")
        points = np.array(found, np.float64).reshape(-1, 3)
    else:
        raise ValueError(f"{len(data)} bytes, {84 + 50 * max(count, 0)} announced")
    return points, np.arange(len(points), dtype=np.int64).reshape(-1, 3)


def _obj(data: bytes) -> tuple[Points, Triangles]:
    points: list[list[float]] = []
    faces: list[list[int]] = []
    for line in data.decode("utf-8").splitlines():
        words = line.split()
        if words[:1] == ["v"]:
            if len(words) < 4:
                raise ValueError(f"{line[:40]!r} is no vertex")
            points.append([float(word) for word in words[1:4]])
        elif words[:1] == ["f"]:
            numbers = [int(word.split("/")[0]) for word in words[1:]]
            if len(numbers) < 3 or 0 in numbers:
                raise ValueError(f"{line[:40]!r} is no face")
            faces.append([n - 1 if n > 0 else len(points) + n for n in numbers])
    return np.array(points, np.float64).reshape(-1, 3), _fan(faces)


def _ply(data: bytes) -> tuple[Points, Triangles]:
    end = data.index(b"end_header")
    begin = data.index(b"\n", end) + 1
    kind = ""
    elements: list[tuple[str, int, list[list[str]]]] = []
    for line in data[:end].decode("ascii").splitlines():
        words = line.split()
        if words[:1] == ["format"]:
            kind = words[1]
        elif words[:1] == ["element"]:
            elements.append((words[1], int(words[2]), []))
        elif words[:1] == ["property"]:
            elements[-1][2].append(words[1:])
    if kind not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise ValueError(f"format {kind!r}")
    order = ">" if kind.endswith("big_endian") else "<"
    words_left = data[begin:].split() if kind == "ascii" else []
    place = 0 if kind == "ascii" else begin
    points, faces = np.zeros((0, 3)), np.zeros((0, 3), np.int64)
    for name, count, properties in elements:
        names = [p[-1] for p in properties]
        if not any(p[0] == "list" for p in properties):
            if kind == "ascii":
                rows = np.array(words_left[place : place + count * len(names)], np.float64).reshape(count, len(names))
                place += count * len(names)
                columns = {n: rows[:, k] for k, n in enumerate(names)}
            else:
                record = np.dtype([(p[1], order + _PLY[p[0]]) for p in properties])
                block = np.frombuffer(data, record, count, place)
                place += count * record.itemsize
                columns = {n: block[n].astype(np.float64) for n in names}
            if name == "vertex":
                points = np.stack([columns[axis] for axis in "xyz"], axis=1)
            continue
        found: list[list[int]] = []
        for _ in range(count):
            for p in properties:
                if kind == "ascii":
                    n = int(words_left[place]) if p[0] == "list" else 1
                    place += p[0] == "list"
                    values = [float(w) for w in words_left[place : place + n]]
                    place += n
                else:
                    n = 1
                    if p[0] == "list":
                        length = np.dtype(order + _PLY[p[1]])
                        n = int(np.frombuffer(data, length, 1, place)[0])
                        place += length.itemsize
                    item = np.dtype(order + _PLY[p[2] if p[0] == "list" else p[0]])
                    values = np.frombuffer(data, item, n, place).tolist()
                    place += n * item.itemsize
                if len(values) != n:
                    raise ValueError("broken off among the faces")
                if name == "face" and p[-1] in ("vertex_indices", "vertex_index"):
                    found.append([int(v) for v in values])
        if name == "face":
            faces = _fan(found)
    return points, faces


def _vtk(data: bytes) -> tuple[Points, Triangles]:
    lines = data.split(b"\n", 3)
    if not lines[0].startswith(b"# vtk DataFile") or len(lines) < 4:
        raise ValueError(f"begins with {data[:20]!r}")
    binary = lines[2].strip().upper() == b"BINARY"
    body = lines[3]
    if b"DATASET POLYDATA" not in body[:200].upper():
        raise ValueError("its DATASET is not POLYDATA")
    start = re.search(rb"^POINTS\s+(\d+)\s+(\w+)[^\n]*\n", body, re.M)
    if start is None:
        raise ValueError("no POINTS")
    count = int(start.group(1))
    points = _numbers(body, start.end(), 3 * count, _VTK[start.group(2).decode().lower()], binary)
    triangles: Triangles = np.zeros((0, 3), np.int64)
    after = start.end() + (3 * count * np.dtype(_VTK[start.group(2).decode().lower()]).itemsize if binary else 0)
    polygons = re.compile(rb"^POLYGONS\s+(\d+)\s+(\d+)[^\n]*\n", re.M).search(body, after)
    if polygons is not None:
        number, size = int(polygons.group(1)), int(polygons.group(2))
        place = polygons.end()
        offsets = re.compile(rb"OFFSETS\s+(\w+)[^\n]*\n").match(body, place)
        if offsets is None:
            triangles = _runs(_numbers(body, place, size, "i4", binary).astype(np.int64), number)
        else:
            # Version 5: offsets, one more than there are polygons, and the corners.
            kind = _VTK[offsets.group(1).decode().lower()]
            ends = _numbers(body, offsets.end(), number, kind, binary).astype(np.int64)
            corners = re.compile(rb"CONNECTIVITY\s+(\w+)[^\n]*\n").search(body, offsets.end())
            if corners is None:
                raise ValueError("no CONNECTIVITY")
            flat = _numbers(body, corners.end(), size, _VTK[corners.group(1).decode().lower()], binary).astype(int)
            triangles = _fan([flat[a:b].tolist() for a, b in pairwise(ends)])
    return points.astype(np.float64).reshape(-1, 3), triangles


def _numbers(body: bytes, place: int, count: int, kind: str, binary: bool) -> NDArray[np.generic]:
    if binary:
        return np.frombuffer(body, ">" + kind, count, place)
    words = body[place:].split(None, count)[:count]
    if len(words) != count:
        raise ValueError(f"{count} numbers announced, {len(words)} there")
    return np.array(words, np.float64)
