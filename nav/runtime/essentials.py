"""What the compute thread needs to know of a case: small, free of patient identifiers, and storable in a recording."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass

import numpy as np

from nav.ablation.tumour import TumourModel
from nav.io.case import Case, Landmark, PlannedPath

__all__ = ["CaseEssentials"]


@dataclass(frozen=True, slots=True, eq=False)
class CaseEssentials:
    """Landmarks, divots, planned paths (RAS mm) and the tumour as the margin needs it.

    A replay rebuilds every number from this; the CT itself is only looked at, so it stays outside. So do the vessels,
    of which it needs to know only whether there are any: zones computed beside them are recorded as they came.
    """

    pseudonym: str
    landmarks: tuple[Landmark, ...] = ()
    divots: tuple[Landmark, ...] = ()
    paths: tuple[PlannedPath, ...] = ()
    tumour: TumourModel | None = None
    vessels: bool = False

    @classmethod
    def of(cls, case: Case, *, margin_mm: float) -> CaseEssentials:
        """Derive from a case; samples the tumour's surface and its surroundings of ``margin_mm``."""
        tumour = None if case.tumour is None else TumourModel.from_mask(case.tumour, margin_mm=margin_mm)
        return cls(case.identity.pseudonym, case.landmarks, case.divots, case.paths, tumour, case.vessels is not None)

    def to_bytes(self) -> bytes:
        """NPZ with the tumour's arrays and a JSON header; the same essentials give the same bytes' content hash."""
        header = {
            "pseudonym": self.pseudonym,
            "landmarks": [[p.name, *p.ras] for p in self.landmarks],
            "divots": [[p.name, *p.ras] for p in self.divots],
            "paths": [[p.name, *p.entry_ras, *p.target_ras] for p in self.paths],
            "vessels": self.vessels,
        }
        arrays = {} if self.tumour is None else {f"tumour_{k}": v for k, v in self.tumour.to_arrays().items()}
        out = io.BytesIO()
        np.savez_compressed(out, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)  # type: ignore[arg-type]
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> CaseEssentials:
        """Rebuild from `to_bytes`."""
        with np.load(io.BytesIO(data)) as npz:
            header = json.loads(npz["header"].tobytes())
            arrays = {k.removeprefix("tumour_"): npz[k] for k in npz.files if k.startswith("tumour_")}
        return cls(
            header["pseudonym"],
            tuple(Landmark(n, (x, y, z)) for n, x, y, z in header["landmarks"]),
            tuple(Landmark(n, (x, y, z)) for n, x, y, z in header["divots"]),
            tuple(PlannedPath(n, (a, b, c), (d, e, f)) for n, a, b, c, d, e, f in header["paths"]),
            TumourModel.from_arrays(arrays) if arrays else None,
            bool(header.get("vessels", False)),
        )

    def sha256(self) -> str:
        """Identifies this case in a recording."""
        return hashlib.sha256(self.to_bytes()).hexdigest()
