"""Kernels of the registration of surfaces: a k-d tree, the normal equations of one step, and many starts at once.

One call graph, one file (a changed helper elsewhere would leave a stale cache). Plain twins stand in
``tests/reference/test_surface_twins.py``.

The tree (Bentley 1975, CACM 18:509; buckets as in Friedman, Bentley and Finkel 1977, ACM TOMS 3:209) is balanced and
has no pointers: node ``i`` has the children ``2 i`` and ``2 i + 1``, the range ``[low, high)`` of a node is halved for
them, and all leaves are on one level. Its points are stored in the order of the leaves.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from nav.geometry.kernels import KernelSpec

__all__ = [
    "BLOCKS",
    "KERNELS",
    "RR",
    "SUMS",
    "USED",
    "WEIGHT",
    "G",
    "build_tree",
    "levels_of",
    "search",
    "surface_equations",
]

#: Points are summed in so many blocks of neighbours, in a fixed order: a result does not depend on the number of
#: threads, and the blocks are what the error estimate looks at one by one.
BLOCKS = 64
#: Sums of one block: 36 of w J Jᵀ (rows), 6 of w J r, then w r², the sum of w, and the number of points with w > 0.
SUMS = 45
G, RR, WEIGHT, USED = 36, 42, 43, 44
#: Most points in a leaf.
LEAF = 8
#: Deepest tree: 8 · 2³² points.
_STACK = 32
#: Up to so many points one thread is quicker than waking others.
_SERIAL = 4096
_FEW_STARTS = 8
#: A step is the last one below so many mm², turns taken 100 mm away.
_AT_REST, _AT_REST_SIZE = 1e-5, 1e4
#: Levels of the tree above the pieces that threads build.
_TOP = 4


def levels_of(n: int) -> int:
    """How often ``n`` points are halved until at most `LEAF` are left."""
    levels = 0
    while (n + (1 << levels) - 1) >> levels > LEAF:
        levels += 1
    return levels


@njit(nogil=True, cache=True, inline="always", error_model="numpy")
def _range(node, level, n):  # type: ignore[no-untyped-def]
    """Range of points of a node on a level: the halvings ``mid = (low + high) // 2`` from the root."""
    low, high = 0, n
    for b in range(level - 1, -1, -1):
        mid = (low + high) >> 1
        if (node >> b) & 1:
            low = mid
        else:
            high = mid
    return low, high


@njit(nogil=True, cache=True, error_model="numpy")
def _halve(points, order, dimension, value, node, level):  # type: ignore[no-untyped-def]
    """Split one node along its longest side at its median."""
    low, high = _range(node, level, points.shape[0])
    mid = (low + high) >> 1
    axis = 0
    widest = np.float32(-1.0)
    for c in range(3):
        least, most = points[low, c], points[low, c]
        for i in range(low + 1, high):
            least = min(least, points[i, c])
            most = max(most, points[i, c])
        if most - least > widest:
            widest = most - least
            axis = c
    # Hoare's selection: afterwards the point at ``mid`` is where sorting would put it.
    left, right = low, high - 1
    while left < right:
        first, middle, last = points[left, axis], points[(left + right) >> 1, axis], points[right, axis]
        pivot = max(min(first, middle), min(max(first, middle), last))
        i, j = left, right
        while i <= j:
            while points[i, axis] < pivot:
                i += 1
            while points[j, axis] > pivot:
                j -= 1
            if i <= j:
                for c in range(3):
                    swap = points[i, c]
                    points[i, c] = points[j, c]
                    points[j, c] = swap
                number = order[i]
                order[i] = order[j]
                order[j] = number
                i += 1
                j -= 1
        if mid <= j:
            right = j
        elif mid >= i:
            left = i
        else:
            break
    dimension[node] = axis
    value[node] = points[mid, axis]


