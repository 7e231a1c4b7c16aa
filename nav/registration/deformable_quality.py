"""How far a deformable registration may be trusted: similarity, agreement, there and back, the error to be expected.

The expected error is a sum of variances, each from something that was measured on the pair at hand:

* noise: the squared difference that is left, over how much the gradients around hold on to the direction that they hold
  least (the smallest eigenvalue of the normal equations);
* there and back: the squared distance to where the other registration, that of the fixed to the moving image, leads;
* apart: the squared distance between the smooth solution and the one of the fine search;
* rough: the squared distance of the field from its own smooth course, which is what a search for the wrong thing and
  true small motion have in common.

The four factors and the shape of the distribution were fitted on known deformations of two abdominal CTs (other ones
than those it is measured on) in ``benchmarks/registration/deformable.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter, map_coordinates, uniform_filter

from nav.geometry.displacement import DisplacementField
from nav.geometry.volume import Volume
from nav.registration import deformable_kernels as kernels
from nav.registration import rigid_kernels
from nav.registration.deformable_stage import Field, Stage
from nav.registration.error_distribution import radius_of_share
from nav.registration.pyramid import NO_MASK
from nav.registration.verdict import Verdict

__all__ = ["Quality", "expected_error_mm", "judged", "looked_at"]

Array = NDArray[np.float64]

#: Factors of the four variances, as the head of this file names them, and degrees of freedom of the t distribution.
NOISE, THERE_AND_BACK, APART, ROUGH = 0.016, 0.097, 0.16, 0.059
DEGREES_OF_FREEDOM = 6.0
#: Where nothing at all holds on, the smallest eigenvalue is taken as this.
LEAST_HOLD = 1e-3
#: Places that hold less than this (a few percent of a body, and air) do not count where there and back are compared.
LEAST_SEEN = 0.01
#: Widths of the windows over which they are taken, in nodes.
WIDE_NODES, ROUGH_NODES, NARROW_NODES = 2.0, 1.5, 1.0
#: Patches so wide agree from this correlation on; those with less deviation show nothing.
PATCH_MM, AGREES, LEAST_STRUCTURE = 20.0, 0.5, 0.02
#: A place is lost when there and back miss by more than this, mm.
LOST_MM = 5.0
#: Of right registrations (abdomen, breathing livers, a lung) the least agreement was 0.93, of wrong ones (mirrored,
#: other patients, 60 mm off) the largest 0.84. (The similarity says more of noise than of either.)
GOOD_AGREEMENT, LEAST_AGREEMENT = 0.88, 0.7
GOOD_LOST, MOST_LOST = 0.2, 0.5
#: Whole abdomens, lungs and livers that breathe by 30 mm overlap by 0.93 and more.
GOOD_OVERLAP, LEAST_OVERLAP = 0.75, 0.25
_WRONG = "another patient or modality, a mirrored image, or a start too far off"


@dataclass(frozen=True, slots=True, eq=False)
class Quality:
    """What was found; meaning in `DeformableRegistration`."""

    before: float
    after: float
    overlap: float
    agreement: float
    consistency_mm: float
    lost_share: float
    error_field: Volume


def looked_at(stage: Stage, found: DisplacementField, apart: Field, back: Stage, returned: Field) -> Quality:
    """Quality of a field on one stage.

    Parameters
    ----------
    stage : Stage
        Fixed to moving.
    found : DisplacementField
        On top of the pose of the stage.
    apart : (k, j, i) float32
        Distance between the two solutions at the nodes of ``stage``, mm.
    back, returned : Stage, (k, j, i, 3)
        Moving to fixed, and the field found on its nodes.
    """
    field, device = stage.field_of(found), stage.device
    stage.warp(device.array(np.zeros_like(field)))
    looked = _looked(stage)
    before = _correlation(stage, looked)
    there, inside = device.array(field), device.empty(stage.volume.array.shape, np.uint8)
    # A mask is a choice; only where the image ends is nothing to choose.
    stage.moved_by(there, device.array(NO_MASK), inside)
    stage.warp(there)
    looked = _looked(stage)
    after = _correlation(stage, looked)
    matrix = device.home(stage.normal_equations()[0])
    hold = np.maximum(_least_eigenvalue([gaussian_filter(matrix[..., c], WIDE_NODES) for c in range(6)]), LEAST_HOLD)
    left = gaussian_filter(
        stage.at_nodes(uniform_filter(stage.squared_difference(), 2 * kernels.STEP + 1)), 1.5 * WIDE_NODES
    )
    away = _there_and_back(stage, field, back, returned)
    course = np.stack([gaussian_filter(field[..., c], WIDE_NODES, mode="nearest") for c in range(3)], axis=-1)
    rough = gaussian_filter(((field - course) ** 2).sum(axis=3), ROUGH_NODES)
    variance = NOISE * left / hold + THERE_AND_BACK * gaussian_filter(away**2, WIDE_NODES)
    variance += APART * gaussian_filter(apart**2, NARROW_NODES) + ROUGH * rough
    seen = stage.at_nodes(looked) & (hold > LEAST_SEEN)
    if not seen.any():
        seen = np.ones(stage.nodes, bool)
    error = np.sqrt(variance).astype(np.float32)
    return Quality(
        before, after, float(stage.at_nodes(device.home(inside))[_in_mask(stage)].mean()), _agreement(stage),
        float(np.sqrt((away[seen] ** 2).mean())), float((away[seen] > LOST_MM).mean()),
        Volume.of(error, stage.ras_from_node),
    )  # fmt: skip


def expected_error_mm(error_field: Volume, points_ras: ArrayLike, share: float) -> Array:
    """(n,) radius, mm, that holds ``share`` of the errors at points (n, 3), RAS mm; beyond the field its border's."""
    at = error_field.to_index(np.atleast_2d(np.asarray(points_ras, np.float64)))[:, ::-1].T
    error = map_coordinates(error_field.array, at, np.float64, order=1, mode="nearest")
    return np.asarray(error * _radius(share))


