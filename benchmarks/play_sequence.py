"""Play a PLUS or Slicer sequence metafile as a live OpenIGTLink server: ``python benchmarks/play_sequence.py FILE``."""

from __future__ import annotations

import argparse
import signal
import threading
from pathlib import Path

from drivers.openigtlink.player import play_sequence
from drivers.openigtlink.sink import IgtlServer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="sequence metafile (.igs.mha, .seq.nrrd, ...)")
    parser.add_argument("--port", type=int, default=18944, help="0: any free one (default 18944)")
    parser.add_argument("--once", action="store_true", help="stop at the end instead of beginning again")
    parser.add_argument("--send-invalid", action="store_true", help="send lost tools as identity with their status")
    args = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with IgtlServer(port=args.port, name="PlusServer") as server:
        print(f"{args.file.name} on 127.0.0.1:{server.port}, Ctrl-C ends", flush=True)
        sent = play_sequence(args.file, server, loop=not args.once, send_invalid=args.send_invalid, stop=stop)
    print(f"{sent} messages")


if __name__ == "__main__":
    main()
