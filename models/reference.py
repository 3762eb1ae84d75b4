"""The model in plain PyTorch: what every other implementation in this project is measured against.

Written to be read and to run the full F32 checkpoint in little memory: a weight is fetched by its upstream name each
time it is used and never kept, so a memory-mapped `weights` function needs no more than one tensor at a time. It knows
no file formats, no tokenizer and no codec. torch is an extra of the package; only this module of `models` imports it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .spec import ModelSpec, TransformerSpec, rope_factors
from .tensors import AUDIO_TABLE, decoder_audio_table

Weights = Callable[[str], Tensor]
"""Upstream (torchtune) tensor name -> tensor, of any float type."""

Noise = Callable[[int], Tensor]
"""Frame index -> Gumbel noise `[codebooks, audio_vocab]`; see `noise.py`."""


class Rows(NamedTuple):
    """Positions of the backbone: 32 audio slots and one text slot each, of which the mask says which are in use."""

    tokens: Tensor
    """int64 `[T, codebooks + 1]`, the text slot last."""
    mask: Tensor
    """bool, same shape."""


class Segment(NamedTuple):
    """Something already said: its text and its speech."""

    text_ids: list[int]
    """Token ids, BOS and EOS included."""
    codes: Tensor
    """int64 `[frames, codebooks]`."""


@dataclass
class KVCache:
    """Keys and values of the positions seen so far, `[..., kv_heads, T, head_dim]` per layer."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Positions held."""
        return self.keys[0].shape[-2] if self.keys else 0

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new positions of `layer`; returns all its keys and values."""
        if layer == len(self.keys):
            self.keys.append(keys)
            self.values.append(values)
        else:
            self.keys[layer] = torch.cat([self.keys[layer], keys], dim=-2)
            self.values[layer] = torch.cat([self.values[layer], values], dim=-2)
        return self.keys[layer], self.values[layer]


def text_rows(spec: ModelSpec, ids: Iterable[int]) -> Rows:
    """One row per text token: only the text slot in use."""
    column = torch.tensor(list(ids), dtype=torch.int64)
    tokens = torch.zeros(len(column), spec.codebooks + 1, dtype=torch.int64)
    tokens[:, -1] = column
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, -1] = True
    return Rows(tokens, mask)


def audio_rows(spec: ModelSpec, codes: Tensor) -> Rows:
    """One row per frame of `codes` `[frames, codebooks]`: all slots in use but the text slot."""
    tokens = F.pad(codes.to(torch.int64), (0, 1))
    mask = torch.ones(len(codes), spec.codebooks + 1, dtype=torch.bool)
    mask[:, -1] = False
    return Rows(tokens, mask)


def prompt_rows(spec: ModelSpec, segments: Iterable[Segment], text_ids: Iterable[int]) -> Rows:
    """The prompt: each segment's text, speech and EOS frame (all codes 0), then the text that is to be said."""
    parts: list[Rows] = []
    for segment in segments:
        eos_frame = torch.zeros(1, spec.codebooks, dtype=torch.int64)
        parts += [
            text_rows(spec, segment.text_ids),
            audio_rows(spec, torch.cat([segment.codes.to(torch.int64), eos_frame])),
        ]
    parts.append(text_rows(spec, text_ids))
    return Rows(torch.cat([part.tokens for part in parts]), torch.cat([part.mask for part in parts]))


def sample(logits: Tensor, noise: Tensor | None, temperature: float, top_k: int | None) -> Tensor:
    """One code from `logits` `[audio_vocab]`: greedy at temperature 0, else Gumbel-max within the `top_k` best.

    As upstream, candidates that tie with the `top_k`-th best are kept as well.
    """
    if temperature == 0:
        return logits.argmax(-1)
    if noise is None or temperature < 0:
        raise ValueError(f"sampling needs noise and a positive temperature, not {temperature}; 0 is greedy")
    scores = logits / temperature
    if top_k is not None:
        threshold = scores.topk(min(top_k, scores.shape[-1])).values[..., -1:]
        scores = scores.masked_fill(scores < threshold, -torch.inf)
    return (scores + noise.to(scores)).argmax(-1)


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    """RoPE on interleaved pairs (2i, 2i + 1). `x` `[..., T, head_dim]`, `angles` `[T, head_dim / 2]`."""
    cos, sin = angles.cos().to(x), angles.sin().to(x)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


