"""The reference against hand-written arithmetic and against itself; against transformers: test_hf_layout.py."""

import dataclasses
import math
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch

from miso_gguf.models.noise import gumbel_noise, uniform_bits
from miso_gguf.models.reference import KVCache, Reference, Rows, Segment, audio_rows, prompt_rows, sample, text_rows
from miso_gguf.models.spec import ModelSpec, TransformerSpec, rope_factors
from miso_gguf.models.tensors import checkpoint_shapes

SPEC = ModelSpec(
    "Small",
    TransformerSpec(layers=2, embed_dim=32, heads=4, kv_heads=2, head_dim=8, ffn_dim=48),
    TransformerSpec(layers=2, embed_dim=24, heads=2, kv_heads=1, head_dim=16, ffn_dim=40),
    text_vocab=20,
    audio_vocab=11,
    codebooks=5,
    max_positions=64,
)


def _weights(spec: ModelSpec = SPEC, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * (1.0 if "embeddings" in name else 2.0 * shape[-1] ** -0.5)
        + (1.0 if name.endswith("scale") else 0.0)
        for name, shape in checkpoint_shapes(spec).items()
    }


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return _weights()


@pytest.fixture
def reference(weights: dict[str, torch.Tensor]) -> Reference:
    return Reference(SPEC, weights.__getitem__)


def _naive_transformer(w: dict[str, torch.Tensor], prefix: str, t: TransformerSpec, x: np.ndarray) -> np.ndarray:
    """Position by position, head by head, with complex numbers for RoPE, in float64."""
    array = {name: tensor.double().numpy() for name, tensor in w.items() if name.startswith(prefix + ".")}
    frequency = [
        SPEC.rope_base ** (-2 * pair / t.head_dim) / factor
        for pair, factor in enumerate(rope_factors(SPEC, t.head_dim))
    ]

    def norm(v: np.ndarray, name: str) -> np.ndarray:
        normed: np.ndarray = v / math.sqrt(float(np.mean(v * v)) + SPEC.norm_eps) * array[name]
        return normed

    def rope(v: np.ndarray, position: int) -> np.ndarray:
        pairs = v[0::2] + 1j * v[1::2]
        turned = pairs * np.exp(1j * position * np.array(frequency))
        return np.stack([turned.real, turned.imag], axis=1).ravel()

    for layer in range(t.layers):
        base = f"{prefix}.layers.{layer}."
        normed = [norm(v, base + "sa_norm.scale") for v in x]
        out = np.zeros_like(x)
        for position in range(len(x)):
            heads = []
            for head in range(t.heads):
                rows = slice(head * t.head_dim, (head + 1) * t.head_dim)
                shared = head // (t.heads // t.kv_heads)
                kv_rows = slice(shared * t.head_dim, (shared + 1) * t.head_dim)
                q = rope(array[base + "attn.q_proj.weight"][rows] @ normed[position], position)
                keys = [rope(array[base + "attn.k_proj.weight"][kv_rows] @ normed[p], p) for p in range(position + 1)]
                scores = np.exp([float(q @ k) / math.sqrt(t.head_dim) for k in keys])
                values = [array[base + "attn.v_proj.weight"][kv_rows] @ normed[p] for p in range(position + 1)]
                heads.append(sum(s * v for s, v in zip(scores / scores.sum(), values, strict=True)))
            out[position] = array[base + "attn.output_proj.weight"] @ np.concatenate(heads)
        x = x + out
        for position in range(len(x)):
            normed_x = norm(x[position], base + "mlp_norm.scale")
            gate = array[base + "mlp.w1.weight"] @ normed_x
            up = array[base + "mlp.w3.weight"] @ normed_x
            x[position] += array[base + "mlp.w2.weight"] @ (gate / (1 + np.exp(-gate)) * up)
    return np.stack([norm(v, f"{prefix}.norm.scale") for v in x])


def _prompt() -> Rows:
    torch.manual_seed(3)
    segment = Segment([1, 7, 7, 2], torch.randint(1, 11, (6, 5)))
    return prompt_rows(SPEC, [segment], [1, 4, 9, 2])


