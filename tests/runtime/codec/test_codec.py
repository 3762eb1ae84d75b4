"""The codec of a bundle: any chunking gives the same audio, streams do not meet, and every misuse is named."""

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
from codec_graphs import SPEC, Codes, random_codes, write_graphs
from elsewhere import Elsewhere
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from miso_gguf.core.errors import BundleError, MisoError
from miso_gguf.runtime.codec import codec as codec_module
from miso_gguf.runtime.codec import onnx as onnx_module
from miso_gguf.runtime.codec.codec import Codec
from miso_gguf.runtime.codec.thread import CodecThread

FRAMES = 60  # several calls of ours, and not one call of the graph


@pytest.fixture(scope="module")
def whole(graphs: tuple[Path, Path]) -> NDArray[np.float32]:
    """The offline decode, in one call of the graph and without our code."""
    session = onnxruntime.InferenceSession(str(graphs[0]), providers=["CPUExecutionProvider"])
    feed = {
        node.name: np.zeros([1 if isinstance(size, str) else size for size in node.shape], dtype)
        for node in session.get_inputs()[1:]
        for dtype in [np.int64 if "int64" in node.type else np.float32]
    }
    audio = session.run(["audio"], {"codes": random_codes(FRAMES).T[None], **feed})[0]
    assert audio.std() > 0.02
    return np.asarray(audio[0, 0])


def test_the_graph_says_what_the_codec_is(codec: Codec) -> None:
    assert (codec.codebooks, codec.cardinality) == (SPEC.codebooks, SPEC.cardinality)
    assert (codec.sample_rate_hz, codec.frame_samples) == (24_000, 1920)


def test_a_whole_utterance_is_the_offline_decode(codec: Codec, whole: NDArray[np.float32]) -> None:
    samples = codec.decode(random_codes(FRAMES))
    assert samples.dtype == np.float32
    assert samples.shape == (FRAMES * 1920,)
    np.testing.assert_allclose(samples, whole, rtol=0, atol=1e-5)


@settings(max_examples=examples(12), deadline=None)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12))
def test_streamed_equals_offline_for_any_chunking(sizes: list[int], codec: Codec, whole: NDArray[np.float32]) -> None:
    codes, stream, start = random_codes(FRAMES), codec.stream(), 0
    chunks = []
    for size in [*sizes, FRAMES]:
        part = codes[start : start + size]
        chunks.append(stream.decode(part))
        assert chunks[-1].shape == (len(part) * 1920,)
        start += len(part)
    np.testing.assert_allclose(np.concatenate(chunks), whole, rtol=0, atol=1e-5)


def test_one_frame_a_call_equals_offline(codec: Codec, whole: NDArray[np.float32]) -> None:
    stream = codec.stream()
    chunks = [stream.decode(frame[None]) for frame in random_codes(FRAMES)]
    np.testing.assert_allclose(np.concatenate(chunks), whole, rtol=0, atol=1e-5)


def test_interleaved_streams_do_not_meet(codec: Codec) -> None:
    utterances = random_codes(8, seed=1), random_codes(8, seed=2)
    streams = codec.stream(), codec.stream()
    mixed: tuple[list[NDArray[np.float32]], ...] = ([], [])
    for frame in range(8):
        for stream, codes, chunks in zip(streams, utterances, mixed, strict=True):
            chunks.append(stream.decode(codes[frame : frame + 1]))
    for codes, chunks in zip(utterances, mixed, strict=True):
        alone = codec.stream()
        for frame, chunk in enumerate(chunks):
            assert np.array_equal(alone.decode(codes[frame : frame + 1]), chunk)


def test_streams_of_several_threads_do_not_meet(codec: Codec) -> None:
    utterances = [random_codes(20, seed) for seed in range(6)]
    expected = [codec.decode(codes) for codes in utterances]
    with ThreadPoolExecutor(3) as pool:
        for samples, alone in zip(pool.map(codec.decode, utterances), expected, strict=True):
            assert np.array_equal(samples, alone)


def test_decoding_on_a_thread_gives_the_same_bits(codec: Codec) -> None:
    codes, stream, beside = random_codes(20), codec.stream(), codec.stream()
    with CodecThread(codec) as thread:
        for frame in codes[:, None]:
            np.testing.assert_array_equal(thread.decode(beside, frame), stream.decode(frame))


