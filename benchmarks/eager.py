"""The baseline of `frame.py`: one frame in eager PyTorch, bfloat16, at the same shapes, with random weights.

As upstream runs it, KV caches have their full length from the start and a mask hides what is not there yet. Only the
shapes matter for speed: the backbone's layers share the weights of two, which are far larger than any cache, so that
the baseline fits into memory beside what it is compared with; every layer still streams its weights.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from miso_gguf.models.spec import ModelSpec, TransformerSpec

_DISTINCT_LAYERS = 2


class _Layer:
    def __init__(self, t: TransformerSpec) -> None:
        def matrix(rows: int, columns: int) -> Tensor:
            return torch.empty(rows, columns, dtype=torch.bfloat16).normal_(0, columns**-0.5)

        self.t = t
        self.q, self.k, self.v = (matrix(rows, t.embed_dim) for rows in (t.q_dim, t.kv_dim, t.kv_dim))
        self.out = matrix(t.embed_dim, t.q_dim)
        self.gate, self.up = matrix(t.ffn_dim, t.embed_dim), matrix(t.ffn_dim, t.embed_dim)
        self.down = matrix(t.embed_dim, t.ffn_dim)
        self.norms = torch.ones(2, t.embed_dim, dtype=torch.bfloat16)

    def __call__(self, x: Tensor, rotation: Tensor, cache: Tensor, positions: Tensor) -> Tensor:
        """`x` [1, T, d] at `positions` [T]; `cache` [2, 1, kv_heads, length, head_dim] is extended in place."""
        t, count = self.t, x.shape[1]
        y = F.rms_norm(x, (t.embed_dim,), self.norms[0])
        q = _rotate(F.linear(y, self.q).view(1, count, t.heads, t.head_dim), rotation).transpose(1, 2)
        k = _rotate(F.linear(y, self.k).view(1, count, t.kv_heads, t.head_dim), rotation).transpose(1, 2)
        v = F.linear(y, self.v).view(1, count, t.kv_heads, t.head_dim).transpose(1, 2)
        cache[:, :, :, positions] = torch.stack([k, v])
        visible = positions.unsqueeze(1) >= torch.arange(cache.shape[3])
        share = t.heads // t.kv_heads
        keys, values = cache[0].repeat_interleave(share, dim=1), cache[1].repeat_interleave(share, dim=1)
        mixed = F.scaled_dot_product_attention(q, keys, values, attn_mask=visible)
        x = x + F.linear(mixed.transpose(1, 2).reshape(1, count, t.q_dim), self.out)
        y = F.rms_norm(x, (t.embed_dim,), self.norms[1])
        return x + F.linear(F.silu(F.linear(y, self.gate)) * F.linear(y, self.up), self.down)


def _rotate(x: Tensor, rotation: Tensor) -> Tensor:
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = rotation.cos(), rotation.sin()
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def _caches(t: TransformerSpec, length: int) -> list[Tensor]:
    return [torch.randn(2, 1, t.kv_heads, length, t.head_dim, dtype=torch.bfloat16) for _ in range(t.layers)]


class EagerFrame:
    """One frame of both models, `past` positions into an utterance."""

    def __init__(self, spec: ModelSpec, past: int) -> None:
        self._spec, b, d = spec, spec.backbone, spec.decoder
        self._backbone = [_Layer(b) for _ in range(min(_DISTINCT_LAYERS, b.layers))]
        self._decoder = [_Layer(d) for _ in range(d.layers)]
        self._projection = torch.randn(d.embed_dim, b.embed_dim, dtype=torch.bfloat16)
        self._head = torch.randn(spec.audio_vocab, b.embed_dim, dtype=torch.bfloat16)
        self._heads = torch.randn(spec.codebooks - 1, d.embed_dim, spec.audio_vocab, dtype=torch.bfloat16)
        self._embedding = torch.randn(spec.audio_vocab, b.embed_dim, dtype=torch.bfloat16)
        self._past = torch.tensor([past])
        self._caches = _caches(b, spec.max_positions)
        self._depth_caches = _caches(d, spec.codebooks)

    @torch.inference_mode()
    def backbone(self) -> Tensor:
        """The backbone's step."""
        b = self._spec.backbone
        x = torch.randn(1, 1, b.embed_dim, dtype=torch.bfloat16)
        rotation = torch.ones(1, 1, 1, b.head_dim // 2, dtype=torch.bfloat16)
        for index in range(b.layers):
            x = self._backbone[index % len(self._backbone)](x, rotation, self._caches[index], self._past)
        F.linear(x, self._head)
        return x

    @torch.inference_mode()
    def depth(self, h: Tensor) -> None:
        """The depth decoder's steps, sampling included."""
        d, spec = self._spec.decoder, self._spec
        x = torch.cat([h, self._embedding[:1].unsqueeze(0)], dim=1)
        for codebook in range(1, spec.codebooks):
            y = F.linear(x, self._projection)
            positions = torch.arange(codebook + 1 - x.shape[1], codebook + 1)
            rotation = torch.ones(1, x.shape[1], 1, d.head_dim // 2, dtype=torch.bfloat16)
            for index, layer in enumerate(self._decoder):
                y = layer(y, rotation, self._depth_caches[index], positions)
            logits = (y[:, -1] @ self._heads[codebook - 1]).float() / 0.9
            best = logits.topk(min(50, logits.shape[-1]))
            probabilities = best.values.softmax(-1)
            code = best.indices[0, (probabilities / torch.empty_like(probabilities).exponential_()).argmax()]
            x = self._embedding[code].view(1, 1, -1)
