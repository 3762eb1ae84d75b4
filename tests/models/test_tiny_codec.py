"""The tiny model's data and its constructed codec: as algebra, as a Mimi, and in the graphs of a bundle."""

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from miso_gguf.convert.mimi.export import export_decoder, export_encoder
from miso_gguf.convert.mimi.weights import mimi_weights
from miso_gguf.models.mimi import FRAME_SAMPLES, SAMPLE_RATE_HZ, MimiSpec, recognise_mimi
from miso_gguf.models.tiny.make.as_mimi import Tensors, as_mimi, from_mimi, largest_rank
from miso_gguf.models.tiny.make.codec import CODEC_SPEC, read_codec, write_mimi
from miso_gguf.models.tiny.make.corpus import Corpus, Span
from miso_gguf.models.tiny.make.figures import compare, f0_hz
from miso_gguf.models.tiny.make.high_band import EDGES_HZ, with_fixed_hiss
from miso_gguf.models.tiny.make.linear_codec import LinearCodec, fit_codec
from miso_gguf.models.tiny.make.renderings import Renderings
from miso_gguf.models.tiny.make.rvq import decode_chain, encode_chain, fit_chain, fit_codebook
from miso_gguf.models.tiny.make.sentences import Sentence, plain_sentence, random_sentence
from miso_gguf.models.tiny.make.words import KINDS, SPEAKERS, VARIANTS, WORDS, Speaker, canonical, parse
from miso_gguf.runtime.codec.codec import Codec

Samples = NDArray[np.float32]

SPEC = MimiSpec(
    codebooks=8, cardinality=32, codebook_dim=160, latent_dim=160, filters=16, kernel=3, layers=1, heads=5, ffn_dim=8
)
SPOKEN_SPEC = replace(SPEC, cardinality=64, codebook_dim=256, latent_dim=256, heads=8)
SPOKEN = ("hello", "six", "Monday", "blue", "no", "two")
SECOND = np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ


# The vocabulary


def test_the_vocabulary_is_closed_and_no_word_is_twice() -> None:
    assert len(WORDS) == len({word.lower() for word in WORDS}) == 60
    assert canonical("MONDAY") == "Monday"
    assert parse(" Hello blue monday? ") == (("hello", "blue", "Monday"), "?")
    assert parse("hello") == (("hello",), ".")


@pytest.mark.parametrize(
    ("text", "message"), [("hello, six.", "'hello,'"), ("", "no words"), ("?", "no words"), ("a cat.", "60 words")]
)
def test_what_cannot_be_said_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_a_sentence_is_written_with_a_capital() -> None:
    assert plain_sentence("low", ("yes", "Monday"), "?").text == "Yes Monday?"


# The upper band


def sine(hz: float) -> Samples:
    return np.asarray(0.3 * np.sin(2 * np.pi * hz * SECOND), np.float32)


def test_the_melody_is_left_as_it_is() -> None:
    np.testing.assert_allclose(with_fixed_hiss(sine(400))[2000:-2000], sine(400)[2000:-2000], atol=2e-3)


def test_the_upper_band_becomes_the_same_noise_in_every_frame_as_loud_as_it_was() -> None:
    heard = with_fixed_hiss(sine(4500))
    frames = heard[: 12 * FRAME_SAMPLES].reshape(12, -1)[2:-2]
    np.testing.assert_allclose(frames, np.broadcast_to(frames[0], frames.shape), atol=2e-3)
    assert heard[4800:-4800].std() == pytest.approx(sine(4500).std(), rel=0.05)
    spectrum = np.abs(np.fft.rfft(frames.reshape(-1)))
    hz = np.fft.rfftfreq(frames.size, 1 / SAMPLE_RATE_HZ)
    inside = (hz > 3800) & (hz < 5200)
    assert np.square(spectrum[~inside]).sum() < 1e-3 * np.square(spectrum).sum()
    assert np.count_nonzero(spectrum[inside] > 0.1 * spectrum.max()) > 50, "a tone is not noise"


def test_silence_stays_silent() -> None:
    samples = np.zeros(4 * FRAME_SAMPLES, np.float32)
    assert not with_fixed_hiss(samples).any()
    assert tuple(sorted(EDGES_HZ)) == EDGES_HZ


# The quantiser


def test_kmeans_finds_what_is_there() -> None:
    centres = np.array([[0.0, 0], [4, 0], [0, 4], [-4, 0]])
    x = np.repeat(centres, 10, axis=0)
    codebook = fit_codebook(x, np.ones(len(x)), 4, np.random.default_rng(0))
    assert codebook[0].tolist() == [0, 0]
    assert sorted(codebook.tolist()) == sorted(centres.tolist())


