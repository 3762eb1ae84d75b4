"""Trains the tiny language model through the PyTorch reference, with the loss of upstream.

Codebook 0 is learnt on every frame by the backbone, the other codebooks on a sample of the frames by the depth decoder,
both with the true codes before them (teacher forcing). A few of those are replaced by others, so that the model learns
to go on after a code that sampling got wrong. A step's data depend on the seed and the step only, so that a run that
was cut off goes on as if it had not been.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from ....core.files import open_whole
from ...reference import Reference, Segment, prompt_rows
from ...spec import ModelSpec
from ...tensors import checkpoint_shapes
from .conversations import Turn, random_conversation, random_turn_count
from .corpus import Corpus

Encode = Callable[[str], list[int]]
"""Text to token ids, BOS and EOS included."""

MadeOf = dict[str, Any]
"""The recipe's numbers, and `data`."""

log = logging.getLogger(__name__)

_SAVE_EVERY = 100
_LOG_EVERY = 20
_INIT_STD = 0.02


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result.

    Attributes:
        steps: Of the optimiser.
        turns: In a step, over all its conversations.
        learning_rate: At its highest; it rises over `warmup` steps and falls to zero on a cosine.
        warmup: Steps.
        weight_decay: Of matrices.
        depth_share: Of frames on which the depth decoder learns.
        wrong_codes: Share of the given codes that are replaced by random ones.
        seed: Of everything random.
    """

    steps: int = 2600
    turns: int = 72
    learning_rate: float = 2e-3
    warmup: int = 200
    weight_decay: float = 0.02
    depth_share: float = 0.25
    wrong_codes: float = 0.03
    seed: int = 0


@dataclass(frozen=True)
class Batch:
    """Conversations side by side, padded at the end.

    Attributes:
        tokens: `[B, T, codebooks + 1]`, with wrong codes among them.
        mask: Same shape: slots in use.
        frames: True codes of every row that comes next, `[B, T, codebooks]`.
        learnt: `[B, T]`, rows after which a frame is to be predicted.
    """

    tokens: Tensor
    mask: Tensor
    frames: Tensor
    learnt: Tensor


def prompt_text(spec: ModelSpec, turn: Turn) -> str:
    """As the model reads it."""
    return spec.prompt.format(speaker=turn.speaker_id, text=turn.text)


def make_batch(spec: ModelSpec, conversations: list[list[Turn]], encode: Encode) -> Batch:
    """The conversations as the backbone's rows, and what is to be predicted after each row."""
    built = []
    for turns in conversations:
        segments = [Segment(encode(prompt_text(spec, turn)), torch.from_numpy(turn.codes)) for turn in turns]
        rows = prompt_rows(spec, segments, [])
        learnt = torch.zeros(len(rows.tokens), dtype=torch.bool)
        end = 0
        for turn, segment in zip(turns, segments, strict=True):
            start, end = end + len(segment.text_ids), end + len(segment.text_ids) + len(segment.codes) + 1
            learnt[start - 1 : end - 1] = turn.learnt  # from the last row of the text to that before the EOS frame
        built.append((rows, learnt))
    longest = max(len(learnt) for _, learnt in built)
    slots = spec.codebooks + 1
    tokens = torch.zeros(len(built), longest, slots, dtype=torch.int64)
    mask = torch.zeros(len(built), longest, slots, dtype=torch.bool)
    is_learnt = torch.zeros(len(built), longest, dtype=torch.bool)
    for index, (rows, learnt) in enumerate(built):
        tokens[index, : len(learnt)] = rows.tokens
        mask[index, : len(learnt)] = rows.mask
        is_learnt[index, : len(learnt)] = learnt
    frames = F.pad(tokens[:, 1:, :-1], (0, 0, 0, 1))
    return Batch(tokens, mask, frames, is_learnt)


