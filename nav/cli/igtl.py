"""``ablation-nav igtl``: OpenIGTLink messages in files and on the wire. The table of its commands, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app", "decode", "encode"]

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


@app.command("decode")
def decode(
    file: Annotated[Path, typer.Argument(help="One or more messages, one after another.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON (docs/igtl-json.md).")] = False,
) -> int:
    """Show the messages in a file: header, metadata, content; or what is wrong, and at which byte of the file.

    A message whose CRC or content is wrong is named and the next one follows; where a header cannot be read, nothing
    can. Ends with 4 when anything was wrong.

    \b
    Examples:
      ablation-nav igtl decode MESSAGES.bin
      ablation-nav igtl decode MESSAGES.bin --json
    """
    from nav.cli.igtl_files import decode_file

    return decode_file(file, as_json)


@app.command("encode")
def encode(
    spec: Annotated[Path, typer.Argument(help="One message or a list, with the keys of decode --json.")],
    out: Annotated[Path, typer.Option(help="File to write.", show_default=False)],
) -> int:
    """Make messages from JSON: what `decode --json` prints gives the same bytes again.

    Only "type" and "content" are needed. Sizes and CRC are computed.

    \b
    Examples:
      ablation-nav igtl encode SPEC.json --out MESSAGES.bin
    """
    from nav.cli.igtl_files import encode_file

    return encode_file(spec, out)