def test_forward_equals_naive_float64(weights: dict[str, torch.Tensor]) -> None:
    reference = Reference(SPEC, weights.__getitem__, torch.float64)
    rows = _prompt()
    embedded = np.zeros((15, 32))
    for position in range(15):
        for slot in range(6):
            if rows.mask[position, slot]:
                token = int(rows.tokens[position, slot])
                table, row = ("text_embeddings", token) if slot == 5 else ("audio_embeddings", slot * 11 + token)
                embedded[position] += weights[f"{table}.weight"][row].double().numpy()
    np.testing.assert_allclose(reference.embed(*rows).numpy(), embedded, atol=1e-12)
    h = _naive_transformer(weights, "backbone", SPEC.backbone, embedded)
    np.testing.assert_allclose(reference.backbone(reference.embed(*rows)).numpy(), h, atol=1e-11)
    logits = h @ weights["codebook0_head.weight"].double().numpy().T
    np.testing.assert_allclose(reference.codebook0_logits(torch.from_numpy(h)).numpy(), logits, atol=1e-12)

    codes = [3, 10, 0, 7]
    inputs = [h[-1], *(weights["audio_embeddings.weight"][i * 11 + c].double().numpy() for i, c in enumerate(codes))]
    projected = np.stack(inputs) @ weights["projection.weight"].double().numpy().T
    d = _naive_transformer(weights, "decoder", SPEC.decoder, projected)
    wanted = np.stack([d[i] @ weights["audio_head"][i - 1].double().numpy() for i in range(1, 5)])
    found = reference.depth_logits(torch.from_numpy(h[-1]), torch.tensor(codes))
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-11)


def test_float32_is_near_float64(weights: dict[str, torch.Tensor], reference: Reference) -> None:
    exact = Reference(SPEC, weights.__getitem__, torch.float64)
    rows = _prompt()
    h, h64 = reference.backbone(reference.embed(*rows)), exact.backbone(exact.embed(*rows))
    assert (h.dtype, h64.dtype) == (torch.float32, torch.float64)
    assert 0 < float((h - h64).abs().max()) < 1e-5


def test_cache_changes_nothing_and_the_future_is_invisible(reference: Reference) -> None:
    x = reference.embed(*_prompt())
    whole = reference.backbone(x)
    for pieces in ([15], [1] * 15, [4, 7, 3, 1]):
        cache = KVCache()
        parts = [reference.backbone(piece, cache) for piece in torch.split(x, pieces)]
        torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=0)
        assert cache.length == 15
    changed = x.clone()
    changed[9:] += 1.0
    torch.testing.assert_close(reference.backbone(changed)[:9], whole[:9], atol=1e-6, rtol=0)


def test_depth_logits_batch_and_prefix(reference: Reference) -> None:
    torch.manual_seed(5)
    h, codes = torch.randn(3, 32), torch.randint(11, (3, 4))
    together = reference.depth_logits(h, codes)
    assert together.shape == (3, 4, 11)
    for frame in range(3):
        for given in range(1, 5):
            alone = reference.depth_logits(h[frame], codes[frame, :given])
            torch.testing.assert_close(alone, together[frame, :given], atol=1e-5, rtol=0)
    for given in (0, 5):
        with pytest.raises(ValueError, match="1 to 4 codes"):
            reference.depth_logits(h[0], torch.zeros(given, dtype=torch.int64))


def test_prompt_rows_exact() -> None:
    spec = dataclasses.replace(SPEC, codebooks=2)
    rows = prompt_rows(spec, [Segment([1, 5], torch.tensor([[3, 4], [6, 7]]))], [1, 9, 2])
    assert rows.tokens.tolist() == [
        [0, 0, 1], [0, 0, 5], [3, 4, 0], [6, 7, 0], [0, 0, 0], [0, 0, 1], [0, 0, 9], [0, 0, 2],
    ]  # fmt: skip
    text, audio = [False, False, True], [True, True, False]
    assert rows.mask.tolist() == [text, text, audio, audio, audio, text, text, text]


