"""POLYDATA: points, the cells made of them, and numbers attached to either, as in VTK."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from drivers.openigtlink.contents.base import Content, bad, need_size, pack_numbers
from drivers.openigtlink.errors import ContentError, EncodeError
from drivers.openigtlink.text import decode_text, encode_text

__all__ = ["CELL_KINDS", "PolyAttribute", "PolyDataContent", "cell_array"]

CELL_KINDS = ("vertices", "lines", "polygons", "strips")
#: Attribute type → components; None: any from 1 to 255. 0x1_ the same for cells instead of points.
COMPONENTS: dict[int, int | None] = {
    kind + cells: n for cells in (0x00, 0x10) for kind, n in enumerate((None, 3, 3, 9, 4))
}
LONGEST_NAME = 255
#: Far more than anybody attaches; each costs an object, which a few bytes of damage must not multiply.
MOST_ATTRIBUTES = 65535
_PIECE = 1 << 16

_HEADER = struct.Struct(">10I")
_ATTRIBUTE = struct.Struct(">BBI")

Cells = NDArray[np.uint32]


def _no_cells() -> Cells:
    return np.zeros(0, np.uint32)


def cell_array(cells: Sequence[Sequence[int]] | NDArray[np.integer]) -> Cells:
    """Cells as the wire has them, n, i1 ... in, n, i1 ..., from a list of lists of point indices or an (m, n) array."""
    if isinstance(cells, np.ndarray):
        if cells.ndim != 2 or cells.dtype.kind not in "iu":
            raise EncodeError(
                f"POLYDATA cells: {cells.dtype} {cells.shape}, expected integers (cells, points of a cell)"
            )
        flat: list[int] = np.insert(cells, 0, cells.shape[1], axis=1).ravel().tolist()
    else:
        flat = [n for cell in cells for n in (len(cell), *cell)]
    if flat and not 0 <= min(flat) <= max(flat) <= 0xFFFFFFFF:
        raise EncodeError(f"POLYDATA point indices: {min(flat)} to {max(flat)}, allowed: 0 to {0xFFFFFFFF}")
    return np.array(flat, dtype=np.uint32)


@dataclass(frozen=True, slots=True, eq=False)
class PolyAttribute:
    """Numbers attached to the points or cells.

    Attributes
    ----------
    kind : int
        0 scalars, 1 vectors, 2 normals, 3 tensors, 4 RGBA of the points; 0x10 more for those of the cells.
    values : (n, components) float32
    """

    kind: int
    name: str
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class PolyDataContent(Content):
    """POLYDATA.

    Attributes
    ----------
    points : (n, 3) float32
        mm.
    vertices, lines, polygons, strips : (m,) uint32
        Cells one after another, each as its number of points and their indices (`cell_array` makes them,
        `split_cells` takes them apart).
    attributes : tuple of PolyAttribute
    padding : int
        The byte behind the names of the attributes that makes their length even (0 unless a sender leaves junk there).
    """

    type_name: ClassVar[str] = "POLYDATA"
    points: NDArray[np.float32]
    vertices: Cells = field(default_factory=_no_cells)
    lines: Cells = field(default_factory=_no_cells)
    polygons: Cells = field(default_factory=_no_cells)
    strips: Cells = field(default_factory=_no_cells)
    attributes: tuple[PolyAttribute, ...] = ()
    padding: int = 0

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read points, cells and attributes; every number is checked against the bytes before room is made for it.

        Raises
        ------
        ContentError
        """
        need_size("POLYDATA", raw, _HEADER.size, exactly=False)
        view = memoryview(raw)
        n_points, *cell_numbers, n_attributes = _HEADER.unpack_from(raw)
        points = _take(view, _HEADER.size, 12 * n_points, "POLYDATA points", 0, n_points)
        at = _HEADER.size + 12 * n_points
        groups = []
        for which, name in enumerate(CELL_KINDS):
            count, size = cell_numbers[2 * which : 2 * which + 2]
            field_at = 8 + 8 * which
            if size % 4:
                raise bad(f"POLYDATA size of the {name}", field_at, size, "a multiple of 4 bytes")
            part = _take(view, at, size, f"POLYDATA {name}", field_at, size)
            cells = np.frombuffer(part, ">u4").astype(np.uint32)
            cells.setflags(write=False)
            try:
                found = _count(cells, n_points)
            except _BrokenCells as error:
                raise bad(f"POLYDATA {name}: {error.what}", at + 4 * error.index, error.value, error.limit) from None
            if found != count:
                raise bad(f"POLYDATA number of {name}", field_at - 4, count, f"{found}, as the cells say")
            groups.append(cells)
            at += size
        xyz = np.frombuffer(points, ">f4").astype(np.float32).reshape(-1, 3)
        xyz.setflags(write=False)
        attributes, padding = _unpack_attributes(view, at, n_attributes)
        vertices, lines, polygons, strips = groups
        return cls(xyz, vertices, lines, polygons, strips, attributes, padding)

    def pack(self) -> bytes:
        """Header, points, cells, attributes."""
        points = np.asarray(self.points, dtype=np.float32)
        if points.ndim != 2 or points.shape[1:] != (3,) or not np.isfinite(points).all():
            raise EncodeError(f"POLYDATA points: shape {points.shape}, expected (n, 3), finite")
        groups = [np.asarray(getattr(self, name)) for name in CELL_KINDS]
        numbers: list[int] = [len(points)]
        for name, cells in zip(CELL_KINDS, groups, strict=True):
            if cells.ndim != 1 or cells.dtype != np.uint32:
                raise EncodeError(f"POLYDATA {name}: {cells.dtype} {cells.shape}, expected uint32 (m,); see cell_array")
            try:
                numbers += [_count(cells, len(points)), cells.nbytes]
            except _BrokenCells as error:
                raise EncodeError(f"POLYDATA {name}: {error}") from None
        head = pack_numbers(_HEADER, "POLYDATA", *numbers, len(self.attributes))
        parts = [head, points.astype(">f4").tobytes(), *(cells.astype(">u4").tobytes() for cells in groups)]
        return b"".join(parts + _pack_attributes(self.attributes, self.padding))


