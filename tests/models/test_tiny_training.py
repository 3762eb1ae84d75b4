"""What the tiny language model learns from, and that learning works, resumes and is the same again."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from miso_gguf.models.reference import Reference, audio_rows, text_rows
from miso_gguf.models.spec import ModelSpec, TransformerSpec
from miso_gguf.models.tiny.make.conversations import Turn, is_held_out, random_conversation
from miso_gguf.models.tiny.make.sentences import Sentence
from miso_gguf.models.tiny.make.training import Recipe, initial_weights, losses, make_batch, random_batch, train
from miso_gguf.models.tiny.make.words import SPEAKERS, WORDS

SPEC = ModelSpec(
    "Micro",
    TransformerSpec(layers=1, embed_dim=32, heads=2, kv_heads=1, head_dim=16, ffn_dim=32),
    TransformerSpec(layers=1, embed_dim=16, heads=1, kv_heads=1, head_dim=16, ffn_dim=32),
    text_vocab=128,
    audio_vocab=67,
    codebooks=4,
)
RECIPE = Recipe(steps=4, turns=6, warmup=2)


class FakeRenderings:
    """Words and speakers without sound."""

    words = WORDS
    speakers = {speaker.name: speaker for speaker in SPEAKERS}  # noqa: RUF012


class FakeCorpus:
    """Every word is two frames that tell which word, speaker and codebook it is."""

    renderings = FakeRenderings()

    def codes(self, sentence: Sentence) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        speaker = list(self.renderings.speakers).index(sentence.speaker)
        numbers = [1 + WORDS.index(word) for word in sentence.words for _ in range(2)]
        return np.array([[number, 1 + speaker, 3, 4] for number in numbers], np.int64)


CORPUS: object = FakeCorpus()


def encode(text: str) -> list[int]:
    return [1, *(ord(letter) for letter in text), 2]


def turns_of(seed: int, count: int) -> list[Turn]:
    return random_conversation(CORPUS, count, np.random.default_rng(seed))  # type: ignore[arg-type]


def test_no_held_out_sentence_is_learnt_from() -> None:
    held_out = [is_held_out((a, b)) for a in WORDS for b in WORDS]
    assert 0.03 < np.mean(held_out) < 0.07
    for seed in range(200):
        for turn in turns_of(seed, 2):
            assert not is_held_out(tuple(turn.text.rstrip(".?!,").split()))


def test_a_speaker_id_means_one_voice_in_a_conversation_and_the_first_turn_tells_which() -> None:
    swapped = 0
    for seed in range(300):
        turns = turns_of(seed, 4)
        voices = {(turn.speaker_id, int(turn.codes[0, 1]) - 1) for turn in turns}
        assert len({speaker for speaker, _ in voices}) == len(voices) == len({voice for _, voice in voices})
        assert all(turn.learnt for turn in turns[1:])
        is_swapped = any(speaker != voice for speaker, voice in voices)
        assert turns[0].learnt is not is_swapped
        swapped += is_swapped
    assert 100 < swapped < 200


def test_a_single_turn_has_the_default_voice() -> None:
    assert all(turns_of(seed, 1)[0].learnt for seed in range(50))
    assert all(turn.codes[0, 1] == turn.speaker_id + 1 for seed in range(50) for turn in turns_of(seed, 1))


def test_a_batch_asks_for_every_frame_of_a_learnt_turn_and_the_eos_frame() -> None:
    first = Turn(1, "Hi.", np.array([[5, 6, 7, 8], [9, 10, 11, 12]]), learnt=False)
    second = Turn(0, "No?", np.array([[13, 14, 15, 16]]), learnt=True)
    batch = make_batch(SPEC, [[first, second], [second]], encode)
    text = encode("[0] No?")
    start = len(encode("[1] Hi.")) + 3
    assert batch.learnt[0].nonzero().flatten().tolist() == [start + len(text) - 1, start + len(text)]
    assert batch.frames[0][batch.learnt[0]].tolist() == [[13, 14, 15, 16], [0, 0, 0, 0]]
    assert batch.frames[1][batch.learnt[1]].tolist() == [[13, 14, 15, 16], [0, 0, 0, 0]]
    expected = torch.cat([text_rows(SPEC, text).tokens, audio_rows(SPEC, torch.tensor([[13, 14, 15, 16]])).tokens])
    assert torch.equal(batch.tokens[1, : len(expected)], expected)
    assert not batch.mask[1, len(text) + 2 :].any(), "padding is in no slot"


def test_padding_changes_no_loss() -> None:
    weights = initial_weights(SPEC, 0)
    model = Reference(SPEC, weights.__getitem__)
    turns = turns_of(1, 1)
    alone = losses(model, make_batch(SPEC, [turns], encode), Recipe(wrong_codes=0, depth_share=1), torch.Generator())
    long = [Turn(t.speaker_id, t.text * 9, t.codes, learnt=False) for t in turns]
    beside = make_batch(SPEC, [turns, long], encode)
    both = losses(model, beside, Recipe(wrong_codes=0, depth_share=1), torch.Generator())
    torch.testing.assert_close(both.codebook0, alone.codebook0)
    torch.testing.assert_close(both.depth, alone.depth)


def test_untrained_loss_is_that_of_a_guess() -> None:
    model = Reference(SPEC, initial_weights(SPEC, 0).__getitem__)
    batch = random_batch(SPEC, CORPUS, encode, RECIPE, 0)  # type: ignore[arg-type]
    loss = losses(model, batch, RECIPE, torch.Generator())
    assert loss.codebook0.item() == pytest.approx(np.log(67), abs=0.1)
    assert loss.depth.item() == pytest.approx(np.log(67), abs=0.1)


def test_wrong_codes_are_among_what_is_given_never_among_what_is_asked() -> None:
    right = random_batch(SPEC, CORPUS, encode, Recipe(turns=20, wrong_codes=0), 3)  # type: ignore[arg-type]
    wrong = random_batch(SPEC, CORPUS, encode, Recipe(turns=20, wrong_codes=0.2), 3)  # type: ignore[arg-type]
    assert torch.equal(right.frames, wrong.frames)
    assert torch.equal(right.tokens[..., -1], wrong.tokens[..., -1])
    is_speech = right.tokens[..., :-1].any(-1)
    changed = (right.tokens != wrong.tokens)[..., :-1]
    assert not changed[~is_speech].any(), "text, the EOS frame and padding stay"
    assert 0.15 < changed[is_speech].float().mean() < 0.22


Train = Callable[[Path, int], dict[str, torch.Tensor]]


@pytest.fixture
def run() -> Train:
    def run(state: Path, steps: int) -> dict[str, torch.Tensor]:
        recipe = Recipe(steps=4, turns=6, warmup=2)
        stopped = RuntimeError("stopped")

        def stop(step: int) -> None:
            if step == steps < recipe.steps:
                raise stopped

        try:
            return train(SPEC, CORPUS, encode, recipe, state, "data", stop)  # type: ignore[arg-type]
        except RuntimeError as error:
            if error is not stopped:
                raise
            return {}

    return run


def test_training_is_the_same_again_and_after_an_interruption(
    run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("miso_gguf.models.tiny.make.training._SAVE_EVERY", 2)
    whole, again = run(tmp_path / "a.pt", 4), run(tmp_path / "b.pt", 4)
    run(tmp_path / "c.pt", 3)
    resumed = run(tmp_path / "c.pt", 4)
    for name, value in whole.items():
        assert torch.equal(value, again[name]), name
        assert torch.equal(value, resumed[name]), name
    start = initial_weights(SPEC, 0)
    assert all(not torch.equal(value, start[name]) for name, value in whole.items()), "every weight learns"


def test_a_state_of_another_recipe_is_refused(run: Train, tmp_path: Path) -> None:
    run(tmp_path / "state.pt", 4)
    with pytest.raises(ValueError, match="another recipe"):
        train(SPEC, CORPUS, encode, Recipe(steps=9), tmp_path / "state.pt", "data")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="other data"):
        train(SPEC, CORPUS, encode, Recipe(steps=4, turns=6, warmup=2), tmp_path / "state.pt", "new")  # type: ignore[arg-type]


def test_it_learns() -> None:
    recipe = Recipe(steps=60, turns=12, warmup=5, learning_rate=1e-2)
    weights = {name: value.requires_grad_() for name, value in initial_weights(SPEC, 0).items()}
    optimiser = torch.optim.Adam(weights.values(), lr=3e-3)
    model = Reference(SPEC, weights.__getitem__)
    seen = []
    for _ in range(40):
        loss = losses(model, random_batch(SPEC, CORPUS, encode, recipe, 0), recipe, torch.Generator())  # type: ignore[arg-type]
        optimiser.zero_grad()
        (loss.codebook0 + loss.depth).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        seen.append((loss.codebook0.item(), loss.depth.item()))
    assert seen[-1][0] < 0.8 * seen[0][0]
    assert seen[-1][1] < 0.5 * seen[0][1]