@lru_cache(maxsize=32)
def _radius(share: float) -> float:
    """Radius that holds ``share`` of errors whose scale is 1 mm in all."""
    return radius_of_share(np.eye(3) / 3.0, share, DEGREES_OF_FREEDOM)


def _in_mask(stage: Stage) -> NDArray[np.bool_]:
    if not stage.fixed.mask.size:
        return np.ones(stage.nodes, bool)
    inside = np.asarray(stage.at_nodes(stage.fixed.mask) != 0)
    return inside if inside.any() else np.ones(stage.nodes, bool)


def _looked(stage: Stage) -> NDArray[np.bool_]:
    """(k, j, i) voxels that counted and show something: with more deviation around than noise has."""
    home = stage.device.home
    return np.asarray((home(stage.valid) & home(stage.counted) != 0) & (stage.fixed.array > 0.0))


def _correlation(stage: Stage, looked: NDArray[np.bool_]) -> float:
    # Every other voxel along each axis says the same.
    some = (slice(None, None, 2),) * 3
    counted = looked[some]
    one, two = (
        stage.device.home(part)[some][counted].astype(np.float64) for part in (stage.normal, stage.moved_normal)
    )
    if len(one) < 2 or one.std() == 0.0 or two.std() == 0.0:
        return 0.0
    return float(np.corrcoef(one, two)[0, 1])


def _there_and_back(stage: Stage, field: Field, back: Stage, returned: Field) -> Array:
    """(k, j, i) distance, mm, at the nodes of ``stage``."""
    start = stage.on_nodes(field).grid.voxels_ras()
    there = (start + field.reshape(-1, 3)) @ stage.pose[:3, :3].T + stage.pose[:3, 3]
    at = back.on_nodes(returned).grid.to_index(there)[:, ::-1].T
    more = np.stack([map_coordinates(returned[..., c], at, order=1, mode="nearest") for c in range(3)], axis=1)
    home = (there + more) @ back.pose[:3, :3].T + back.pose[:3, 3]
    return np.asarray(np.linalg.norm(home - start, axis=1).reshape(stage.nodes))


def _least_eigenvalue(parts: list[NDArray[np.float32]]) -> Array:
    """Of symmetric 3×3 matrices (xx, xy, xz, yy, yz, zz), in closed form (Smith, Commun. ACM 1961)."""
    xx, xy, xz, yy, yz, zz = (part.astype(np.float64) for part in parts)
    mean = (xx + yy + zz) / 3.0
    off = xy**2 + xz**2 + yz**2
    p = np.sqrt(((xx - mean) ** 2 + (yy - mean) ** 2 + (zz - mean) ** 2 + 2.0 * off) / 6.0)
    q = np.maximum(p, 1e-30)
    a, b, c = (xx - mean) / q, (yy - mean) / q, (zz - mean) / q
    d, e, f = xy / q, xz / q, yz / q
    half = (a * (b * c - f * f) - d * (d * c - f * e) + e * (d * f - b * e)) / 2.0
    angle = np.arccos(np.clip(half, -1.0, 1.0)) / 3.0
    return np.asarray(mean + 2.0 * p * np.cos(angle + 2.0 * np.pi / 3.0))


def _agreement(stage: Stage) -> float:
    """Share of the patches with structure that agree, of the images as they lie on each other now."""
    side = np.maximum(2, np.round(PATCH_MM / stage.volume.spacing_mm[::-1])).astype(np.int64)
    out = np.empty(tuple(-(-np.array(stage.volume.array.shape) // side)))
    home = stage.device.home
    rigid_kernels.patch_correlations(
        stage.fixed.array, home(stage.counted), home(stage.moved), home(stage.valid), np.eye(4, dtype=np.float32), side,
        LEAST_STRUCTURE**2, out,
    )  # fmt: skip
    known = out[np.isfinite(out)]
    return float((known > AGREES).mean()) if len(known) else 0.0


def judged(found: Quality) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict, and a sentence for each thing that speaks against the registration, the worst first."""
    wrong, doubts = [], []
    inside = f"only {found.overlap:.0%} of the fixed image (its mask) lies inside the moving one"
    if found.overlap < LEAST_OVERLAP:
        wrong.append(f"{inside} (least {LEAST_OVERLAP:.0%})")
    elif found.overlap < GOOD_OVERLAP:
        doubts.append(
            f"{inside} (good from {GOOD_OVERLAP:.0%}): beyond it the field is only continued; mask what matters"
        )
    seen = f"the images show the same in {found.agreement:.0%} of the patches only"
    if found.agreement < LEAST_AGREEMENT:
        wrong.append(f"{seen} (least {LEAST_AGREEMENT:.0%}): {_WRONG}")
    elif found.agreement < GOOD_AGREEMENT:
        doubts.append(f"{seen} (good from {GOOD_AGREEMENT:.0%}): {_WRONG}")
    lost = f"in {found.lost_share:.0%} of the image the way back misses by more than {LOST_MM:g} mm"
    if found.lost_share > MOST_LOST:
        wrong.append(f"{lost} (most {MOST_LOST:.0%}): {_WRONG}")
    elif found.lost_share > GOOD_LOST:
        doubts.append(f"{lost} (good up to {GOOD_LOST:.0%}): look at expected_error.nrrd for where")
    if wrong:
        return Verdict.IMPLAUSIBLE, (*wrong, *doubts)
    return (Verdict.DOUBTFUL, tuple(doubts)) if doubts else (Verdict.GOOD, ())