def split_cells(cells: Cells) -> list[list[int]]:
    """The point indices of each cell."""
    return [cell for cell in _walk(cells, 1 << 32)]


class _BrokenCells(ValueError):
    def __init__(self, what: str, index: int, value: int, limit: str) -> None:
        self.what, self.index, self.value, self.limit = what, index, value, limit
        super().__init__(f"{what} {value} at number {index}, allowed: {limit}")


def _count(cells: Cells, n_points: int) -> int:
    """Number of cells, with the checks of `_walk`; all at once where all cells have as many points as the first."""
    if len(cells):
        step = int(cells[0]) + 1
        if len(cells) % step == 0:
            table = cells.reshape(-1, step)
            if (table[:, 0] == step - 1).all() and (step == 1 or int(table[:, 1:].max()) < n_points):
                return len(table)
    return sum(1 for _ in _walk(cells, n_points))


def _walk(cells: Cells, n_points: int) -> Iterable[list[int]]:
    """Each cell's indices; `_BrokenCells` where a length leads beyond the end or an index beyond the points."""
    at, end = 0, len(cells)
    # A piece at a time, because Python's numbers take ten times the room of those of the message.
    piece: list[int] = []
    piece_at = 0
    while at < end:
        if at - piece_at >= len(piece):
            piece, piece_at = cells[at : at + _PIECE].tolist(), at
        n = piece[at - piece_at]
        if n > end - at - 1:
            raise _BrokenCells("points of a cell", at, n, f"{end - at - 1}, the numbers that follow")
        first = at + 1 - piece_at
        cell = piece[first : first + n] if first + n <= len(piece) else cells[at + 1 : at + 1 + n].tolist()
        if cell and max(cell) >= n_points:
            worst = max(cell)
            raise _BrokenCells("point index", at + 1 + cell.index(worst), worst, f"less than the {n_points} points")
        yield cell
        at += 1 + n


