"""The process whose GPU memory is measured: it loads a level and speaks, as long and on as long a prompt as may be.

`python -m miso_gguf.quant_eval.memory.child DIR LEVEL`. One line of JSON on standard output for each thing that
happens; when it has spoken it waits, with everything in memory, for its standard input to end. It does not measure.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import MisoError
from ...models.mimi import FRAME_RATE_HZ
from ...models.noise import gumbel_noise
from ...models.spec import ModelSpec
from ...runtime.bundle import open_level
from ...runtime.lm.engine import Engine
from ...runtime.lm.prompt import Block
from ...runtime.options import EngineOptions, SpeechOptions

LOADED, SPOKEN = "loaded", "spoken"
_FAILED = 2
_SEED = 0


def main(arguments: Sequence[str]) -> int:
    """Exit code 0 when it has spoken; 2, after a line {"error": ...}, when it could not."""
    parser = argparse.ArgumentParser(prog="child", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("level")
    parser.add_argument("--kv-type", default="f16")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--gpu-layers", type=int, default=-1)
    chosen = parser.parse_args(arguments)
    try:
        _speak(chosen)
    except (MisoError, ValueError, OSError, MemoryError) as error:
        _say(error=str(error) or type(error).__name__)
        return _FAILED
    return 0


def _speak(chosen: argparse.Namespace) -> None:
    level = open_level(chosen.bundle, chosen.level)
    context = min(chosen.context, level.manifest.model_spec.max_positions)
    options = EngineOptions(
        threads=1,
        gpu_layers=chosen.gpu_layers,
        kv_type=chosen.kv_type,
        context=context,
        allow_cpu=False,
    )
    with Engine(level, options) as engine:
        _say(event=LOADED, device=engine.gpu.description if engine.gpu else "CPU")
        spec = engine.spec
        # A prompt of one position is the least there is.
        frames = max(1, min(round(chosen.seconds * FRAME_RATE_HZ), context - 1))
        prompt = random_prompt(spec, context - frames)
        top_k, temperature = SpeechOptions().top_k, np.float32(SpeechOptions().temperature)
        hidden, logits = engine.prefill(0, [prompt])
        for frame in range(frames):
            noise = gumbel_noise(_SEED, frame, spec.codebooks, spec.audio_vocab) * temperature
            codes = engine.sample(hidden, logits, noise[None], top_k)
            # It does not stop at an EOS frame: how long it speaks must not depend on the level.
            hidden, logits = engine.step([0], [codes[0]])
        _say(event=SPOKEN, frames=frames, prompt_positions=len(prompt))
        sys.stdin.read()


def random_prompt(spec: ModelSpec, positions: int) -> Block:
    """A prompt of that many positions: a voice's frames, then text."""
    rng = np.random.default_rng(_SEED)
    rows = np.full((positions, spec.codebooks + 1), -1, np.int64)
    spoken = positions // 2
    rows[:spoken, :-1] = rng.integers(1, spec.audio_vocab, (spoken, spec.codebooks))
    rows[spoken:, -1] = rng.integers(0, spec.text_vocab, positions - spoken)
    return Block(rows)


def _say(**event: Any) -> None:
    print(json.dumps(event), flush=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
