"""``ablation-nav igtl``: OpenIGTLink messages in files and on the wire. The table of its commands, nothing else."""

from __future__ import annotations

import typer

__all__ = ["app"]

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""OpenIGTLink messages: look into files, make messages.

\b
Examples:
  ablation-nav igtl decode MESSAGES.bin --json
  ablation-nav igtl encode SPEC.json --out MESSAGES.bin
""",
)


@app.callback()
def _group() -> None:
    """Keeps each entry a sub-command, however many there are."""