def _take(view: memoryview, at: int, size: int, what: str, field_at: int, value: int) -> memoryview:
    if size > len(view) - at:
        raise bad(what, field_at, value, f"{max(len(view) - at, 0)} bytes left, {size} needed")
    return view[at : at + size]


def _unpack_attributes(view: memoryview, at: int, count: int) -> tuple[tuple[PolyAttribute, ...], int]:
    if count > MOST_ATTRIBUTES:
        raise bad("POLYDATA number of attributes", 36, count, f"{MOST_ATTRIBUTES} or less")
    heads = _take(view, at, _ATTRIBUTE.size * count, "POLYDATA number of attributes", 36, count)
    names_at = at + len(heads)
    here, names = names_at, []
    for _ in range(count):
        piece = bytes(view[here : here + LONGEST_NAME + 1])
        length = piece.find(b"\0")
        if length < 0:
            raise bad("POLYDATA attribute name", here, piece[:40], f"{LONGEST_NAME} bytes or less and a NUL")
        names.append(decode_text(piece[:length], 106))
        here += length + 1
    padding = 0
    if (here - names_at) % 2:
        padding = _take(view, here, 1, "POLYDATA padding of the names", here, 0)[0]
        here += 1
    out = []
    for n, ((kind, components, length), name) in enumerate(zip(_ATTRIBUTE.iter_unpack(heads), names, strict=True)):
        head_at = at + _ATTRIBUTE.size * n
        _check_kind(kind, components, head_at)
        part = _take(view, here, 4 * components * length, f"POLYDATA length of attribute {name!r}", head_at + 2, length)
        values = np.frombuffer(part, ">f4").astype(np.float32).reshape(length, components)
        values.setflags(write=False)
        out.append(PolyAttribute(kind, name, values))
        here += len(part)
    if here != len(view):
        raise bad("POLYDATA content", here, f"{len(view) - here} bytes more", "nothing behind the attributes")
    return tuple(out), padding


def _check_kind(kind: int, components: int, at: int) -> None:
    if kind not in COMPONENTS:
        raise bad("POLYDATA attribute type", at, kind, ", ".join(map(hex, COMPONENTS)))
    wanted = COMPONENTS[kind]
    if components == 0 or (wanted is not None and components != wanted):
        raise bad("POLYDATA components of an attribute", at + 1, components, wanted or "1 to 255")


def _pack_attributes(attributes: Sequence[PolyAttribute], padding: int) -> list[bytes]:
    if len(attributes) > MOST_ATTRIBUTES:
        raise EncodeError(f"POLYDATA: {len(attributes)} attributes, limit {MOST_ATTRIBUTES}")
    heads, names, data = [], [], []
    for attribute in attributes:
        what = f"POLYDATA attribute {attribute.name!r}"
        values = np.asarray(attribute.values, dtype=np.float32)
        if values.ndim != 2:
            raise EncodeError(f"{what}: values of shape {values.shape}, expected (n, components)")
        try:
            _check_kind(attribute.kind, values.shape[1], 0)
        except ContentError as error:
            raise EncodeError(f"{what}: {error}") from None
        name = encode_text(attribute.name, 106, what)[1]
        if len(name) > LONGEST_NAME or b"\0" in name:
            raise EncodeError(f"{what}: name of {len(name)} bytes, allowed: {LONGEST_NAME} bytes without NUL")
        heads.append(pack_numbers(_ATTRIBUTE, what, attribute.kind, values.shape[1], len(values)))
        names.append(name + b"\0")
        data.append(values.astype(">f4").tobytes())
    odd = sum(map(len, names)) % 2
    if not 0 <= padding <= 255:
        raise EncodeError(f"POLYDATA padding {padding}: must fit a byte")
    return [*heads, *names, bytes([padding]) if odd else b"", *data]