@njit(nogil=True, cache=True, parallel=True, error_model="numpy")
def build_tree(points, levels, order, dimension, value):  # type: ignore[no-untyped-def]
    """Sort ``points`` (n, 3) float32, all finite, in place into a tree of ``levels`` halvings.

    ``order`` (n,) int32: where each came from; ``dimension`` int8 and ``value`` float32 (2 ** levels,): by node (from
    1), the axis it is split along, and where: no point of the left half lies above, none of the right half below.
    """
    for i in range(points.shape[0]):
        order[i] = i
    top = levels if points.shape[0] <= _SERIAL else _TOP
    for level in range(top):
        for node in range(1 << level, 2 << level):
            _halve(points, order, dimension, value, node, level)
    if top < levels:
        for piece in prange(1 << _TOP):
            for level in range(_TOP, levels):
                first = ((1 << _TOP) + piece) << (level - _TOP)
                for node in range(first, first + (1 << (level - _TOP))):
                    _halve(points, order, dimension, value, node, level)


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def _closest(tree, dimension, value, levels, x, y, z, guess, nodes, offsets):  # type: ignore[no-untyped-def]
    """Number of the nearest point of the tree and its squared distance; ``guess``: a point near it, or -1.

    ``nodes`` (_STACK, 4) int32 and ``offsets`` (_STACK, 4) float32 are scratch. Of equally near ones, the one that is
    found first; a query that is not a number finds -1.
    """
    n = tree.shape[0]
    best = np.float32(np.inf)
    found = -1
    if guess >= 0:
        dx, dy, dz = tree[guess, 0] - x, tree[guess, 1] - y, tree[guess, 2] - z
        best = dx * dx + dy * dy + dz * dz
        found = guess
    zero = np.float32(0.0)
    top = 0
    node, low, high, level = 1, 0, n, 0
    ox, oy, oz, bound = zero, zero, zero, zero
    while True:
        while level < levels:
            axis = dimension[node]
            mid = (low + high) >> 1
            if axis == 0:
                away = x - value[node]
                other = bound - ox * ox + away * away
            elif axis == 1:
                away = y - value[node]
                other = bound - oy * oy + away * away
            else:
                away = z - value[node]
                other = bound - oz * oz + away * away
            level += 1
            right = away >= zero
            if other < best:
                nodes[top, 3] = level
                offsets[top, 0] = away if axis == 0 else ox
                offsets[top, 1] = away if axis == 1 else oy
                offsets[top, 2] = away if axis == 2 else oz
                offsets[top, 3] = other
                if right:
                    nodes[top, 0], nodes[top, 1], nodes[top, 2] = 2 * node, low, mid
                else:
                    nodes[top, 0], nodes[top, 1], nodes[top, 2] = 2 * node + 1, mid, high
                top += 1
            if right:
                node, low = 2 * node + 1, mid
            else:
                node, high = 2 * node, mid
        for i in range(low, high):
            dx, dy, dz = tree[i, 0] - x, tree[i, 1] - y, tree[i, 2] - z
            square = dx * dx + dy * dy + dz * dz
            if square < best:
                best = square
                found = i
        while top > 0 and not offsets[top - 1, 3] < best:
            top -= 1
        if top == 0:
            return found, best
        top -= 1
        node, low, high, level = nodes[top, 0], nodes[top, 1], nodes[top, 2], nodes[top, 3]
        ox, oy, oz, bound = offsets[top, 0], offsets[top, 1], offsets[top, 2], offsets[top, 3]


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def _sum_block(  # type: ignore[no-untyped-def]
    block, tree, normals, dimension, value, levels, points, own, pose, centre, scale, reach, nearest, residuals,
    across, out,
):  # fmt: skip
    """One block of `surface_equations`."""
    n = points.shape[0]
    turned = own.shape[0] > 0
    one = np.float32(1.0)
    nodes = np.empty((_STACK, 4), np.int32)
    offsets = np.empty((_STACK, 4), np.float32)
    row = np.empty(6)
    for c in range(SUMS):
        out[block, c] = 0.0
    for i in range(n * block // BLOCKS, n * (block + 1) // BLOCKS):
        px, py, pz = points[i, 0], points[i, 1], points[i, 2]
        x = np.float32(pose[0, 0] * px + pose[0, 1] * py + pose[0, 2] * pz + pose[0, 3])
        y = np.float32(pose[1, 0] * px + pose[1, 1] * py + pose[1, 2] * pz + pose[1, 3])
        z = np.float32(pose[2, 0] * px + pose[2, 1] * py + pose[2, 2] * pz + pose[2, 3])
        k, square = _closest(tree, dimension, value, levels, x, y, z, nearest[i], nodes, offsets)
        nearest[i] = k
        if k < 0:
            residuals[i], across[i] = np.float32(np.inf), np.float32(np.inf)
            continue
        nx, ny, nz = normals[k, 0], normals[k, 1], normals[k, 2]
        facing = one
        if turned:
            ax = np.float32(pose[0, 0] * own[i, 0] + pose[0, 1] * own[i, 1] + pose[0, 2] * own[i, 2])
            ay = np.float32(pose[1, 0] * own[i, 0] + pose[1, 1] * own[i, 1] + pose[1, 2] * own[i, 2])
            az = np.float32(pose[2, 0] * own[i, 0] + pose[2, 1] * own[i, 1] + pose[2, 2] * own[i, 2])
            facing = nx * ax + ny * ay + nz * az
            if facing > np.float32(0.5):
                nx, ny, nz = nx + ax, ny + ay, nz + az
                length = one / np.sqrt(nx * nx + ny * ny + nz * nz)
                nx, ny, nz = nx * length, ny * length, nz * length
        dx, dy, dz = x - tree[k, 0], y - tree[k, 1], z - tree[k, 2]
        r = nx * dx + ny * dy + nz * dz
        along = np.sqrt(max(square - r * r, np.float32(0.0)))
        residuals[i] = r
        across[i] = along if facing > np.float32(0.5) else np.float32(np.inf)
        if not (across[i] <= reach and abs(r) < scale):
            continue
        share = r / scale
        w = (one - share * share) * (one - share * share)
        ax64, ay64, az64 = x - centre[0], y - centre[1], z - centre[2]
        row[0], row[1], row[2] = nx, ny, nz
        row[3] = ay64 * nz - az64 * ny
        row[4] = az64 * nx - ax64 * nz
        row[5] = ax64 * ny - ay64 * nx
        for a in range(6):
            wa = w * row[a]
            for b in range(a, 6):
                out[block, 6 * a + b] += wa * row[b]
            out[block, G + a] += wa * r
        out[block, RR] += w * r * r
        out[block, WEIGHT] += w
        out[block, USED] += 1.0
    for a in range(6):
        for b in range(a):
            out[block, 6 * a + b] = out[block, 6 * b + a]


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def surface_equations(  # type: ignore[no-untyped-def]
    tree, normals, dimension, value, levels, points, own, pose, centre, scale, reach, nearest, residuals, across, out
):
    """Sums of one Gauss-Newton step of the distance to the tangent planes of the nearest points, per block.

    ``tree``, ``normals`` (m, 3) float32: the fixed surface; ``points`` (n, 3) float32 and ``own`` (n, 3), their
    normals, or (0, 3): the moving one; ``pose`` (3, 4) float64; ``centre`` (3,): about which the step turns; ``scale``:
    Tukey's weight ``(1 - (r / scale)²)²`` of a residual; ``reach``: points whose nearest lies further along the surface
    than this have no partner. With ``own``, the plane is halfway between both normals (Rusinkiewicz 2019, ACM TOG
    38:80), right to second order, and a partner that faces another way (more than 60 degrees) is none.

    ``nearest`` (n,) int32: number in the tree, in: a guess, or -1, out: what was found. ``residuals``, ``across`` (n,)
    float32: distance from the plane, and along it; ``across`` is inf where there is no partner at all. ``out`` (BLOCKS,
    SUMS) float64.
    """
    if points.shape[0] <= _SERIAL:
        for block in range(BLOCKS):
            _sum_block(
                block, tree, normals, dimension, value, levels, points, own, pose, centre, scale, reach, nearest,
                residuals, across, out,
            )  # fmt: skip
    else:
        for block in prange(BLOCKS):
            _sum_block(
                block, tree, normals, dimension, value, levels, points, own, pose, centre, scale, reach, nearest,
                residuals, across, out,
            )  # fmt: skip


@njit(nogil=True, cache=True, error_model="numpy")
def _smallest(values, scratch, count):  # type: ignore[no-untyped-def]
    """The ``count``-th smallest of ``values``; numbers that are not come last."""
    n = values.shape[0]
    for i in range(n):
        scratch[i] = values[i] if values[i] == values[i] else np.float32(np.inf)
    left, right, k = 0, n - 1, count - 1
    while left < right:
        pivot = scratch[(left + right) >> 1]
        i, j = left, right
        while i <= j:
            while scratch[i] < pivot:
                i += 1
            while scratch[j] > pivot:
                j -= 1
            if i <= j:
                swap = scratch[i]
                scratch[i] = scratch[j]
                scratch[j] = swap
                i += 1
                j -= 1
        if k <= j:
            right = j
        elif k >= i:
            left = i
        else:
            break
    return scratch[k]


@njit(nogil=True, cache=True, error_model="numpy")
def _solve(h, g, step):  # type: ignore[no-untyped-def]
    """``step = h⁻¹ g`` of a positive (6, 6) by Cholesky in place; False where it is not positive."""
    for a in range(6):
        for b in range(a + 1):
            s = h[a, b]
            for c in range(b):
                s -= h[a, c] * h[b, c]
            if a == b:
                if not s > 0.0:
                    return False
                h[a, a] = np.sqrt(s)
            else:
                h[a, b] = s / h[b, b]
    for a in range(6):
        s = g[a]
        for c in range(a):
            s -= h[a, c] * step[c]
        step[a] = s / h[a, a]
    for a in range(5, -1, -1):
        s = step[a]
        for c in range(a + 1, 6):
            s -= h[c, a] * step[c]
        step[a] = s / h[a, a]
    return True


# Neither contract nor reassoc: the same bits compiled and cached (make bits).
@njit(nogil=True, cache=True, error_model="numpy", fastmath={"nsz"})
def _settle(  # type: ignore[no-untyped-def]
    s, tree, normals, dimension, value, levels, points, own, share, damping, iterations, poses, scores
):
    """One start of `search`."""
    n = points.shape[0]
    turned = own.shape[0] > 0
    kept = max(6, int(share * n))
    nodes = np.empty((_STACK, 4), np.int32)
    offsets = np.empty((_STACK, 4), np.float32)
    nearest = np.empty(n, np.int32)
    nearest[:] = -1
    squares = np.empty(n, np.float32)
    sorting = np.empty(n, np.float32)
    moved = np.empty((n, 3), np.float32)
    h = np.empty((6, 6))
    g = np.empty(6)
    row = np.empty(6)
    step = np.empty(6)
    turn = np.empty((3, 3))
    rotated = np.empty((3, 4))
    pose = poses[s]
    scores[s] = np.inf
    last = iterations
    for iteration in range(iterations + 1):
        for i in range(n):
            for c in range(3):
                moved[i, c] = (
                    pose[c, 0] * points[i, 0] + pose[c, 1] * points[i, 1] + pose[c, 2] * points[i, 2] + pose[c, 3]
                )
            nearest[i], squares[i] = _closest(
                tree, dimension, value, levels, moved[i, 0], moved[i, 1], moved[i, 2], nearest[i], nodes, offsets
            )
            if turned and nearest[i] >= 0:
                facing = 0.0
                for c in range(3):
                    facing += normals[nearest[i], c] * (
                        pose[c, 0] * own[i, 0] + pose[c, 1] * own[i, 1] + pose[c, 2] * own[i, 2]
                    )
                # A partner that faces another way is as bad as one twice as far, and 10 mm.
                if facing < 0.5:
                    squares[i] = np.float32(4.0) * squares[i] + np.float32(100.0)
        cut = _smallest(squares, sorting, min(kept, n))
        total, used = 0.0, 0
        for i in range(n):
            if squares[i] <= cut:
                total += squares[i]
                used += 1
        scores[s] = np.sqrt(total / max(used, 1))
        # Not numba's isfinite: it subtracts a number from itself, which `reassoc` makes 0.
        if iteration >= last or not scores[s] < np.inf:
            break
        cx, cy, cz = 0.0, 0.0, 0.0
        for i in range(n):
            if squares[i] <= cut:
                cx += moved[i, 0] / used
                cy += moved[i, 1] / used
                cz += moved[i, 2] / used
        for a in range(6):
            g[a] = 0.0
            for b in range(6):
                h[a, b] = 0.0
        for i in range(n):
            if not squares[i] <= cut:
                continue
            k = nearest[i]
            nx, ny, nz = normals[k, 0], normals[k, 1], normals[k, 2]
            ax, ay, az = moved[i, 0] - cx, moved[i, 1] - cy, moved[i, 2] - cz
            r = nx * (moved[i, 0] - tree[k, 0]) + ny * (moved[i, 1] - tree[k, 1]) + nz * (moved[i, 2] - tree[k, 2])
            row[0], row[1], row[2] = nx, ny, nz
            row[3], row[4], row[5] = ay * nz - az * ny, az * nx - ax * nz, ax * ny - ay * nx
            for a in range(6):
                for b in range(a + 1):
                    h[a, b] += row[a] * row[b]
                g[a] -= row[a] * r
        # Scaled to the block of the shifts, and that of the turns: what the surface leaves open does not run away.
        shift = damping * (h[0, 0] + h[1, 1] + h[2, 2]) / 3.0
        spin = damping * (h[3, 3] + h[4, 4] + h[5, 5]) / 3.0
        for a in range(3):
            h[a, a] += shift
            h[a + 3, a + 3] += spin
        if not _solve(h, g, step):
            break
        # At rest: one more look, and that is it.
        length = step[0] * step[0] + step[1] * step[1] + step[2] * step[2]
        if length + _AT_REST_SIZE * (step[3] * step[3] + step[4] * step[4] + step[5] * step[5]) < _AT_REST:
            last = iteration + 1
        angle = np.sqrt(step[3] * step[3] + step[4] * step[4] + step[5] * step[5])
        a1 = 1.0 - angle * angle / 6.0 if angle < 1e-4 else np.sin(angle) / angle
        a2 = 0.5 if angle < 1e-4 else (1.0 - np.cos(angle)) / (angle * angle)
        wx, wy, wz = step[3], step[4], step[5]
        turn[0, 0] = 1.0 - a2 * (wy * wy + wz * wz)
        turn[1, 1] = 1.0 - a2 * (wx * wx + wz * wz)
        turn[2, 2] = 1.0 - a2 * (wx * wx + wy * wy)
        turn[0, 1], turn[1, 0] = a2 * wx * wy - a1 * wz, a2 * wx * wy + a1 * wz
        turn[0, 2], turn[2, 0] = a2 * wx * wz + a1 * wy, a2 * wx * wz - a1 * wy
        turn[1, 2], turn[2, 1] = a2 * wy * wz - a1 * wx, a2 * wy * wz + a1 * wx
        for a in range(3):
            for b in range(4):
                away = 0.0
                if b == 3:
                    away = turn[a, 0] * (pose[0, 3] - cx) + turn[a, 1] * (pose[1, 3] - cy)
                    away += turn[a, 2] * (pose[2, 3] - cz) + step[a]
                else:
                    away = turn[a, 0] * pose[0, b] + turn[a, 1] * pose[1, b] + turn[a, 2] * pose[2, b]
                rotated[a, b] = away
        rotated[0, 3] += cx
        rotated[1, 3] += cy
        rotated[2, 3] += cz
        for a in range(3):
            for b in range(4):
                pose[a, b] = rotated[a, b]


# Neither contract nor reassoc: the same bits compiled and cached (make bits).
@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz"})
def search(  # type: ignore[no-untyped-def]
    tree, normals, dimension, value, levels, points, own, share, damping, iterations, poses, scores
):
    """From many starts, a few steps each with the ``share`` of the points that lie nearest.

    ``points``, ``own`` as in `surface_equations`; ``damping``: share of the diagonal that is added to it; ``poses``
    (s, 3, 4) float64: starts in, ends out; ``scores`` (s,) float64: root mean square distance of that share at the end.
    """
    if poses.shape[0] <= _FEW_STARTS:
        for s in range(poses.shape[0]):
            _settle(s, tree, normals, dimension, value, levels, points, own, share, damping, iterations, poses, scores)
    else:
        for s in prange(poses.shape[0]):
            _settle(s, tree, normals, dimension, value, levels, points, own, share, damping, iterations, poses, scores)


_POINTS = "float32[:, ::1]"
_TREE = f"{_POINTS}, int8[::1], float32[::1], int64"

KERNELS = (
    KernelSpec("surface: tree", build_tree, (f"{_POINTS}, int64, int32[::1], int8[::1], float32[::1]",)),
    KernelSpec(
        "surface: normal equations",
        surface_equations,
        (
            f"{_POINTS}, {_TREE}, {_POINTS}, {_POINTS}, float64[:, ::1], float64[::1], float32, float32, int32[::1], "
            "float32[::1], float32[::1], float64[:, ::1]",
        ),
    ),
    KernelSpec(
        "surface: starts",
        search,
        (f"{_POINTS}, {_TREE}, {_POINTS}, {_POINTS}, float64, float64, int64, float64[:, :, ::1], float64[::1]",),
    ),
)
