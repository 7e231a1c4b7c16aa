"""``ablation-nav igtl``: OpenIGTLink messages in files and on the wire. The table of its commands, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app", "decode", "encode", "listen"]

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""OpenIGTLink: see what a server really sends, send, forward, look into files.

\b
Examples:
  ablation-nav igtl listen 127.0.0.1:18944
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


_Address = Annotated[str, typer.Argument(metavar="HOST:PORT", help="Address of the server.", show_default=False)]
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON at the end (docs/igtl-json.md).")]
_Duration = Annotated[float | None, typer.Option(help="End after this many seconds; default: Ctrl-C.", min=0.1)]
_V2 = Annotated[bool, typer.Option("--v2", help="Speak header version 2: PLUS sends the status of tools only then.")]
_Ask = Annotated[
    list[str] | None,
    typer.Option("--client-info", metavar="NAME", help="Ask PLUS for a transform or image; repeatable."),
]
_Subscribe = Annotated[str, typer.Option(metavar="tdata|qtdata", help="Ask for tracking data (STT_TDATA, STT_QTDATA).")]
_Interval = Annotated[int, typer.Option(help="Least interval of what is asked for; 0: as fast as it can.", min=0)]
_Coordinate = Annotated[str, typer.Option(help="Coordinate system asked for; empty: the server's own.")]
_Types = Annotated[list[str] | None, typer.Option(help="Only these types, such as 'T*'; repeatable.")]
_Names = Annotated[list[str] | None, typer.Option(help="Only these device names, such as '*ToTracker'; repeatable.")]


@app.command("listen")
def listen(
    address: _Address,
    duration: _Duration = None,
    as_json: _AsJson = False,
    json_lines: Annotated[
        bool, typer.Option("--json-lines", help="A line of JSON every second, and at the end.")
    ] = False,
    v2: _V2 = False,
    client_info: _Ask = None,
    subscribe: _Subscribe = "",
    interval_ms: _Interval = 20,
    coordinate: _Coordinate = "",
    types: _Types = None,
    names: _Names = None,
    save: Annotated[Path | None, typer.Option(help="Keep the messages as received, for igtl decode.")] = None,
    reconnect: Annotated[bool, typer.Option(help="Connect again when the connection is lost.")] = True,
) -> int:
    """See what a server really sends: every stream with its rate, age, gaps, clock, newest value, and what looks wrong.

    A table on a terminal, a line every second elsewhere. Ends after --duration, with Ctrl-C, or with --no-reconnect at
    the end of the connection; with 5 when it never connected.

    \b
    Examples:
      ablation-nav igtl listen 127.0.0.1:18944
      ablation-nav igtl listen tracker:18944 --duration 10 --json
      ablation-nav igtl listen tracker:18944 --subscribe tdata --interval-ms 20
      ablation-nav igtl listen plus:18944 --client-info NeedleToReference --client-info Image_Reference
    """
    from nav.cli.endpoints import endpoint
    from nav.cli.igtl_listen import listen_to
    from nav.cli.igtl_source import Filter, source_config

    host, port = endpoint(address, "HOST:PORT")
    return listen_to(
        source_config(
            host,
            port,
            name="listen",
            v2=v2,
            ask=client_info or (),
            subscribe=subscribe,
            interval_ms=interval_ms,
            coordinate=coordinate,
            reconnect=reconnect,
        ),
        duration_s=duration,
        as_json=as_json,
        as_lines=json_lines,
        wanted=Filter(tuple(types or ()), tuple(names or ())),
        save=save,
    )
