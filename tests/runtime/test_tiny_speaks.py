"""The tiny model in the repository says the words it is asked to say, in the right voice, at every level.

What it should say is known frame by frame: `golden/tiny_sentences.json` has the codes of each word's renderings, made
from recordings, not from the model. None of these sentences was trained on.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders import make_tiny_bundle
from miso_gguf.core.arrays import F32Array, I64Array
from miso_gguf.models import tiny
from miso_gguf.runtime.options import SpeechOptions
from miso_gguf.runtime.speech import Segment
from miso_gguf.runtime.tts import MisoTTS
from miso_gguf.runtime.voice import Voice

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "tiny_sentences.json").read_text("utf-8"))
LEVELS = ("fp16", "q8_0", "q4_k_m", "q4_0")
SAMPLE_RATE_HZ = 24000


@dataclass(frozen=True)
class Asked:
    """A sentence, and the frames of which each of its words may be made."""

    speaker: int
    text: str
    words: list[set[tuple[int, ...]]]
    codes: I64Array

    def wrong_words(self, codes: I64Array) -> list[int]:
        """Words of which not half of the frames of some rendering were said, after the words before them."""
        said = [tuple(frame) for frame in codes.tolist()]
        wrong, position = [], 0
        for index, frames in enumerate(self.words):
            places = [at for at in range(position, len(said)) if said[at] in frames]
            if len(places) < 2 and len(places) < len(frames) / 4:
                wrong.append(index)
            else:
                position = places[0] + 1
        return wrong


ASKED = [
    Asked(
        sentence["speaker"],
        sentence["text"],
        [{tuple(frame) for rendering in word for frame in rendering} for word in sentence["words"]],
        np.array(sentence["codes"], np.int64),
    )
    for sentence in GOLDEN["sentences"]
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny") / "bundle"
    make_tiny_bundle(out, LEVELS)
    return out


@pytest.fixture(scope="module", params=LEVELS)
def tts(bundle: Path, request: pytest.FixtureRequest) -> Iterator[MisoTTS]:
    with MisoTTS.load(bundle, request.param, threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def fp16(bundle: Path) -> Iterator[MisoTTS]:
    with MisoTTS.load(bundle, "fp16", threads=1) as loaded:
        yield loaded


def exact_share(asked: Asked, codes: I64Array) -> float:
    allowed = set().union(*asked.words) | {tuple(GOLDEN["silence"])}
    return float(np.mean([tuple(frame) in allowed for frame in codes.tolist()]))


def median_f0_hz(samples: F32Array) -> float:
    """By autocorrelation in windows of 40 ms, of those that are clearly periodic."""
    found = []
    for start in range(0, len(samples) - 1920, 480):
        window = samples[start : start + 960].astype(np.float64)
        if np.square(window).mean() < 1e-4:
            continue
        lags = np.arange(60, 400)  # 400 to 60 Hz
        scores = np.array(
            [
                (w := samples[start + lag : start + lag + 960]) @ window / (np.linalg.norm(w) * np.linalg.norm(window))
                for lag in lags
            ]
        )
        peaks = np.flatnonzero(scores > 0.9 * scores.max())
        if scores.max() > 0.8:
            found.append(SAMPLE_RATE_HZ / lags[peaks[0]])
    return float(np.median(found))


@pytest.mark.parametrize("temperature", [0.0, 0.9], ids=["greedy", "sampled"])
def test_the_words_are_right_and_it_stops_by_itself(tts: MisoTTS, temperature: float) -> None:
    shares, wrong, words = [], 0, 0
    for index, asked in enumerate(ASKED):
        options = SpeechOptions(temperature=temperature, seed=index, retry=False)
        speech = tts.generate(asked.text, speaker=asked.speaker, options=options)
        assert speech.sentences[0].ended == "eos", asked.text
        shares.append(exact_share(asked, speech.codes))
        wrong += len(asked.wrong_words(speech.codes))
        words += len(asked.words)
    coarse = tts.level.key.startswith("q4")
    assert np.mean(shares) > (0.6 if coarse else 0.85), "frames that are exactly those of a rendering"
    assert wrong <= 0.05 * words


def test_the_judge_is_not_blind() -> None:
    first, second = ASKED[0], next(asked for asked in ASKED if asked.speaker != ASKED[0].speaker)
    assert first.wrong_words(first.codes) == []
    assert len(first.wrong_words(second.codes)) > len(first.words) / 2
    assert exact_share(first, first.codes) == 1.0
    assert exact_share(first, second.codes) < 0.3
    assert first.wrong_words(first.codes[len(first.codes) // 2 :]), "half of the sentence is not all of it"


def test_two_voices_two_octaves_of_difference(fp16: MisoTTS) -> None:
    text = "Hello there."
    low, high = (median_f0_hz(fp16.generate(text, speaker=speaker).samples) for speaker in (0, 1))
    assert 80 < low < 130
    assert 170 < high < 260


def test_the_clip_decides_the_voice_not_the_speaker_id(fp16: MisoTTS) -> None:
    targets = ASKED[:4]
    for clip in ASKED[4:8]:
        voice = Voice(clip.codes, clip.text, 0)
        for asked in targets:
            f0 = median_f0_hz(fp16.generate(asked.text, voice=voice).samples)
            assert (f0 > 150) == bool(clip.speaker), f"{asked.text!r} after {clip.text!r}: {f0:.0f} Hz"


def test_a_recording_gives_the_same_voice_as_its_codes(fp16: MisoTTS) -> None:
    clip = ASKED[0]
    samples = fp16.codec.decode(clip.codes)
    assert np.mean(Voice.from_audio(samples, clip.text, fp16.codec).codes == clip.codes) > 0.9


def test_six_turns_of_two_speakers(fp16: MisoTTS) -> None:
    context: list[Segment] = []
    for turn, asked in enumerate(ASKED[:6]):
        speech = fp16.generate(asked.text, speaker=turn % 2, context=context)
        assert (median_f0_hz(speech.samples) > 150) == bool(turn % 2), f"turn {turn}"
        context += speech.segments


def test_it_is_what_its_card_says() -> None:
    files = [tiny.DIRECTORY / name for name in ("model.safetensors", "mimi.safetensors", "tokenizer.json")]
    assert sum(path.stat().st_size for path in files) < 24e6