def test_frames_agree_with_teacher_forcing(reference: Reference) -> None:
    h = reference.backbone(reference.embed(*_prompt()))[-1]
    greedy = reference.generate_frame(h, temperature=0)
    assert int(greedy[0]) == int(reference.codebook0_logits(h).argmax())
    assert greedy[1:].tolist() == reference.depth_logits(h, greedy[:-1]).argmax(-1).tolist()

    noise = torch.from_numpy(gumbel_noise(9, 0, 5, 11))
    drawn = reference.generate_frame(h, noise, temperature=1.3, top_k=4)
    logits = torch.cat([reference.codebook0_logits(h)[None], reference.depth_logits(h, drawn[:-1])])
    assert drawn.tolist() == [int(sample(logits[i], noise[i], 1.3, 4)) for i in range(5)]
    assert drawn.tolist() != greedy.tolist()


def test_sample_equals_upstreams_argmax_of_p_over_exponential() -> None:
    torch.manual_seed(0)
    differs_from_greedy = 0
    for trial in range(200):
        logits, exponential = torch.randn(30).double() * 3, torch.empty(30).double().exponential_(1)
        top_k, temperature = (5, 0.9) if trial % 2 else (30, 1.7)
        p = (logits / temperature).softmax(-1)
        p[p < p.topk(top_k).values[-1]] = 0
        wanted = int((p / p.sum() / exponential).argmax())
        assert int(sample(logits, -exponential.log(), temperature, top_k)) == wanted
        differs_from_greedy += wanted != int(logits.argmax())
    assert differs_from_greedy > 20
    assert int(sample(logits, None, 0, None)) == int(logits.argmax())
    assert int(sample(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([99.0, 0.0, 1.0]), 1.0, 1)) == 2, "ties are kept"
    with pytest.raises(ValueError, match="needs noise"):
        sample(logits, None, 0.9, 50)
    with pytest.raises(ValueError, match="positive temperature"):
        sample(logits, logits, -1.0, 50)


def test_generate_feeds_frames_back(reference: Reference) -> None:
    def noise(frame: int) -> torch.Tensor:
        return torch.from_numpy(gumbel_noise(4, frame, 5, 11))

    prompt = _prompt()
    codes = reference.generate(prompt, 12, noise, temperature=1.0, top_k=8)
    assert codes.shape == (12, 5)
    tokens, mask = (torch.cat(parts) for parts in zip(prompt, audio_rows(SPEC, codes), strict=True))
    h = reference.backbone(reference.embed(tokens, mask))
    again = [reference.generate_frame(h[14 + frame], noise(frame), 1.0, 8).tolist() for frame in range(12)]
    assert codes.tolist() == again


@pytest.mark.parametrize("eos_at", [0, 3])
def test_generate_stops_before_the_eos_frame(
    reference: Reference, monkeypatch: pytest.MonkeyPatch, eos_at: int
) -> None:
    frames = iter([[0, 0, 0, 0, 1], [1, 0, 0, 0, 0], [5, 6, 7, 8, 9]][:eos_at] + [[0] * 5] + [[2] * 5] * 9)
    monkeypatch.setattr(reference, "generate_frame", lambda *_: torch.tensor(next(frames)))
    codes = reference.generate(_prompt(), 10)
    assert codes.tolist() == [[0, 0, 0, 0, 1], [1, 0, 0, 0, 0], [5, 6, 7, 8, 9]][:eos_at]
    assert codes.shape == (eos_at, 5)


def test_generate_keeps_to_the_positions(reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "generate_frame", lambda *_: torch.ones(5, dtype=torch.int64))
    assert len(reference.generate(text_rows(SPEC, [1] * 60), 100)) == 4
    for length in (0, 64):
        with pytest.raises(ValueError, match=f"1 to 63 rows, not {length}"):
            reference.generate(text_rows(SPEC, [1] * length), 1)