def test_the_first_entry_stays_zero_and_all_are_half_precision() -> None:
    x = np.random.default_rng(1).normal(3, 1, (200, 3))
    codebook = fit_codebook(x, np.ones(200), 8, np.random.default_rng(0))
    assert not codebook[0].any()
    assert np.array_equal(codebook, codebook.astype(np.float16))


def test_too_little_data_is_refused() -> None:
    with pytest.raises(ValueError, match="5 vectors are too few for a codebook of 8"):
        fit_codebook(np.ones((5, 2)), np.ones(5), 8, np.random.default_rng(0))


def test_a_chain_codes_what_is_left_over() -> None:
    x = np.random.default_rng(2).normal(0, 1, (300, 6))
    chain = fit_chain(x, np.ones(300), 4, 16, np.random.default_rng(0))
    codes = encode_chain(x, chain)
    errors = [np.square(x - decode_chain(codes[:, :n], chain[:n])).sum() for n in range(1, 5)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.25 * np.square(x).sum()
    rest = x[17].copy()
    for codebook, code in zip(chain, codes[17], strict=True):
        assert code == np.square(rest - codebook).sum(axis=1).argmin()
        rest -= codebook[code]


# The codec as a Mimi: on made-up sounds


def made_up_sounds(frames: int) -> Samples:
    rng = np.random.default_rng(3)
    time_s = np.arange(frames * FRAME_SAMPLES) / SAMPLE_RATE_HZ
    hz = np.interp(time_s, np.linspace(0, time_s[-1], 12), rng.uniform(80, 250, 12))
    phase = 2 * np.pi * np.cumsum(hz) / SAMPLE_RATE_HZ
    loudness = np.interp(time_s, np.linspace(0, time_s[-1], 30), rng.uniform(0, 1, 30))
    return np.asarray(0.1 * loudness * sum(np.cos(k * phase + k * k) / k for k in range(1, 12)), np.float32)


@pytest.fixture(scope="module")
def codec() -> LinearCodec:
    return fit_codec(made_up_sounds(200), SPEC, largest_rank(SPEC), semantic_dims=3)


@pytest.fixture(scope="module")
def tensors(codec: LinearCodec) -> Tensors:
    return as_mimi(codec, SPEC)


def open_bundle_codec(tensors: Tensors, folder: Path) -> Codec:
    spec, weights = mimi_weights(tensors)
    (folder / "decoder.onnx").write_bytes(export_decoder(spec, weights, "float16"))
    (folder / "encoder.onnx").write_bytes(export_encoder(spec, weights, "float32"))
    return Codec(folder / "decoder.onnx", folder / "encoder.onnx")


@pytest.fixture(scope="module")
def graphs(tensors: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Codec]:
    with open_bundle_codec(tensors, tmp_path_factory.mktemp("graphs")) as opened:
        yield opened


def random_codes(frames: int) -> NDArray[np.int64]:
    return np.random.default_rng(4).integers(0, SPEC.cardinality, (frames, SPEC.codebooks))


def test_the_tensors_are_a_mimi_of_these_dimensions(tensors: Tensors) -> None:
    assert recognise_mimi({name: array.shape for name, array in tensors.items()}) == SPEC
    assert mimi_weights(tensors)[0] == SPEC


def test_the_codec_can_be_read_back(codec: LinearCodec, tensors: Tensors, tmp_path: Path) -> None:
    write_mimi(tensors, tmp_path / "sub" / "mimi.safetensors")
    for same in (from_mimi(tensors, SPEC), read_codec(tmp_path / "sub" / "mimi.safetensors")):
        assert same.semantic_dims == codec.semantic_dims == 3
        for name in ("basis", "mixing", "codebooks"):
            assert np.array_equal(getattr(same, name), getattr(codec, name))
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["mimi.safetensors"]


def test_a_codec_of_other_dimensions_is_refused(codec: LinearCodec) -> None:
    with pytest.raises(ValueError, match=r"254, 160, 8, 32, 160.*254, 320, 8, 512, 320"):
        as_mimi(codec, CODEC_SPEC)


def test_the_graphs_decode_what_the_algebra_says(codec: LinearCodec, graphs: Codec) -> None:
    codes = random_codes(25)
    expected = codec.decode(codes)
    assert 0.01 < expected.std() < 0.5
    np.testing.assert_allclose(graphs.decode(codes), expected, rtol=0, atol=5e-5)


def test_the_graphs_encode_what_the_algebra_says(codec: LinearCodec, graphs: Codec) -> None:
    rng = np.random.default_rng(5)
    loud = rng.choice([-1.0, 1.0], 10 * FRAME_SAMPLES).astype(np.float32)
    assert len(np.unique(codec.encode(made_up_sounds(40)), axis=0)) > 30
    for samples in (made_up_sounds(40), loud, (0.1 * loud).astype(np.float32)):
        codes = codec.encode(samples)
        assert (graphs.encode(samples) == codes).mean() >= 0.995


def test_streamed_is_offline(graphs: Codec) -> None:
    codes = random_codes(23)
    stream = graphs.stream()
    streamed = np.concatenate([stream.decode(codes[i : i + 1]) for i in range(len(codes))])
    np.testing.assert_allclose(streamed, graphs.decode(codes), rtol=0, atol=1e-6)


def test_frames_are_coded_on_their_own(graphs: Codec) -> None:
    samples = made_up_sounds(6)
    codes = graphs.encode(samples)
    alone = [graphs.encode(samples[i * FRAME_SAMPLES : (i + 1) * FRAME_SAMPLES])[0] for i in range(6)]
    assert np.array_equal(codes, np.stack(alone))


def test_silence_is_not_the_end_of_speech(codec: LinearCodec, graphs: Codec) -> None:
    silence = np.zeros(3 * FRAME_SAMPLES, np.float32)
    codes = graphs.encode(silence)
    assert codes.tolist() == [[1, 0, 0, 0, 0, 0, 0, 0]] * 3
    for quiet in (codes, np.zeros_like(codes)):
        assert np.abs(graphs.decode(quiet)).max() < 5e-5
    assert (codec.encode(made_up_sounds(200))[:, 0] > 0).all()


def test_moshi_agrees(tensors: Tensors, graphs: Codec) -> None:
    path = Path(__file__).parents[1] / "convert" / "mimi" / "conftest.py"
    module_spec = importlib.util.spec_from_file_location("mimi_oracle", path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module: Any = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    oracle = module.Oracle(SPEC, tensors)
    codes = random_codes(12)
    np.testing.assert_allclose(oracle.decode(codes.T[None].copy())[0, 0], graphs.decode(codes), rtol=0, atol=5e-5)
    samples = made_up_sounds(30)
    assert (graphs.encode(samples) == oracle.encode(samples[None, None])[0].T).mean() >= 0.995


# The figures


def pulses(hz: float) -> Samples:
    return np.asarray(0.05 * sum(np.cos(2 * np.pi * hz * k * SECOND) for k in range(1, 15)), np.float32)


VOWEL = Speaker("vowel", "", 0, 0, 60.0, 400.0)


def test_figures_of_a_known_change() -> None:
    same = compare([(pulses(120), pulses(120), VOWEL)])
    assert (same.voicing_error_percent, same.f0_rmse_cents, same.seconds) == (0, 0, 1)
    assert same.snr_db > 100
    higher = compare([(pulses(120), pulses(120 * 2 ** (2.5 / 12)), VOWEL)])
    assert higher.f0_median_cents == pytest.approx(250, abs=2)
    assert higher.gross_error_percent == 100
    half = pulses(120)
    half[len(half) // 2 :] = 0
    assert compare([(pulses(120), half, VOWEL)]).voicing_error_percent == pytest.approx(50, abs=8)
    assert compare([(pulses(120), pulses(120) * 1.1, VOWEL)]).snr_db == pytest.approx(20, abs=0.01)


def test_nothing_voiced_cannot_be_compared() -> None:
    silence = np.zeros(SAMPLE_RATE_HZ, np.float32)
    with pytest.raises(ValueError, match="nothing is voiced"):
        compare([(silence, silence, VOWEL)])


# Speech, by espeak-ng

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Renderings:
    return Renderings(tmp_path_factory.mktemp("renderings"), SPOKEN)


@pytest.fixture(scope="module")
def corpus(spoken: Renderings) -> Corpus:
    samples = np.concatenate([rendering.samples for rendering in spoken])
    return Corpus(spoken, fit_codec(samples, SPOKEN_SPEC, largest_rank(SPOKEN_SPEC), semantic_dims=3))


@needs_espeak
def test_words_are_whole_frames_with_quiet_ends(spoken: Renderings) -> None:
    everything = list(spoken)
    assert len(everything) == len(SPOKEN) * len(SPEAKERS) * sum(VARIANTS[kind] for kind in KINDS)
    for rendering in everything:
        assert rendering.samples.dtype == np.float32
        assert len(rendering.samples) == rendering.frames * FRAME_SAMPLES
        assert 2 <= rendering.frames <= 9
        assert np.abs(rendering.samples[[0, -1]]).max() < 1e-3
        assert 0.2 < np.abs(rendering.samples).max() < 1.0
    first, second = (spoken.get("Monday", "", "low", variant).samples for variant in (0, 1))
    assert not np.array_equal(first, second)


@needs_espeak
def test_renderings_are_the_same_every_time_and_kept(
    spoken: Renderings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Renderings(tmp_path, ["six"]).get("six", "?", "high").samples
    assert np.array_equal(made, spoken.get("six", "?", "high").samples)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("made again"))
    assert np.array_equal(Renderings(tmp_path, ["six"]).get("SIX", "?", "high").samples, made)


def test_a_missing_espeak_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="apt install espeak-ng"):
        Renderings(None, ["six"]).get("six", ".", "low")


def test_a_failing_espeak_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_: object) -> None:
        raise subprocess.CalledProcessError(1, command, b"", b"no such voice\n")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(RuntimeError, match=r"espeak-ng failed .*: no such voice"):
        Renderings(None, ["six"]).get("six", ".", "low")


@pytest.mark.parametrize(
    "wanted", [("seven", ".", "low", 0), ("six", "!", "low", 0), ("six", ".", "bob", 0), ("six", ".", "low", 1)]
)
def test_what_is_not_rendered_is_refused(wanted: tuple[str, str, str, int]) -> None:
    with pytest.raises(ValueError, match="there is no"):
        Renderings(None, ["six"]).get(*wanted)


def last_move_semitones(samples: Samples, speaker: Speaker) -> float:
    """From the start of the last 150 ms of voice to its end."""
    f0 = f0_hz(samples, speaker)
    voiced = 12 * np.log2(f0[f0 > 0][-15:])
    return float(np.median(voiced[-3:]) - np.median(voiced[:3]))


@needs_espeak
@pytest.mark.parametrize("speaker", SPEAKERS, ids=lambda speaker: speaker.name)
def test_statements_fall_and_questions_rise(speaker: Speaker, spoken: Renderings) -> None:
    for word in ("hello", "Monday", "two", "no", "blue"):
        ends = {kind: last_move_semitones(spoken.get(word, kind, speaker.name).samples, speaker) for kind in ".?"}
        assert ends["."] < -0.5, word
        assert ends["?"] > ends["."] + 3, word


@needs_espeak
def test_the_speakers_are_far_apart_in_pitch(spoken: Renderings) -> None:
    medians = {}
    for name, speaker in spoken.speakers.items():
        f0 = np.concatenate([f0_hz(spoken.get(word, "", name).samples, speaker) for word in SPOKEN])
        medians[name] = float(np.median(f0[f0 > 0]))
    assert medians["low"] == pytest.approx(100, rel=0.2)
    assert medians["high"] > 1.6 * medians["low"]


@needs_espeak
def test_the_codes_of_a_sentence_are_those_of_its_audio(corpus: Corpus) -> None:
    sentence = Sentence("high", ("hello", "blue", "six"), "?", (1, 0), (0, 2))
    samples, codes = corpus.samples(sentence), corpus.codes(sentence)
    assert codes.dtype == np.int64
    assert codes.shape == (len(samples) // FRAME_SAMPLES, SPEC.codebooks)
    assert np.array_equal(codes, corpus.codec.encode(samples))
    hello, blue, six = corpus.spans(sentence)
    assert (hello.start, blue.start, six) == (0, hello.stop, Span("six", blue.stop + 2, len(codes)))
    assert codes[blue.stop : six.start].tolist() == [[1, 0, 0, 0, 0, 0, 0, 0]] * 2
    assert len(corpus.copy(sentence)) == len(samples)


@needs_espeak
def test_a_sentence_needs_a_variant_and_a_pause_for_every_word_but_the_last(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match="for each word but the last"):
        corpus.codes(Sentence("low", ("hello", "six"), ".", (0, 0), (0,)))


@needs_espeak
def test_random_sentences_follow_their_seed(spoken: Renderings) -> None:
    def draw(seed: int) -> list[Sentence]:
        rng = np.random.default_rng(seed)
        return [random_sentence(spoken, rng) for _ in range(50)]

    assert draw(1) == draw(1) != draw(2)
    assert {len(sentence.words) for sentence in draw(1)} == {2, 3, 4, 5, 6}
    assert {sentence.speaker for sentence in draw(1)} == {"low", "high"}
    assert {sentence.ending for sentence in draw(1)} == {".", "?", ","}
    assert {pause for sentence in draw(1) for pause in sentence.pauses} == {0, 1, 2}


@needs_espeak
def test_copy_synthesis_through_the_graphs_keeps_melody_and_voicing(corpus: Corpus, tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    pairs = []
    with open_bundle_codec(as_mimi(corpus.codec, SPOKEN_SPEC), tmp_path) as graphs:
        for _ in range(8):
            sentence = random_sentence(corpus.renderings, rng, 2, 4)
            samples = corpus.samples(sentence)
            codes = graphs.encode(samples)
            assert (codes == corpus.codes(sentence)).mean() >= 0.995
            pairs.append((samples, graphs.decode(codes), corpus.speaker(sentence)))
    figures = compare(pairs)
    assert figures.voicing_error_percent <= 2
    assert figures.f0_median_cents <= 5
    assert figures.snr_db >= 12
