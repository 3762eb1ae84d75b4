"""The files mean to stock llama.cpp what the weights mean to the reference."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from builders import BLOCKS, COMMON, Built, Inputs
from miso_gguf.convert.checkpoint.open import open_checkpoint
from miso_gguf.models.flavors import TINY
from miso_gguf.models.levels import LEVELS, Level
from miso_gguf.models.manifest import read_manifest
from miso_gguf.models.memory import GPU_PREFILL_ROWS, level_memory
from miso_gguf.models.reference import Reference, audio_rows, text_rows
from miso_gguf.native.llama import LlamaModel, LlamaOptions, load_library

FRAMES = 40


@pytest.fixture(scope="module")
def inputs(built: Built) -> Inputs:
    return built.inputs()


@pytest.fixture(scope="module")
def bundle(built: Built) -> Path:
    return built.bundle(COMMON)


class Expected:
    """A prompt of text and audio rows, and what the float64 reference makes of it."""

    def __init__(self, inputs: Inputs) -> None:
        generator = np.random.default_rng(3)
        self.codes = generator.integers(0, TINY.audio_vocab, (FRAMES, TINY.codebooks))
        text = generator.integers(0, TINY.text_vocab, 9).tolist()
        with open_checkpoint(inputs.checkpoint) as checkpoint:
            reference = Reference(
                TINY,
                lambda name: torch.from_numpy(checkpoint.read(name, 0, checkpoint.shapes[name][0])),
                torch.float64,
            )
            rows = text_rows(TINY, text), audio_rows(TINY, torch.from_numpy(self.codes))
            prompt = torch.cat([reference.embed(part.tokens, part.mask) for part in rows])
            hidden = reference.backbone(prompt)
            codes = torch.from_numpy(self.codes[:, :-1])
            self.prompt: NDArray[np.float32] = prompt.float().numpy()
            self.hidden = hidden.numpy()
            self.logits = reference.codebook0_logits(hidden).numpy()
            self.depth_logits = reference.depth_logits(hidden[-FRAMES:], codes).numpy()
            self.projected: NDArray[np.float32] = (hidden @ reference._weight("projection.weight").T).float().numpy()


@pytest.fixture(scope="module")
def expected(inputs: Inputs) -> Expected:
    return Expected(inputs)


def test_f32_backbone_fed_by_embeddings(bundle: Path, expected: Expected) -> None:
    path = bundle / "Miso-Tiny-backbone-F32.gguf"
    with LlamaModel(path, LlamaOptions(threads=1, exact=True), context=64) as model:
        hidden, logits = model.forward(expected.prompt)
    assert np.abs(logits).max() > 1
    assert np.abs(hidden - expected.hidden).max() <= 2e-5
    assert np.abs(logits - expected.logits).max() <= 2e-5


def test_f32_decoder_is_a_language_model_over_the_flattened_vocabulary(bundle: Path, expected: Expected) -> None:
    from gguf import GGUFReader  # noqa: PLC0415

    path = bundle / "Miso-Tiny-decoder-F32.gguf"
    table = next(tensor.data for tensor in GGUFReader(path).tensors if tensor.name == "token_embd.weight")
    offsets = np.arange(TINY.codebooks) * TINY.audio_vocab
    with LlamaModel(path, LlamaOptions(threads=1, exact=True), context=TINY.codebooks) as model:
        for frame in (0, FRAMES - 1):
            ids = (expected.codes[frame] + offsets)[:-1]
            start = expected.projected[-FRAMES + frame][None]
            flat = model.forward(np.concatenate([start, table[ids]]))[1]
            for codebook in range(1, TINY.codebooks):
                found = flat[codebook].reshape(TINY.codebooks, TINY.audio_vocab)
                wanted = expected.depth_logits[frame, codebook - 1]
                assert np.abs(found[codebook] - wanted).max() <= 2e-5
                assert not found[0].any()  # codebook 0's rows are zero


def test_f16_backbone(bundle: Path, expected: Expected) -> None:
    with LlamaModel(bundle / "Miso-Tiny-backbone-F16.gguf", LlamaOptions(threads=1), context=64) as model:
        hidden, logits = model.forward(expected.prompt)
    assert np.abs(hidden - expected.hidden).max() <= 0.02
    assert (logits.argmax(1) == expected.logits.argmax(1)).mean() >= 0.95


@pytest.mark.parametrize("level", LEVELS.values(), ids=lambda level: level.key)
@pytest.mark.parametrize("part", ["backbone", "decoder"])
def test_every_level_loads_and_resembles(built: Built, level: Level, part: str) -> None:
    prompt = np.random.default_rng(0).standard_normal((9, BLOCKS.backbone.embed_dim)).astype(np.float32)
    found = []
    for label in ("F32", level.label):
        path = built.every_level() / f"Blocks-{part}-{label}.gguf"
        with LlamaModel(path, LlamaOptions(threads=1), context=16) as model:
            assert model.vocab == (BLOCKS.audio_vocab if part == "backbone" else BLOCKS.flat_audio_vocab)
            found.append(model.forward(prompt)[1])
    exact, logits = found
    cosine = (logits * exact).sum() / np.linalg.norm(logits) / np.linalg.norm(exact)
    assert cosine > (0.97 if level.bits > 4 else 0.8)


def test_wrong_shapes_never_reach_llama_cpp(bundle: Path) -> None:
    with LlamaModel(bundle / "Miso-Tiny-backbone-F32.gguf", LlamaOptions(threads=1), context=8) as model:
        for shape in ((3, 255), (0, 256), (9, 256), (256,)):
            with pytest.raises(ValueError, match=r"expected embeddings \[1..8, 256\]"):
                model.forward(np.zeros(shape, np.float32))


def test_accounted_compute_buffer_is_llama_cpps(bundle: Path) -> None:
    """The VRAM that `inspect` accounts, held against what llama.cpp says it allocates."""
    import logging  # noqa: PLC0415
    import re  # noqa: PLC0415

    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("miso_gguf.native.messages")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    lib = load_library()
    model = lib.llama_model_load_from_file(
        str(bundle / "Miso-Tiny-backbone-F16.gguf").encode(), lib.llama_model_default_params()
    )
    params = lib.llama_context_default_params()
    params.n_ctx, params.embeddings, params.pooling_type = TINY.max_positions, True, 0
    params.n_batch = params.n_ubatch = GPU_PREFILL_ROWS
    context = lib.llama_init_from_model(model, params)
    lib.llama_free(context)
    lib.llama_model_free(model)
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)
    text = "\n".join(messages)
    compute = float(re.search(r"compute buffer size = +([\d.]+) MiB", text)[1]) * 2**20  # type: ignore[index]
    cache = float(re.search(r"KV buffer size = +([\d.]+) MiB", text)[1]) * 2**20  # type: ignore[index]
    memory = level_memory(read_manifest(bundle), "fp16")
    assert memory.compute_bytes == pytest.approx(compute, rel=0.05)
    depth_cache = 2 * TINY.decoder.layers * TINY.decoder.kv_dim * TINY.codebooks * 2
    assert memory.kv_cache_bytes - depth_cache == pytest.approx(cache, rel=0.01)
