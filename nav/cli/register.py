"""``ablation-nav register``: registrations from files."""

from __future__ import annotations

import typer

from nav.cli import (
    register_deformable,
    register_landmarks,
    register_rigid,
    register_slice,
    register_surface,
    register_ultrasound,
)

__all__ = ["app"]

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Register from files.

\b
Examples:
  ablation-nav register landmarks --fixed ct.mrk.json --moving touched.mrk.json --out T.tfm
  ablation-nav register rigid planning-ct/ today.nrrd --out registered
  ablation-nav register deformable planning-ct/ today.nrrd --init registered/transform.tfm --out deformed
  ablation-nav register surface liver.stl touched.mrk.json --out registered
  ablation-nav register ultrasound planning-ct/ sweep.igs.mha --init start.tfm --out registered
""",
)

app.command("landmarks", help=register_landmarks.HELP)(register_landmarks.landmarks)
app.command("rigid", help=register_rigid.HELP)(register_rigid.rigid)
app.command("deformable", help=register_deformable.HELP)(register_deformable.deformable)
app.command("surface", help=register_surface.HELP)(register_surface.surface)
app.command("ultrasound", help=register_ultrasound.HELP)(register_ultrasound.ultrasound)
app.command("slice", help=register_slice.HELP)(register_slice.slices)
