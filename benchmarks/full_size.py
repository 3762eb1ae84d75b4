"""The whole 8B conversion: wall time, peak memory and sizes of one `miso-convert` run at full size.

    python -m miso_gguf.models.synthetic miso-8b BIG        # 32.8 GB, three minutes
    python benchmarks/full_size.py BIG OUT --quant fp16 --quant q8_0 --quant q4_k_m --quant q4_0

Memory is the process's anonymous resident memory (RssAnon), sampled every 50 ms: what it needs for itself, without the
page cache behind the files it reads. Linux only. Prints a table and one JSON line.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from own_memory import anonymous_bytes

from miso_gguf.console import stdout, table
from miso_gguf.models.manifest import read_manifest
from miso_gguf.models.memory import level_memory

_SAMPLE_S = 0.05


def main() -> None:
    """Run the conversion as a child process and watch it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quant", action="append", required=True)
    arguments = parser.parse_args()
    levels = [word for level in arguments.quant for word in ("--quant", level)]
    program = [sys.executable, "-c", "from miso_gguf.convert.cli import main; main()"]
    command = [*program, str(arguments.checkpoint), "--out", str(arguments.out), *levels]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak_bytes = 0
    while process.poll() is None:
        peak_bytes = max(peak_bytes, anonymous_bytes(process.pid))
        time.sleep(_SAMPLE_S)
    seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(process.returncode)
    manifest = read_manifest(arguments.out)
    rows = []
    for key in manifest.levels:
        memory = level_memory(manifest, key)
        sizes = (memory.backbone_bytes, memory.decoder_bytes, memory.embeddings_bytes, memory.vram_bytes)
        rows.append([key, f"{memory.bits_per_weight:.2f}", *(f"{size / 1e9:.2f} GB" for size in sizes)])
    title = f"{seconds:.0f} s, {peak_bytes / 2**30:.2f} GiB of anonymous memory at the most"
    stdout.print(table(title, ["level", "bpw", "backbone", "decoder", "embeddings", "VRAM"], rows, range(1, 6)))
    result = {
        "benchmark": "full_size",
        "levels": arguments.quant,
        "seconds": round(seconds, 1),
        "peak_anonymous_bytes": peak_bytes,
        "sizes": {key: level_memory(manifest, key).as_dict() for key in manifest.levels},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
