"""Coverage-guided fuzzing of framing, contents, decoding and the JSON form, with atheris (which no test needs).

``python tests/fuzz/atheris_codec.py -max_total_time=600``. The environment needs the project and ``pip install
atheris`` (Python 3.11 to 3.13). Arguments are those of libFuzzer; without a folder of its own the corpus goes to a
temporary one, which begins with the reference messages and one of our own for each type.

The size and the CRC of the input's header are made right before it is read, so that what is behind them is reached.
The compiled kernels are not instrumented; the CRC's is compared with another program's in the mutation fuzzer.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import atheris

#: Of these the compiler makes machine code; it cannot read what the instrumentation puts in.
_KERNELS = ["drivers.openigtlink.receive_kernel", "drivers.openigtlink.pose_kernel", "drivers.openigtlink.crc64"]

with atheris.instrument_imports(include=["drivers.openigtlink"], exclude=_KERNELS):
    from tests.fuzz import invariants
    from tests.fuzz.mutations import repaired
    from tests.fuzz.seeds import reference_folder, seeds

_SIZES = (1, 2, 57, 58, 59, 70, 4096)


def one_input(data: bytes) -> None:
    """The first byte chooses the options and the splits; the rest is a message, or with bit 7 a stream as it is."""
    if not data:
        return
    choice, raw = data[0], data[1:]
    stream = raw if choice & 0x80 else repaired(bytearray(raw))
    size = choice >> 2 & 7
    step = _SIZES[size] if size < len(_SIZES) else len(stream) or 1
    pieces = [stream[at : at + step] for at in range(0, len(stream), step)]
    got = invariants.check_stream(stream, pieces)
    for message in got.messages:
        invariants.check_content(message, invariants.OPTIONS[choice % len(invariants.OPTIONS)])
        invariants.check_json(message)


def main() -> None:
    """Fuzz until libFuzzer's limits end it."""
    invariants.compiled()
    arguments = list(sys.argv)
    if not any(Path(argument).is_dir() for argument in arguments[1:]):
        folder = Path(tempfile.mkdtemp(prefix="igtl-corpus-"))
        arguments.append(str(folder))
        chance = random.Random(1)
        for seed in seeds(reference_folder()):
            (folder / seed.name).write_bytes(bytes([chance.randrange(128)]) + seed.raw)
    if not any(argument.startswith("-max_len") for argument in arguments):
        arguments.append("-max_len=4096")
    atheris.Setup(arguments, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
