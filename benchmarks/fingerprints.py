"""What must stay the same when the code is only moved about: the bytes of the tiny bundle, and the codes it speaks.

    python benchmarks/fingerprints.py before.json                     on the old code
    python benchmarks/fingerprints.py after.json --against before.json    on the new code; exit code 1 if they differ

Same machine, same llama.cpp: codes are only then comparable bit for bit.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from miso_gguf import MisoTTS, SpeechOptions

LEVELS = ("fp16", "q8_0", "q4_k_m", "q4_0")
SEEDS = (0, 1)
SENTENCES = (
    "Hello there. This is very good.",
    "Where is the red house?",
    "The old man walked home.",
    "We have seven green apples.",
    "Is this your blue car?",
    "No one knows what she said.",
    "Come with me to the river!",
    "My brother has three small dogs.",
    "It was a long and quiet night.",
    "Why did they not tell us?",
)


def fingerprints(bundle: Path) -> dict[str, str]:
    """sha256 of every GGUF and ONNX file of `bundle`, and of every sentence's codes at every level and seed."""
    found = {
        path.name: _sha256(path.read_bytes()) for path in sorted(bundle.glob("*.gguf")) + sorted(bundle.glob("*.onnx"))
    }
    for level in LEVELS:
        with MisoTTS.load(bundle, level, threads=1, gpu_layers=0) as tts:
            for text in SENTENCES:
                for seed in SEEDS:
                    codes = tts.generate_codes(text, options=SpeechOptions(seed=seed))
                    found[f"{level}, seed {seed}: {text}"] = _sha256(codes.astype("<i8").tobytes())
    return found


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@click.command(help=__doc__.split("\n\n", maxsplit=1)[0] if __doc__ else "")
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--against", type=click.Path(exists=True, path_type=Path), help="Fingerprints of the old code.")
def main(out: Path, against: Path | None) -> None:
    """Convert the tiny model, speak with it, write what was found."""
    with tempfile.TemporaryDirectory() as temporary:
        bundle = Path(temporary) / "bundle"
        levels = [word for level in LEVELS for word in ("--quant", level)]
        convert = [sys.executable, "-c", "from miso_gguf.convert.cli import main; main()", "tiny", *levels]
        subprocess.run([*convert, "--out", str(bundle)], check=True)
        found = fingerprints(bundle)
    out.write_text(json.dumps(found, indent=1) + "\n")
    if against is not None:
        before = json.loads(against.read_text())
        different = sorted(key for key in before.keys() | found.keys() if before.get(key) != found.get(key))
        click.echo("\n".join([*different, f"{len(found)} fingerprints, {len(different)} different"]))
        sys.exit(bool(different))


if __name__ == "__main__":
    main()
