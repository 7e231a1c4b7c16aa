"""The simulated patient: CT, labels, breathing and the points a procedure needs; built once and cached on disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from drivers.room.access import TissueMap, choose_needle_path, choose_probe_window, skin_landmarks
from drivers.room.anatomy import PatientParameters, Tissue, acquire, build_anatomy
from drivers.room.breathing import BreathingField, breathing_weight
from drivers.room.geometry import PatientGeometry, Point, RoomError, look_along, unit
from nav.geometry.volume import Volume
from nav.io.case import Case, CaseIdentity, Landmark, PlannedPath

__all__ = ["LabelRoles", "PatientModel", "build_patient", "cache_folder", "patient_case", "patient_from_ct"]

F64 = NDArray[np.float64]
Progress = Callable[[str], None]

#: HU of the radio-opaque ring round each landmark's hole, and its radii (a 15 mm self-adhesive marker).
_MARKER_HU, _MARKER_RADIUS_MM, _MARKER_TUBE_MM = 700.0, 5.0, 1.9


@dataclass(frozen=True, slots=True)
class LabelRoles:
    """Which values of a label map mean what (several values may share a role).

    ``avoid`` holds what a needle must not cross besides bone (lung, bowel, great vessels). ``tumour`` must name at
    least one value; of several components the largest is the target unless a point is given.
    """

    tumour: tuple[int, ...]
    body: tuple[int, ...] = ()
    bone: tuple[int, ...] = ()
    spine: tuple[int, ...] = ()
    liver: tuple[int, ...] = ()
    vessels: tuple[int, ...] = ()
    avoid: tuple[int, ...] = ()


#: The built-in patient's labels.
BUILT_IN_ROLES = LabelRoles(
    tumour=(int(Tissue.TUMOUR_1), int(Tissue.TUMOUR_2), int(Tissue.TUMOUR_3)),
    body=tuple(int(t) for t in Tissue if t is not Tissue.OUTSIDE),
    bone=(int(Tissue.RIB), int(Tissue.SPINE)),
    spine=(int(Tissue.SPINE),),
    liver=tuple(
        int(t)
        for t in (
            Tissue.LIVER,
            Tissue.PORTAL_VEIN,
            Tissue.HEPATIC_VEIN,
            Tissue.TUMOUR_1,
            Tissue.TUMOUR_2,
            Tissue.TUMOUR_3,
        )
    ),
    vessels=(int(Tissue.PORTAL_VEIN), int(Tissue.HEPATIC_VEIN)),
    avoid=tuple(int(t) for t in (Tissue.LUNG, Tissue.GREAT_VESSEL, Tissue.KIDNEY, Tissue.BOWEL, Tissue.HEART)),
)


@dataclass(frozen=True, slots=True, eq=False)
class PatientModel:
    """A patient at exhale.

    Attributes
    ----------
    geometry : PatientGeometry
    ct : Volume
        int16 HU, as the scanner would give it.
    clean : Volume
        int16 HU without noise, on the same grid: what the simulated devices look at.
    labels : Volume
        uint8 or uint16 on the same grid.
    weight : (k, j, i) float32
        Breathing weight, with ``weight_affine`` (4, 4).
    roles : LabelRoles
    folder : Path
        Where it is cached; other processes load it from there (memory-mapped).
    source : str
        ``built-in`` or where the CT came from.
    """

    geometry: PatientGeometry
    ct: Volume
    clean: Volume
    labels: Volume
    weight: NDArray[np.float32]
    weight_affine: F64
    roles: LabelRoles
    folder: Path
    source: str

    def breathing(self, amplitude_mm: float) -> BreathingField:
        """The breathing field at a peak-to-peak amplitude, mm."""
        return BreathingField(self.weight, self.weight_affine, amplitude_mm)

    @classmethod
    def load(cls, folder: Path) -> PatientModel:
        """Read a cached patient; the volumes stay on disk (memory-mapped, read-only).

        Raises
        ------
        RoomError
            When the folder does not hold a whole patient.
        """
        try:
            facts = json.loads((folder / "model.json").read_text(encoding="utf-8"))
            affine = np.array(facts["ras_from_index"])
            arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("ct", "clean", "labels")}
            weight = np.load(folder / "weight.npy")
        except (OSError, ValueError, KeyError) as error:
            raise RoomError(f"patient cache {folder}: {error}; delete the folder, it is made again") from None
        return cls(
            PatientGeometry.from_dict(facts["geometry"]),
            Volume.of(arrays["ct"], affine),
            Volume.of(arrays["clean"], affine),
            Volume.of(arrays["labels"], affine),
            weight,
            np.array(facts["weight_affine"]),
            LabelRoles(**{k: tuple(v) for k, v in facts["roles"].items()}),
            folder,
            facts["source"],
        )

    def save(self, folder: Path) -> None:
        """Write to ``folder`` in one step: a half-written patient is never seen under that name."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".patient-", dir=folder.parent))
        try:
            for name, volume in (("ct", self.ct), ("clean", self.clean), ("labels", self.labels)):
                np.save(temporary / f"{name}.npy", volume.array)
            np.save(temporary / "weight.npy", self.weight)
            facts = {
                "geometry": self.geometry.to_dict(),
                "ras_from_index": self.ct.ras_from_index.tolist(),
                "weight_affine": self.weight_affine.tolist(),
                "roles": asdict(self.roles),
                "source": self.source,
            }
            (temporary / "model.json").write_text(json.dumps(facts), encoding="utf-8")
            try:
                temporary.rename(folder)
            except OSError:
                # Another process was faster with the same patient.
                if not (folder / "model.json").is_file():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def cache_folder() -> Path:
    """Where patients are cached: ``$XDG_CACHE_HOME/ablation-nav/patients`` (default ``~/.cache``)."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "ablation-nav" / "patients"


def _code_version() -> str:
    digest = hashlib.sha256()
    for name in ("access.py", "anatomy.py", "breathing.py", "geometry.py", "patient.py"):
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()


def _quiet(_: str) -> None:
    return None


def build_patient(
    parameters: PatientParameters | None = None, cache: Path | None = None, progress: Progress = _quiet
) -> PatientModel:
    """The built-in patient: from the cache, or painted (about 3 s of CPU) and cached.

    Parameters
    ----------
    parameters : PatientParameters, optional
    cache : Path, optional
        Folder of cached patients; default `cache_folder`.
    progress : callable
        Called with a short text at each step of the work.
    """
    wanted = parameters or PatientParameters()
    key = hashlib.sha256((json.dumps(asdict(wanted)) + _code_version()).encode()).hexdigest()[:20]
    folder = (cache or cache_folder()) / f"built-in-{key}"
    if (folder / "model.json").is_file():
        return PatientModel.load(folder)
    progress("painting the patient")
    anatomy = build_anatomy(wanted)
    labels = Volume.of(anatomy.labels, anatomy.ras_from_index)
    tissue = _tissue(Volume.of(anatomy.hu, anatomy.ras_from_index), labels, BUILT_IN_ROLES)
    progress("planning the procedure")
    weight, affine = _weight(tissue, labels, BUILT_IN_ROLES)
    geometry = _geometry(tissue, np.array(anatomy.tumours[0].centre_ras), BUILT_IN_ROLES.tumour, weight, affine)
    for (_, point), normal in zip(geometry.landmarks, geometry.landmark_normals, strict=True):
        _paint_marker(anatomy.hu, labels, np.array(point), np.array(normal))
    progress("scanning the patient")
    ct = Volume.of(acquire(anatomy.hu, wanted.noise_hu, wanted.seed), anatomy.ras_from_index)
    clean = Volume.of(np.rint(anatomy.hu).astype(np.int16), anatomy.ras_from_index)
    model = PatientModel(geometry, ct, clean, labels, weight, affine, BUILT_IN_ROLES, folder, "built-in")
    model.save(folder)
    return PatientModel.load(folder)


def patient_from_ct(
    ct: Volume,
    labels: Volume,
    roles: LabelRoles,
    target: Point | None = None,
    cache: Path | None = None,
    source: str = "CT",
    progress: Progress = _quiet,
) -> PatientModel:
    """A patient from any CT with labels: skin, path, probe window and breathing are found in it.

    Parameters
    ----------
    ct : Volume
        int16 HU.
    labels : Volume
        Label map; taken onto the CT's grid by the nearest voxel where it lies on another.
    roles : LabelRoles
        Without ``body`` the body is what lies above −500 HU in one piece; without ``bone`` what lies above 250 HU.
    target : point, optional
        RAS mm; default: the centre of the largest tumour component.

    Raises
    ------
    RoomError
        When the label map lies elsewhere, a label is absent, or no needle path or probe window can be found.
    """
    if not labels.same_grid_as(ct):
        labels = _onto_grid(labels, ct)
    digest = hashlib.sha256(f"{_code_version()}{roles}{target}{ct.ras_from_index.tolist()}".encode())
    digest.update(np.ascontiguousarray(ct.array).data)
    digest.update(np.ascontiguousarray(labels.array).data)
    folder = (cache or cache_folder()) / f"ct-{digest.hexdigest()[:20]}"
    if (folder / "model.json").is_file():
        return PatientModel.load(folder)
    progress("reading the patient's tissues")
    tissue = _tissue(ct, labels, roles)
    centre = np.array(target) if target is not None else _largest_centre(labels, roles.tumour)
    progress("planning the procedure")
    weight, affine = _weight(tissue, labels, roles)
    geometry = _geometry(tissue, centre, roles.tumour, weight, affine)
    clean = np.stack([cv2.medianBlur(np.ascontiguousarray(plane, dtype=np.int16), 3) for plane in ct.array])
    model = PatientModel(
        geometry, ct, Volume.of(clean, ct.ras_from_index), labels, weight, affine, roles, folder, source
    )
    model.save(folder)
    return PatientModel.load(folder)


def _onto_grid(labels: Volume, ct: Volume) -> Volume:
    """Nearest label for every voxel of the CT; 0 outside the label map."""
    out = np.zeros(ct.array.shape, dtype=labels.array.dtype)
    step = labels.index_from_ras @ ct.ras_from_index
    nj, ni = ct.array.shape[1:]
    j, i = np.mgrid[0:nj, 0:ni]
    size = np.array(labels.size)
    for k in range(ct.array.shape[0]):
        index = np.stack([i, j, np.full_like(i, k)], axis=-1) @ step[:3, :3].T + step[:3, 3]
        at = np.rint(index).astype(int)
        inside = ((at >= 0) & (at < size)).all(axis=-1)
        x, y, z = at[inside].T
        out[k][inside] = labels.array[z, y, x]
    if not out.any():
        raise RoomError("the label map does not overlap the CT; is it of another examination?")
    return Volume.of(out, ct.ras_from_index)


def _one_of(labels: Volume, values: tuple[int, ...]) -> NDArray[np.bool_]:
    table = np.zeros(int(max(65536 if labels.array.dtype.itemsize > 1 else 256, max(values, default=0) + 1)), bool)
    table[list(values)] = True
    return np.asarray(table[labels.array])


def _tissue(ct: Volume, labels: Volume, roles: LabelRoles) -> TissueMap:
    solid = _one_of(labels, roles.body) if roles.body else _largest_solid(ct)
    bone = (
        _one_of(labels, roles.bone) if roles.bone else np.asarray((np.asarray(ct.array, dtype=np.int16) > 250) & solid)
    )
    return TissueMap.of(ct, solid, bone, _one_of(labels, roles.avoid))


def _largest_solid(ct: Volume) -> NDArray[np.bool_]:
    """The body: per axial plane the filled outline of the largest piece above −500 HU (the table is another piece)."""
    out = np.zeros(ct.array.shape, dtype=bool)
    for k, plane in enumerate(ct.array):
        opened = cv2.morphologyEx((plane > -500).astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
        outlines, _ = cv2.findContours(opened, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        if outlines:
            filled = np.zeros(plane.shape, np.uint8)
            cv2.drawContours(filled, [max(outlines, key=cv2.contourArea)], -1, 1, cv2.FILLED)
            out[k] = filled > 0
    return out


def _largest_centre(labels: Volume, values: tuple[int, ...]) -> F64:
    from scipy.ndimage import find_objects, label

    mask = _one_of(labels, values)
    if not values or not mask.any():
        raise RoomError(f"the label map holds no voxel of the tumour labels {list(values)}; name the right label")
    pieces, _ = label(mask)
    biggest = int(np.bincount(pieces.ravel())[1:].argmax()) + 1
    box = find_objects(pieces)[biggest - 1]
    k, j, i = np.nonzero(pieces[box] == biggest)
    offset = np.array([box[2].start, box[1].start, box[0].start])
    return labels.to_ras(np.array([i.mean(), j.mean(), k.mean()]) + offset)


def _weight(tissue: TissueMap, labels: Volume, roles: LabelRoles) -> tuple[NDArray[np.float32], F64]:
    spine = _one_of(labels, roles.spine) if roles.spine else tissue.bone
    return breathing_weight(tissue.ct, tissue.body, _one_of(labels, roles.liver or roles.tumour), spine)


def _point(vector: F64) -> Point:
    return (float(vector[0]), float(vector[1]), float(vector[2]))


def _geometry(
    tissue: TissueMap, target: F64, tumour_labels: tuple[int, ...], weight: NDArray[np.float32], affine: F64
) -> PatientGeometry:
    """Place the procedure: path, probe, landmarks, reference marker with its divot, tracker."""
    entry, target = choose_needle_path(tissue, target)
    contact, axis, lateral = choose_probe_window(tissue, entry, target)
    landmarks, normals = skin_landmarks(tissue, target)
    field = BreathingField(weight, affine, 1.0)
    path = entry + np.linspace(0.0, 1.0, 33)[:, None] * (target - entry)
    # The reference marker stands on an arm fixed to the table, beside the flank: it does not breathe.
    names = [name for name, _ in landmarks]
    flank, out = landmarks[names.index("flank_right")][1], normals[names.index("flank_right")]
    marker = flank + 32.0 * unit(out + np.array([0.0, 0.4, 0.0])) + np.array([0.0, 22.0, 0.0])
    reference = look_along(marker, [0.35, 0.9, -0.25], [-0.5, 0.2, 0.84])
    divot = reference[:3, :3] @ np.array([34.0, -13.0, 4.0]) + marker
    eye = target + np.array([420.0, 1050.0, -980.0])
    tracker = look_along(eye, target - eye, [0.2, 0.7, 0.68])
    return PatientGeometry(
        landmarks=tuple((name, _point(p)) for name, p in landmarks),
        landmark_normals=tuple(_point(n) for n in normals),
        divot_name="reference_divot",
        divot=_point(divot),
        entry=_point(entry),
        target=_point(target),
        tumour_labels=tumour_labels,
        probe_contact=_point(contact),
        probe_axis=_point(axis),
        probe_lateral=_point(lateral),
        path_motion=tuple(float(w) for w in field.weight_at(path)),
        reference_marker=tuple(float(v) for v in reference.ravel()),
        tracker=tuple(float(v) for v in tracker.ravel()),
    )


def _paint_marker(hu: NDArray[np.float32], grid: Volume, point: F64, normal: F64) -> None:
    """A radio-opaque ring stuck on the skin round ``point``."""
    centre = point + 0.9 * normal
    index = grid.to_index(centre)
    reach = 10.0 / grid.spacing_mm
    low = np.maximum(np.floor(index - reach), 0).astype(int)
    high = np.minimum(np.ceil(index + reach) + 1, grid.size).astype(int)
    k, j, i = np.mgrid[low[2] : high[2], low[1] : high[1], low[0] : high[0]]
    offset = grid.to_ras(np.stack([i, j, k], axis=-1)) - centre
    along = offset @ normal
    across = np.sqrt(np.maximum((offset**2).sum(axis=-1) - along**2, 0.0))
    distance = np.hypot(across - _MARKER_RADIUS_MM, along) - _MARKER_TUBE_MM
    cover = np.clip(0.5 - distance / float(grid.spacing_mm.mean()), 0.0, 1.0).astype(np.float32)
    box = hu[low[2] : high[2], low[1] : high[1], low[0] : high[0]]
    box += cover * (np.float32(_MARKER_HU) - box)


def patient_case(model: PatientModel) -> Case:
    """The pre-operative case of a simulated patient: CT, target tumour, vessels, bones, landmarks, divot, path."""
    grid = model.labels.ras_from_index
    first = model.roles.tumour[:1] if model.source == "built-in" else model.roles.tumour
    tumour = _one_of(model.labels, first)
    geometry = model.geometry

    def mask(values: tuple[int, ...]) -> Volume | None:
        return Volume.of(_one_of(model.labels, values).view(np.uint8), grid) if values else None

    return Case(
        identity=CaseIdentity(pseudonym="SIMULATED", description="simulated patient, not a person"),
        ct=model.ct,
        tumour=Volume.of(tumour.view(np.uint8), grid),
        vessels=mask(model.roles.vessels),
        bones=mask(model.roles.bone),
        landmarks=tuple(Landmark(name, point) for name, point in geometry.landmarks),
        divots=(Landmark(geometry.divot_name, geometry.divot),),
        paths=(PlannedPath("planned path", geometry.entry, geometry.target),),
    )
