"""Deformable registration of two images: a search for large motion, then Gauss-Newton from coarse to fine.

The images are compared after both were normalised by mean and deviation of a box around every voxel, so that brightness
and contrast may differ from place to place. The displacement u, on top of a rigid pose, makes small

    sum over voxels of (fixed(x) - moving(pose (x + u(x))))²  +  stiffness · sum over edges of w |∇(u - S u)|²,

S a smoothing over a few nodes: what is bent is paid for, what is shifted, turned or stretched evenly is not (a first
order term would shorten every large deformation). The weights w fall where the body is strained strongly, so that
organs slide along each other, and rise where it would fold.

Large motion is found first by trying every displacement within `REACH_MM` at about 5 mm, and again within
`FINE_REACH_MM` around what was found at about 3 mm: block by block the least squared difference, tied more and more
strongly to the median of the neighbours (after the convex coupling of Steinbrücker, Pock and Cremers, ICCV 2009). A
smooth solution follows organs well and loses sliding faces; the search keeps the faces and errs inside. Both are
refined, and every place takes the one whose images agree better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import median_filter

from nav.geometry.displacement import DisplacementField
from nav.geometry.kernels import KernelSpec
from nav.geometry.rigid import Rigid
from nav.geometry.volume import Volume
from nav.registration import deformable_kernels, pyramid, rigid_kernels
from nav.registration.deformable_device import CPU, Device
from nav.registration.deformable_quality import expected_error_mm, judged, looked_at
from nav.registration.deformable_refinement import Marks, refined, without_folds
from nav.registration.deformable_search import searched
from nav.registration.deformable_stage import Field, Stage, level_images, stages_of
from nav.registration.verdict import ImageRegistrationError, Verdict

__all__ = ["KERNELS", "REACH_MM", "DeformableRegistration", "prepare_device", "register_deformable"]

Array = NDArray[np.float64]
Progress = Callable[[float, str], None]

#: What a registration needs compiled.
KERNELS: tuple[KernelSpec, ...] = (*pyramid.KERNELS, *deformable_kernels.KERNELS, *rigid_kernels.KERNELS)

REACH_MM, FINE_REACH_MM = 28.0, 12.0
#: Voxels of a block of either search.
COARSE_BLOCK, FINE_BLOCK = 2, 3
#: Steps on the coarse, the fine and the finer levels, and after both solutions were put together.
COARSE_STEPS, FINE_STEPS, FINER_STEPS, FUSED_STEPS = 6, 5, 3, 4
#: On the fine level of the way back, which need not be as exact.
BACK_STEPS = 3
#: Share of the last step that the next one starts ahead: steps shrink slowly, and three do the work of five. (Not where
#: two solutions were put together: there the way ahead is not that of the last step.)
MOMENTUM = 0.5
#: The search's solution is taken where it costs less than this share of the smooth one, in a window so wide.
BETTER_SHARE, WINDOW_MM = 0.85, 17.0
#: A landmark known to 1 mm pulls like so many voxels, whose squared difference of the normalised images is this.
LANDMARK_VOXELS, NORMAL_NOISE = 100.0, 0.1


@dataclass(frozen=True, slots=True, eq=False)
class DeformableRegistration:
    """A displacement field between two images, and how far to trust it.

    Attributes
    ----------
    displacement : DisplacementField
        Fixed to moving, RAS mm, the rigid part included.
    iterations : int
        Searches and Gauss-Newton steps on all levels, the way back included.
    similarity_before, similarity_after : float
        Correlation of the locally normalised images at the start and at the end, -1 to 1.
    overlap : float
        Share of the voxels of the fixed image (and its mask) that lie inside the moving one (and its).
    agreement : float
        Share of the patches with structure, 20 mm wide, in which both images show the same.
    jacobian_min, jacobian_max, folded_fraction : float
        Of the determinant of the deformation, over the fixed image (and its mask); cells below 0 are folded.
    inverse_consistency_mm : float
        Root mean square distance between a point and where the registration of the fixed to the moving image, made
        without knowing of this one, takes it back to.
    error_field : Volume
        (k, j, i) float32: expected error, mm, root mean square.
    verdict : Verdict
    reasons : tuple of str
        Why the verdict is not good; empty when it is.
    """

    displacement: DisplacementField
    iterations: int
    similarity_before: float
    similarity_after: float
    overlap: float
    agreement: float
    jacobian_min: float
    jacobian_max: float
    folded_fraction: float
    inverse_consistency_mm: float
    error_field: Volume
    verdict: Verdict
    reasons: tuple[str, ...]

    def expected_error_mm(self, points_ras: ArrayLike, share: float = 0.95) -> Array:
        """(n,) radius, mm, that holds ``share`` of the errors at points of the fixed image, (n, 3) RAS mm."""
        return expected_error_mm(self.error_field, points_ras, share)


def _of_better(stage: Stage, smooth: Field, sharp: Field) -> Field:
    """At every node the field that makes the images agree better; ``smooth`` unless the other is clearly better."""
    better = stage.costs(sharp, WINDOW_MM) < BETTER_SHARE * stage.costs(smooth, WINDOW_MM)
    better = median_filter(better.view(np.uint8), 3, mode="nearest") != 0
    return np.where(better[..., None], sharp, smooth)


def _matched(
    stages: list[Stage],
    prior: DisplacementField | None,
    marks: Marks | None,
    report: Callable[[], None],
    *,
    sliding: bool,
) -> tuple[Stage, Field, Field]:
    """The finest stage, its field, and, on the nodes of the fine one, how far the two solutions were apart, mm.

    ``stages``: the coarse, the fine, and finer ones; ``prior`` saves the search.
    """
    coarse, fine = stages[0], stages[min(1, len(stages) - 1)]
    apart = np.zeros(fine.nodes, np.float32)
    if prior is not None:
        field = refined(coarse, coarse.field_of(prior), FUSED_STEPS, marks, report, MOMENTUM)
        field = refined(fine, fine.field_of(coarse.on_nodes(field)), FINE_STEPS, marks, report, MOMENTUM)
    else:
        field, wide = _smooth_solution(stages, marks, report, FINE_STEPS)
        if sliding:
            report()
            near = searched(fine, FINE_REACH_MM, FINE_BLOCK, wide)
            sharp = refined(fine, fine.field_of(near), FINE_STEPS, marks, report, MOMENTUM)
            apart = np.asarray(np.linalg.norm(sharp - field, axis=3), np.float32)
            field = refined(fine, _of_better(fine, field, sharp), FUSED_STEPS, marks, report)
    last = fine
    for stage in stages[2:]:
        field = refined(stage, stage.field_of(last.on_nodes(field)), FINER_STEPS, marks, report, MOMENTUM)
        last = stage
    return last, field, apart


def _smooth_solution(
    stages: list[Stage], marks: Marks | None, report: Callable[[], None], steps: int
) -> tuple[Field, DisplacementField]:
    """The field on the fine stage that follows from the wide search by refining alone; and what that search found."""
    coarse, fine = stages[0], stages[min(1, len(stages) - 1)]
    report()
    wide = searched(coarse, REACH_MM, COARSE_BLOCK, None)
    smooth = refined(coarse, coarse.field_of(wide), COARSE_STEPS, marks, report, MOMENTUM)
    return refined(fine, fine.field_of(coarse.on_nodes(smooth)), steps, marks, report, MOMENTUM), wide


def register_deformable(
    fixed: Volume,
    moving: Volume,
    *,
    initial: Rigid,
    fixed_mask: NDArray[np.generic] | None = None,
    moving_mask: NDArray[np.generic] | None = None,
    landmarks: tuple[Array, Array, Array] | None = None,
    start: DisplacementField | None = None,
    finest_mm: float = 0.0,
    sliding: bool = True,
    device: Device = CPU,
    progress: Progress | None = None,
) -> DeformableRegistration:
    """Bring ``moving`` onto ``fixed``, following what a rigid transform cannot.

    Parameters
    ----------
    fixed, moving : Volume
        Any spacing, orientation and scalar type; finite; at least 8 voxels along every axis. Brightness and contrast
        may differ, not the modality.
    initial : Rigid
        Moving to fixed, RAS mm: of `register_rigid`, say. What it misses should be within `REACH_MM`.
    fixed_mask, moving_mask : (k, j, i), optional
        On the grids of their images; where not 0 is looked at. The field is smooth beyond.
    landmarks : (fixed (n, 3), moving (n, 3), sd (n,)), optional
        Points that belong together, RAS mm, and how well they are known, mm. They pull, they do not bind.
    start : DisplacementField, optional
        Fixed to moving, of an earlier registration: the search for large motion is left out.
    finest_mm : float
        Levels finer than this are not used.
    sliding : bool
        Look for faces that slide along each other: a second, finer search. Without it a third of the time is saved.
    device : Device
        Where the dense steps run: `deformable_device.device_named` gives a GPU. Its result differs by rounding.
    progress : callable, optional
        Gets the share done and a text; what it raises ends the registration.

    Returns
    -------
    DeformableRegistration

    Raises
    ------
    ImageRegistrationError
        The images cannot be registered at all: constant, not finite, too thin, or an empty mask.
    """
    one, two = level_images(fixed, fixed_mask, "fixed"), level_images(moving, moving_mask, "moving")
    there = stages_of(one, two, np.linalg.inv(initial.matrix), finest_mm, device)
    fine = there[min(1, len(there) - 1)]
    # The way back needs no more than the fine stage.
    back = stages_of(two[:2], one, initial.matrix, finest_mm, device)
    steps = _Steps(progress, sought=start is None, sliding=sliding, finer=len(there[2:]))
    marks = None if landmarks is None else _marks(landmarks, initial)
    prior = None if start is None else _without_pose(start, initial)
    last, field, apart = _matched(there, prior, marks, steps, sliding=sliding)
    steps.title = "the way back"
    returned, _ = _smooth_solution(back, None, steps, BACK_STEPS)
    steps.title = "how far to trust it"
    steps()
    field, least, most = without_folds(field, last.ras_from_node)
    found = last.on_nodes(field)
    looked = looked_at(fine, found, apart, back[-1], returned)
    inside = _cells_in(last, least.shape)
    verdict, reasons = judged(looked)
    return DeformableRegistration(
        displacement=_with_pose(found, initial),
        iterations=steps.done,
        similarity_before=looked.before,
        similarity_after=looked.after,
        overlap=looked.overlap,
        agreement=looked.agreement,
        jacobian_min=float(least[inside].min()),
        jacobian_max=float(most[inside].max()),
        folded_fraction=float((least[inside] <= 0.0).mean()),
        inverse_consistency_mm=looked.consistency_mm,
        error_field=looked.error_field,
        verdict=verdict,
        reasons=reasons,
    )


def prepare_device(device: Device) -> None:
    """Compile what a GPU needs, which else its first registration does; nothing on the processor (see `KERNELS`)."""
    if device is CPU:
        return
    noise = np.random.default_rng(1).normal(0.0, 1.0, (16, 16, 16)).astype(np.float32)
    volume = Volume.of(noise, np.diag([2.0, 2.0, 2.0, 1.0]))
    register_deformable(volume, volume, initial=Rigid.identity("MovingToFixed"), device=device)


@dataclass(slots=True)
class _Steps:
    """Counts the steps, and says how far it is."""

    progress: Progress | None
    sought: bool
    sliding: bool
    finer: int
    done: int = 0
    title: str = "there"

    def __call__(self) -> None:
        self.done += 1
        if self.progress is not None:
            back = 1 + COARSE_STEPS + BACK_STEPS
            there = 1 + COARSE_STEPS + FINE_STEPS if self.sought else FUSED_STEPS + FINE_STEPS
            there += 1 + FINE_STEPS + FUSED_STEPS if self.sought and self.sliding else 0
            self.progress(self.done / (there + self.finer * FINER_STEPS + back + 1), self.title)


def _marks(landmarks: tuple[Array, Array, Array], initial: Rigid) -> Marks:
    fixed, moving, sd = (np.asarray(part, np.float64) for part in landmarks)
    if fixed.ndim != 2 or fixed.shape[1:] != (3,) or moving.shape != fixed.shape or sd.shape != fixed.shape[:1]:
        raise ImageRegistrationError(
            f"landmarks have shapes {fixed.shape}, {moving.shape} and {sd.shape}; expected (n, 3), (n, 3) and (n,)"
        )
    if not (np.isfinite(fixed).all() and np.isfinite(moving).all() and (sd > 0.0).all() and np.isfinite(sd).all()):
        raise ImageRegistrationError("landmarks must be finite, and known to more than 0 mm")
    return Marks(fixed, initial.apply(moving) - fixed, LANDMARK_VOXELS * NORMAL_NOISE / sd**2)


def _with_pose(found: DisplacementField, initial: Rigid) -> DisplacementField:
    """The whole way from fixed to moving; with one more node at every border, so that it covers all of the image."""
    vectors = np.pad(found.vectors, ((1, 1), (1, 1), (1, 1), (0, 0)), mode="edge")
    one = np.eye(4)
    one[:3, 3] = -1.0
    grid = found.ras_from_index @ one
    wider = DisplacementField.of(vectors, grid)
    start = wider.grid.voxels_ras()
    whole = initial.inverse().apply(start + vectors.reshape(-1, 3)) - start
    return DisplacementField.of(whole.reshape(vectors.shape), grid)


def _without_pose(whole: DisplacementField, initial: Rigid) -> DisplacementField:
    start = whole.grid.voxels_ras()
    rest = initial.apply(start + whole.vectors.reshape(-1, 3)) - start
    return DisplacementField.of(rest.reshape(whole.vectors.shape), whole.ras_from_index)


def _cells_in(stage: Stage, cells: tuple[int, ...]) -> NDArray[np.bool_]:
    """Cells between nodes whose first voxel the mask holds."""
    if not stage.fixed.mask.size:
        return np.ones(cells, bool)
    inside = np.zeros(cells, bool)
    part = stage.fixed.mask[:: deformable_kernels.STEP, :: deformable_kernels.STEP, :: deformable_kernels.STEP] != 0
    k, j, i = (min(a, b) for a, b in zip(part.shape, cells, strict=True))
    inside[:k, :j, :i] = part[:k, :j, :i]
    return inside if inside.any() else np.ones(cells, bool)