def test_weights_are_fetched_per_use_and_never_kept(weights: dict[str, torch.Tensor]) -> None:
    alive: list[str] = []
    most = 0

    def fetch(name: str) -> torch.Tensor:
        nonlocal most
        memory = weights[name].numpy().copy()  # lives for as long as any tensor made of it
        weakref.finalize(memory, alive.remove, name)
        alive.append(name)
        most = max(most, len(alive))
        return torch.from_numpy(memory)

    reference = Reference(SPEC, fetch)
    h = reference.backbone(reference.embed(*_prompt()))
    reference.generate_frame(h[-1], temperature=0)
    assert alive == []
    assert 1 <= most <= 2


def _philox4x64(key: tuple[int, int], counter: tuple[int, int, int, int]) -> list[int]:
    """Ten rounds, written from the paper."""
    x, (k0, k1), word = list(counter), key, (1 << 64) - 1
    for _ in range(10):
        p0, p1 = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
        x = [(p1 >> 64) ^ x[1] ^ k0, p1 & word, (p0 >> 64) ^ x[3] ^ k1, p0 & word]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & word, (k1 + 0xBB67AE8584CAA73B) & word
    return x


def test_noise_bits_are_philox_at_the_documented_counter() -> None:
    # Known answer of the Random123 distribution, to trust the oracle itself.
    assert _philox4x64((0, 0), (0, 0, 0, 0))[0] == 0x16554D9ECA36314C
    seed, frame, stream = 0xDEADBEEF_00000001, 1 << 40, 3
    bits = uniform_bits(seed, frame, 4, 21, stream=stream)
    assert (bits.shape, bits.dtype.itemsize) == ((4, 21), 4)
    for codebook, code in [(0, 0), (0, 1), (1, 7), (2, 8), (3, 20), (3, 13)]:
        block = _philox4x64((seed, 0), (code // 8 + 1, codebook, frame, stream))
        half = block[code % 8 // 2] >> (32 * (code % 2)) & 0xFFFFFFFF
        assert int(bits[codebook, code]) == half


def test_noise_depends_on_nothing_but_its_place() -> None:
    whole = gumbel_noise(1, 7, 32, 2051)
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(gumbel_noise(1, 7, 3, 100), whole[:3, :100])
    others: list[Callable[[], np.ndarray]] = [
        lambda: gumbel_noise(2, 7, 32, 2051),
        lambda: gumbel_noise(1, 8, 32, 2051),
        lambda: gumbel_noise(1, 7, 32, 2051, stream=1),
    ]
    for other in others:
        assert float(np.mean(other() == whole)) < 1e-3
    assert len(np.unique(whole[:, :64])) > 2000, "codebooks must differ"


def test_noise_is_gumbel() -> None:
    noise = np.concatenate([gumbel_noise(0, frame, 32, 2051).ravel() for frame in range(8)]).astype(np.float64)
    assert np.isfinite(noise).all()
    # The standard error of the mean is sigma / sqrt(n) = 0.0018; the bounds are about 4 of them.
    assert abs(noise.mean() - np.euler_gamma) < 0.007
    assert abs(noise.std() - math.pi / math.sqrt(6)) < 0.01
    expected = np.exp(-np.exp(-np.sort(noise)))
    assert float(np.abs(expected - (np.arange(len(noise)) + 0.5) / len(noise)).max()) < 2.2 / math.sqrt(len(noise))


@pytest.mark.parametrize("bits", [0, 1, 0xFFFFFFFF])
def test_extreme_bits_give_finite_noise(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    monkeypatch.setattr("miso_gguf.models.noise.uniform_bits", lambda *_, **__: np.full((1, 1), bits, np.dtype("<u4")))
    exact = -math.log(-math.log((bits + 0.5) / 2**32))
    assert float(gumbel_noise(0, 0, 1, 1)[0, 0]) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("arguments", [{"seed": -1}, {"seed": 1 << 64}, {"frame": -1}, {"stream": 1 << 64}])
def test_noise_refuses_what_is_not_64_bit(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be 0 to"):
        gumbel_noise(**{"seed": 0, "frame": 0, "codebooks": 1, "vocab": 1, **arguments})