def random_batch(spec: ModelSpec, corpus: Corpus, encode: Encode, recipe: Recipe, step: int) -> Batch:
    """What step `step` learns from: conversations of equally many turns."""
    rng = np.random.default_rng((recipe.seed, step))
    turns = random_turn_count(rng)
    conversations = [random_conversation(corpus, turns, rng) for _ in range(max(1, recipe.turns // turns))]
    batch = make_batch(spec, conversations, encode)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    return Batch(_with_wrong_codes(batch, recipe.wrong_codes, generator), batch.mask, batch.frames, batch.learnt)


def _with_wrong_codes(batch: Batch, share: float, generator: torch.Generator) -> Tensor:
    codes = batch.tokens[..., :-1]
    is_speech = codes.any(-1, keepdim=True)  # neither text, nor the EOS frame, nor padding
    wrong = _wrong(codes, share, generator)
    return torch.cat([torch.where(is_speech, wrong, codes), batch.tokens[..., -1:]], dim=-1)


def _wrong(codes: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A share of the codes replaced by any others of the batch's range."""
    chosen = torch.rand(codes.shape, generator=generator) < share
    return torch.where(chosen, torch.randint(0, int(codes.max()) + 1, codes.shape, generator=generator), codes)


@dataclass(frozen=True)
class Losses:
    """Cross entropies in nats, over what was looked at."""

    codebook0: Tensor
    depth: Tensor


def losses(model: Reference, batch: Batch, recipe: Recipe, generator: torch.Generator) -> Losses:
    """Of codebook 0 on all learnt frames, of the others (their mean) on a sample of them."""
    shape = batch.tokens.shape[:2]
    x = model.embed(batch.tokens.flatten(0, 1), batch.mask.flatten(0, 1)).view(*shape, -1)
    h = model.backbone(x)[batch.learnt]
    frames = batch.frames[batch.learnt]
    codebook0 = F.cross_entropy(model.codebook0_logits(h), frames[:, 0])
    chosen = torch.randperm(len(h), generator=generator)[: max(1, round(recipe.depth_share * len(h)))]
    logits = model.depth_logits(h[chosen], _wrong(frames[chosen, :-1], recipe.wrong_codes, generator))
    return Losses(codebook0, F.cross_entropy(logits.flatten(0, 1), frames[chosen, 1:].flatten()))


def initial_weights(spec: ModelSpec, seed: int) -> dict[str, Tensor]:
    """Random weights to start from, by upstream name."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in checkpoint_shapes(spec).items():
        if len(shape) == 1:
            weights[name] = torch.ones(shape)
            continue
        std = _INIT_STD
        if name.endswith(("output_proj.weight", "mlp.w2.weight")):
            std /= math.sqrt(2 * (spec.backbone if name.startswith("backbone") else spec.decoder).layers)
        weights[name] = torch.randn(shape, generator=generator) * std
    return weights


def _rate(recipe: Recipe, step: int) -> float:
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def train(
    spec: ModelSpec,
    corpus: Corpus,
    encode: Encode,
    recipe: Recipe,
    state_path: Path,
    data: str = "",
    progress: Callable[[int], None] = lambda _step: None,
) -> dict[str, Tensor]:
    """The trained weights by upstream name, float32. `state_path` keeps what a run that is cut off goes on from.

    `data` identifies tokenizer and codec. Raises `ValueError` if the file there is of another recipe or other data.
    """
    made_of = {**vars(recipe), "data": data}
    weights = {name: value.requires_grad_() for name, value in initial_weights(spec, recipe.seed).items()}
    optimiser = torch.optim.AdamW(
        [
            {"params": [w for w in weights.values() if w.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [w for w in weights.values() if w.ndim == 1], "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        betas=(0.9, 0.95),
    )
    first = _restore(state_path, made_of, weights, optimiser)
    model = Reference(spec, weights.__getitem__)
    for step in range(first, recipe.steps):
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        loss = losses(model, random_batch(spec, corpus, encode, recipe, step), recipe, generator)
        optimiser.zero_grad()
        (loss.codebook0 + loss.depth).backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(weights.values(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = _rate(recipe, step)
        optimiser.step()
        if step % _LOG_EVERY == 0:
            log.info("step %d: codebook 0 %.3f nats, the others %.3f", step, loss.codebook0.item(), loss.depth.item())
        if (step + 1) % _SAVE_EVERY == 0 or step + 1 == recipe.steps:
            _save(state_path, made_of, step + 1, weights, optimiser)
        progress(step + 1)
    return {name: value.detach() for name, value in weights.items()}


def _save(path: Path, made_of: MadeOf, step: int, weights: dict[str, Tensor], optimiser: torch.optim.Optimizer) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_whole(path) as file:
        torch.save({"made_of": made_of, "step": step, "weights": weights, "optimiser": optimiser.state_dict()}, file)


def _restore(path: Path, made_of: MadeOf, weights: dict[str, Tensor], optimiser: torch.optim.Optimizer) -> int:
    if not path.is_file():
        return 0
    state: dict[str, Any] = torch.load(path, weights_only=True)
    if state.get("made_of") != made_of:
        raise ValueError(f"{path} is of another recipe or other data ({state.get('made_of')}): delete it to start anew")
    with torch.no_grad():
        for name, value in weights.items():
            value.copy_(state["weights"][name])
    optimiser.load_state_dict(state["optimiser"])
    log.info("going on at step %d", state["step"])
    return int(state["step"])
