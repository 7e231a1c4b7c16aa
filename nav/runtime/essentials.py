"""What the compute thread needs to know of a case: small, free of patient identifiers, and storable in a recording."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass

import numpy as np

from nav.ablation.margin_chance import ChanceSamples, prepare_chance
from nav.ablation.tumour import TumourModel
from nav.ablation.vessel_cut import VesselWalls, vessel_walls
from nav.io.case import Case, Landmark, PlannedPath

__all__ = ["CaseEssentials"]


@dataclass(frozen=True, slots=True, eq=False)
class CaseEssentials:
    """Landmarks, divots, planned paths (RAS mm), the tumour as the margin needs it, the vessels as tier 1 does.

    A replay rebuilds every number from this; the CT itself is only looked at, so it stays outside. So does the mask of
    the vessels, whose walls are here: zones computed in the patient are recorded as they came. ``samples`` follow from
    the tumour; they take too long to make on the live thread.
    """

    pseudonym: str
    landmarks: tuple[Landmark, ...] = ()
    divots: tuple[Landmark, ...] = ()
    paths: tuple[PlannedPath, ...] = ()
    tumour: TumourModel | None = None
    vessels: VesselWalls | None = None
    samples: ChanceSamples | None = None

    @classmethod
    def of(cls, case: Case, *, margin_mm: float) -> CaseEssentials:
        """Derive from a case; samples the tumour's surface and its surroundings of ``margin_mm``."""
        tumour = None if case.tumour is None else TumourModel.from_mask(case.tumour, margin_mm=margin_mm)
        walls = None if case.vessels is None or not case.vessels.array.any() else vessel_walls(case.vessels)
        samples = None if tumour is None else prepare_chance(tumour)
        return cls(case.identity.pseudonym, case.landmarks, case.divots, case.paths, tumour, walls, samples)

    def to_bytes(self) -> bytes:
        """NPZ with the tumour's arrays and a JSON header; the same essentials give the same bytes' content hash."""
        header = {
            "pseudonym": self.pseudonym,
            "landmarks": [[p.name, *p.ras] for p in self.landmarks],
            "divots": [[p.name, *p.ras] for p in self.divots],
            "paths": [[p.name, *p.entry_ras, *p.target_ras] for p in self.paths],
            "vessel_depth_mm": None if self.vessels is None else self.vessels.depth_mm,
        }
        arrays = {} if self.tumour is None else {f"tumour_{k}": v for k, v in self.tumour.to_arrays().items()}
        if self.vessels is not None:
            arrays["vessel_walls"] = self.vessels.points_ras
        out = io.BytesIO()
        np.savez_compressed(out, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)  # type: ignore[arg-type]
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> CaseEssentials:
        """Rebuild from `to_bytes`."""
        with np.load(io.BytesIO(data)) as npz:
            header = json.loads(npz["header"].tobytes())
            arrays = {k.removeprefix("tumour_"): npz[k] for k in npz.files if k.startswith("tumour_")}
            depth_mm = header.get("vessel_depth_mm")
            walls = None if depth_mm is None else VesselWalls.of(npz["vessel_walls"], float(depth_mm))
        tumour = TumourModel.from_arrays(arrays) if arrays else None
        return cls(
            header["pseudonym"],
            tuple(Landmark(n, (x, y, z)) for n, x, y, z in header["landmarks"]),
            tuple(Landmark(n, (x, y, z)) for n, x, y, z in header["divots"]),
            tuple(PlannedPath(n, (a, b, c), (d, e, f)) for n, a, b, c, d, e, f in header["paths"]),
            tumour,
            walls,
            None if tumour is None else prepare_chance(tumour),
        )

    def sha256(self) -> str:
        """Identifies this case in a recording."""
        return hashlib.sha256(self.to_bytes()).hexdigest()