@pytest.mark.parametrize("threads", [2, 3, 4])
def test_more_threads_round_otherwise_and_no_more(
    threads: int, codec: Codec, graphs: tuple[Path, Path], whole: NDArray[np.float32]
) -> None:
    with Codec(*graphs, threads=threads) as other:
        first, again = (other.decode(random_codes(FRAMES)) for _ in range(2))
        np.testing.assert_array_equal(first, again)
        np.testing.assert_allclose(first, whole, rtol=0, atol=1e-6)
        samples = whole[: 20 * SPEC.frame_samples]
        assert (other.encode(samples) == codec.encode(samples)).mean() > 0.99


def test_no_frames_are_no_samples(codec: Codec) -> None:
    assert codec.decode(random_codes(0)).shape == (0,)
    assert codec.encode(np.zeros(0, np.float32)).shape == (0, SPEC.codebooks)


@pytest.mark.parametrize("code", [SPEC.cardinality, -1])
def test_a_code_outside_its_codebook_is_named_and_changes_nothing(code: int, codec: Codec) -> None:
    codes = random_codes(4)
    stream, other = codec.stream(), codec.stream()
    assert np.array_equal(stream.decode(codes), other.decode(codes))
    wrong = codes.copy()
    wrong[2, 5] = code
    with pytest.raises(ValueError, match=rf"code {code} of codebook 5 in frame 2 .*0\.\.511.*playable"):
        stream.decode(wrong)
    assert np.array_equal(stream.decode(codes), other.decode(codes))


@pytest.mark.parametrize(
    "codes",
    [random_codes(3).astype(np.float32), random_codes(3).T, random_codes(3)[:, :-1], random_codes(3)[0]],
    ids=["floats", "transposed", "too few codebooks", "one row"],
)
def test_what_are_no_codes_is_refused(codes: Codes, codec: Codec) -> None:
    for use in (codec.decode, codec.playable):
        with pytest.raises(ValueError, match=rf"integers \[frames, 8\], not {codes.dtype} \["):
            use(codes)


def test_other_integers_are_codes_too(codec: Codec) -> None:
    codes = random_codes(3)
    assert np.array_equal(codec.decode(codes.astype(np.int16)), codec.decode(codes))


def test_special_codes_become_playable_with_one_warning(codec: Codec, caplog: pytest.LogCaptureFixture) -> None:
    codes = random_codes(3)
    codes[0, 2] = 7
    codes[1, 0] = SPEC.cardinality
    codes[2, 7] = SPEC.cardinality + 2
    expected = codes.copy()
    expected[1, 0] = expected[2, 7] = 0
    stream = codec.stream()
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(stream.playable(random_codes(2)), random_codes(2))
        assert not caplog.records
        for _ in range(2):
            assert np.array_equal(stream.playable(codes), expected)
        assert len(caplog.records) == 1
        caplog.clear()
        assert np.array_equal(codec.playable(codes), expected)
        assert [record.getMessage().split(" that")[0] for record in caplog.records] == ["2 codes of 24"]
    assert codes[1, 0] == SPEC.cardinality, "the model's own codes are not touched: they are its input"


def speech() -> NDArray[np.float32]:
    samples, rate_hz = soundfile.read(Path(__file__).parents[2] / "data" / "speech.flac", dtype="float32")
    assert rate_hz == 24_000
    return np.asarray(samples)


def test_a_clip_encoded_in_chunks_is_the_clip_encoded_at_once(codec: Codec, graphs: tuple[Path, Path]) -> None:
    samples = speech()[: 60 * 1920 + 7]
    codes = codec.encode(samples)
    assert codes.dtype == np.int64
    assert codes.shape == (61, SPEC.codebooks)
    graph = onnx_module.OnnxStream(graphs[1], "mimi-encoder", 1, "cpu")
    at_once = graph.step(samples[None, None], graph.start())[0][0].T
    assert (codes == at_once).mean() >= 0.999
    assert len(np.unique(codes[:, 0])) > 8


def test_what_was_decoded_encodes_to_as_many_frames(codec: Codec) -> None:
    codes = random_codes(30)
    again = codec.encode(codec.decode(codes))
    assert again.shape == codes.shape
    assert again.min() >= 0
    assert again.max() < SPEC.cardinality


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((2, 1920), np.float32), r"mono, not float32 \[2, 1920\]"),
        (np.zeros(1920, np.int16), r"not int16 \[1920\]"),
        (np.array([0, np.nan, np.inf], np.float32), r"sample 1 is not finite \(nan\)"),
    ],
)
def test_what_are_no_samples_is_refused(samples: NDArray[np.float32], message: str, codec: Codec) -> None:
    with pytest.raises(ValueError, match=message):
        codec.encode(samples)