class Reference:
    """One model of the CSM design.

    Args:
        spec: The model's dimensions.
        weights: Called with a tensor's upstream name each time it is used; nothing is kept.
        dtype: What to compute in: float32, or float64 to judge float32 results.
    """

    def __init__(self, spec: ModelSpec, weights: Weights, dtype: torch.dtype = torch.float32) -> None:
        self.spec = spec
        self.dtype = dtype
        self._weights = weights

    def _weight(self, name: str) -> Tensor:
        return self._weights(name).to(self.dtype)

    def _rows(self, name: str, ids: Tensor) -> Tensor:
        """Rows of a big table. Only these are converted and, of a memory-mapped tensor, only these are read."""
        return self._weights(name)[ids].to(self.dtype)

    def _audio_embedding(self, table: str, codebook: int | Tensor, codes: Tensor) -> Tensor:
        return self._rows(table, codes + codebook * self.spec.audio_vocab)

    def _depth_embedding(self, codebook: int | Tensor, codes: Tensor) -> Tensor:
        return self._audio_embedding(decoder_audio_table(self.spec), codebook, codes)

    def embed(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Sum of the embeddings of each row's unmasked slots: `[T, codebooks + 1]` -> `[T, D]`."""
        x = torch.zeros(len(tokens), self.spec.backbone.embed_dim, dtype=self.dtype)
        for slot in range(self.spec.codebooks + 1):
            used = mask[:, slot]
            if not used.any():
                continue
            if slot < self.spec.codebooks:
                x[used] += self._audio_embedding(AUDIO_TABLE, slot, tokens[used, slot])
            else:
                x[used] += self._rows("text_embeddings.weight", tokens[used, slot])
        return x

    def backbone(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """Embeddings `[T, D]` -> hidden states `[T, D]` after the final norm; `cache` holds what came before."""
        return self._transformer("backbone", self.spec.backbone, x, cache)

    def codebook0_logits(self, h: Tensor) -> Tensor:
        """Logits of the semantic code: `[..., D]` -> `[..., audio_vocab]`."""
        return h @ self._weight("codebook0_head.weight").T

    def depth_logits(self, h: Tensor, codes: Tensor) -> Tensor:
        """Logits of codebooks 1 to k, given codes 0 to k - 1 of the same frame (teacher forcing), in one pass.

        `h` `[..., D]`, `codes` `[..., k]` -> `[..., k, audio_vocab]`; leading dimensions are independent frames.
        """
        given = codes.shape[-1]
        if not 1 <= given < self.spec.codebooks:
            raise ValueError(f"depth_logits needs 1 to {self.spec.codebooks - 1} codes, not {given}")
        x = torch.cat([h.unsqueeze(-2), self._depth_embedding(torch.arange(given), codes)], dim=-2)
        return self._heads(self._depth(x, None)[..., 1:, :], first=1)

    @torch.no_grad()
    def generate_frame(
        self, h: Tensor, noise: Tensor | None = None, temperature: float = 0.9, top_k: int | None = 50
    ) -> Tensor:
        """All codes of one frame from its hidden state `[D]`: int64 `[codebooks]`.

        `noise` is Gumbel noise `[codebooks, audio_vocab]`; it is not needed at temperature 0, which is greedy.
        """
        codes = [sample(self.codebook0_logits(h), None if noise is None else noise[0], temperature, top_k)]
        cache = KVCache()
        waiting = h.unsqueeze(0)  # the decoder's position 0 has no logits: it goes in together with the first code
        for codebook in range(1, self.spec.codebooks):
            x = torch.cat([waiting, self._depth_embedding(codebook - 1, codes[-1].unsqueeze(0))])
            logits = self._heads(self._depth(x, cache)[-1:], first=codebook)[0]
            codes.append(sample(logits, None if noise is None else noise[codebook], temperature, top_k))
            waiting = waiting[:0]
        return torch.stack(codes)

    @torch.no_grad()
    def generate(
        self,
        prompt: Rows,
        max_frames: int,
        noise: Noise | None = None,
        temperature: float = 0.9,
        top_k: int | None = 50,
    ) -> Tensor:
        """Speak after `prompt` until the EOS frame (all codes 0, not returned), `max_frames` or the last position.

        Returns:
            Codes, int64 `[frames, codebooks]`.

        Raises:
            ValueError: If the prompt is empty or leaves no position for a frame.
        """
        length, limit = len(prompt.tokens), self.spec.max_positions
        if not 1 <= length < limit:
            raise ValueError(f"the prompt must have 1 to {limit - 1} rows, not {length}")
        frames: list[Tensor] = []
        cache = KVCache()
        rows = prompt
        for frame in range(min(max_frames, limit - length)):
            h = self.backbone(self.embed(*rows), cache)[-1]
            codes = self.generate_frame(h, noise(frame) if noise else None, temperature, top_k)
            if not codes.any():
                break
            frames.append(codes)
            rows = audio_rows(self.spec, codes.unsqueeze(0))
        return torch.stack(frames) if frames else torch.empty(0, self.spec.codebooks, dtype=torch.int64)

    def _depth(self, x: Tensor, cache: KVCache | None) -> Tensor:
        """Backbone-wide inputs `[..., T, D]` through the projection and the depth decoder."""
        return self._transformer("decoder", self.spec.decoder, x @ self._weight("projection.weight").T, cache)

    def _heads(self, h: Tensor, first: int) -> Tensor:
        """Each position its own head, codebook `first` onwards: `[..., k, d]` -> `[..., k, audio_vocab]`."""
        heads = self._weights("audio_head")[first - 1 : first - 1 + h.shape[-2]].to(self.dtype)
        return torch.einsum("...kd,kdv->...kv", h, heads)

    def _transformer(self, prefix: str, t: TransformerSpec, x: Tensor, cache: KVCache | None) -> Tensor:
        past = cache.length if cache else 0
        positions = torch.arange(past, past + x.shape[-2])
        angles = positions.unsqueeze(1) * self._frequencies(t.head_dim)
        visible = positions.unsqueeze(1) >= torch.arange(past + x.shape[-2])
        for layer in range(t.layers):
            name = f"{prefix}.layers.{layer}"
            y = self._norm(x, f"{name}.sa_norm.scale")
            x = x + self._attention(f"{name}.attn", t, y, angles=angles, visible=visible, cache=cache, layer=layer)
            y = self._norm(x, f"{name}.mlp_norm.scale")
            gate = F.silu(y @ self._weight(f"{name}.mlp.w1.weight").T)
            x = x + (gate * (y @ self._weight(f"{name}.mlp.w3.weight").T)) @ self._weight(f"{name}.mlp.w2.weight").T
        return self._norm(x, f"{prefix}.norm.scale")

    def _attention(
        self,
        name: str,
        t: TransformerSpec,
        x: Tensor,
        *,
        angles: Tensor,
        visible: Tensor,
        cache: KVCache | None,
        layer: int,
    ) -> Tensor:
        def heads(projection: str, count: int) -> Tensor:
            flat = x @ self._weight(f"{name}.{projection}.weight").T
            return flat.view(*flat.shape[:-1], count, t.head_dim).transpose(-3, -2)

        q = _rotate(heads("q_proj", t.heads), angles)
        k = _rotate(heads("k_proj", t.kv_heads), angles)
        v = heads("v_proj", t.kv_heads)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        share = t.heads // t.kv_heads
        k, v = k.repeat_interleave(share, dim=-3), v.repeat_interleave(share, dim=-3)
        scores = (q @ k.transpose(-1, -2)) * t.head_dim**-0.5
        mixed: Tensor = scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v
        return mixed.transpose(-3, -2).flatten(-2) @ self._weight(f"{name}.output_proj.weight").T

    def _norm(self, x: Tensor, name: str) -> Tensor:
        """RMSNorm, in float32 or better whatever `dtype` is. Source: torchtune's RMSNorm."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.spec.norm_eps)
        return normed.to(x) * self._weight(name)

    def _frequencies(self, head_dim: int) -> Tensor:
        """RoPE frequencies of the pairs, float64 `[head_dim / 2]`: at float32, angles are off by 1e-4 at 2048."""
        plain = self.spec.rope_base ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        return plain / torch.tensor(rope_factors(self.spec, head_dim), dtype=torch.float64)