def test_a_codec_without_encoder_says_so(graphs: tuple[Path, Path]) -> None:
    with Codec(graphs[0]) as codec, pytest.raises(MisoError, match="without its encoder"):
        codec.encode(np.zeros(1920, np.float32))


def test_a_missing_graph_is_named(graphs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"nowhere\.onnx: no such file\. Convert again"):
        Codec(tmp_path / "nowhere.onnx")
    with (
        Codec(graphs[0], tmp_path / "nowhere.onnx") as codec,
        pytest.raises(BundleError, match=r"nowhere\.onnx: no such file"),
    ):
        codec.encode(np.zeros(1920, np.float32))


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_damaged_graph_is_named(kept: float, graphs: tuple[Path, Path], tmp_path: Path) -> None:
    data = graphs[0].read_bytes()
    broken = tmp_path / "mimi-decoder.onnx"
    broken.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(BundleError, match=r"mimi-decoder\.onnx: cannot be opened \(.*Convert again"):
        Codec(broken)


def with_metadata(source: Path, target: Path, **changed: str | None) -> Path:
    model = onnx.load(source)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    del model.metadata_props[:]
    properties |= {f"miso.{key}": value for key, value in changed.items()}
    onnx.helper.set_model_props(model, {key: value for key, value in properties.items() if value is not None})
    onnx.save(model, target)
    return target


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": "2"}, "format 2, this program reads 1"),
        ({"part": None}, "miso.part"),
        ({"part": "vocoder"}, "it is a vocoder"),
        ({"codebooks": "eight"}, "eight"),
        ({"cardinality": "0"}, "dimensions"),
        ({"state": None}, "miso.state"),
        ({"state": "[]"}, "too many values"),
        ({"state": "{"}, "JSON"),
        ({"state": '[{"input": "offset"}]'}, "output"),
    ],
)
def test_a_graph_that_is_not_ours_is_named(
    changed: dict[str, str | None], message: str, graphs: tuple[Path, Path], tmp_path: Path
) -> None:
    foreign = with_metadata(graphs[0], tmp_path / "other.onnx", **changed)
    with pytest.raises(BundleError, match=rf"other\.onnx: not a mimi-decoder graph .*{message}.*Convert again"):
        Codec(foreign)


def test_state_that_is_declared_wrongly_is_named(graphs: tuple[Path, Path], tmp_path: Path) -> None:
    state = onnxruntime.InferenceSession(str(graphs[0])).get_modelmeta().custom_metadata_map["miso.state"]
    foreign = with_metadata(graphs[0], tmp_path / "other.onnx", state=state.replace("249", "248"))
    with Codec(foreign) as codec, pytest.raises(BundleError, match=r"other\.onnx: cannot be computed \(.*248"):
        codec.decode(random_codes(1))


def test_graphs_in_the_wrong_place_or_of_two_codecs_are_told(graphs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="it is a mimi-encoder"):
        Codec(graphs[1])
    encoder = write_graphs(tmp_path, replace(SPEC, codebooks=4))[1]
    with Codec(graphs[0], encoder) as codec, pytest.raises(BundleError, match=r"another codec than mimi-decoder\.onnx"):
        codec.encode(np.zeros(1920, np.float32))


def test_cuda_without_its_package_names_the_package(graphs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MisoError, match="pip install onnxruntime-gpu"):
        Codec(graphs[0], provider="cuda")


def test_cuda_that_does_not_start_is_an_error_not_a_silent_cpu(
    graphs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    session = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: session)
    with pytest.raises(MisoError, match="could not start CUDA"):
        Codec(graphs[0], provider="cuda")


def test_options_that_make_no_sense_are_refused(graphs: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="at least 1 thread, not 0"):
        Codec(graphs[0], threads=0)
    with pytest.raises(ValueError, match="cpu or cuda, not on 'tpu'"):
        Codec(graphs[0], provider="tpu")


def test_a_signals_handler_may_close_what_its_own_thread_opens(
    graphs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = Codec(*graphs)

    def interrupted(*given: Any) -> onnx_module.OnnxStream:
        codec.close()
        return onnx_module.OnnxStream(*given)

    monkeypatch.setattr(codec_module, "OnnxStream", interrupted)
    Elsewhere(codec.encode, np.zeros(0, np.float32)).result()
    with pytest.raises(MisoError, match="closed"):
        codec.encode(np.zeros(0, np.float32))
