"""The damaged level: it loads, it is far from what it was, and nothing else has changed."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Qtype
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray

from builders import BLOCKS, Built, tensor_bytes
from miso_gguf.core.errors import BundleError, MisoError
from miso_gguf.core.files import PARTIAL_SUFFIX, file_sha256
from miso_gguf.models.levels import LEVELS
from miso_gguf.models.manifest import read_manifest
from miso_gguf.native.device import Backends
from miso_gguf.native.gguf_file import GgufFile
from miso_gguf.native.llama import LlamaModel, LlamaOptions
from miso_gguf.quant_eval.run import damage
from miso_gguf.quant_eval.run.damage import Half, check_types, damaged, main
from miso_gguf.runtime.bundle import OpenLevel, open_level
from miso_gguf.runtime.lm.depth.decoder import DepthDecoder
from miso_gguf.runtime.lm.embeddings import Embeddings

Floats = NDArray[np.float32]
STRENGTH = 0.8


@pytest.fixture(scope="module")
def bundle(built: Built) -> Path:
    return built.every_level()


_QUICK = ("f32", "bf16", "fp16", "q8_0", "q4_k_m", "q4_0", "iq3_xxs", "q2_k")
"""Levels that have all kinds of types among them."""


@pytest.fixture(
    scope="module", params=[pytest.param(key, marks=[] if key in _QUICK else pytest.mark.long) for key in LEVELS]
)
def pair(
    bundle: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[OpenLevel, OpenLevel]:
    """A level, and what is left of it."""
    out = tmp_path_factory.mktemp("controls") / "control"
    level = open_level(bundle, request.param)
    made = damaged(level, out, strength=STRENGTH)
    assert open_level(out, made.key, verify=True) == made
    return level, made


def distributions(level: OpenLevel) -> NDArray[np.float64]:
    """The backbone's distributions over codebook 0 at 16 positions of the same noise."""
    embedded = np.random.default_rng(0).standard_normal((16, BLOCKS.backbone.embed_dim)).astype(np.float32)
    with LlamaModel(level.backbone, LlamaOptions(threads=1, exact=True), context=16) as model:
        logits = model.forward(embedded)[1].astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True))


def depth_codes(level: OpenLevel) -> NDArray[np.int64]:
    """The depth decoder's greedy codes for 8 frames."""
    rng = np.random.default_rng(1)
    hidden = rng.standard_normal((8, BLOCKS.backbone.embed_dim)).astype(np.float32)
    logits = rng.standard_normal((8, BLOCKS.audio_vocab)).astype(np.float32)
    noise = np.zeros((8, BLOCKS.codebooks, BLOCKS.audio_vocab), np.float32)
    projection = Embeddings(level.embeddings, BLOCKS).projection
    with (
        Backends(gpu=None, threads=1) as backends,
        DepthDecoder(level.decoder, projection, BLOCKS, backends) as depth,
    ):
        return depth.frames(hidden, logits, noise, 1)


def test_both_halves_are_far_from_what_they_were(pair: tuple[OpenLevel, OpenLevel]) -> None:
    whole, broken = (distributions(level) for level in pair)
    assert np.isfinite(broken).all()
    divergence = (whole * np.log(whole / broken)).sum(axis=1)
    # The widest margin of any gate is 0.15 nats.
    assert divergence.mean() > 0.3
    before, after = (depth_codes(level) for level in pair)
    np.testing.assert_array_equal(before[:, 0], after[:, 0])  # drawn from the logits that were given
    assert (before[:, 1:] != after[:, 1:]).mean() > 0.5


def test_every_weight_of_the_layers_is_off_by_the_strength(pair: tuple[OpenLevel, OpenLevel]) -> None:
    """gguf-py's own dequantisation, an oracle that knows nothing of where we think that scales are."""
    for part in ("backbone", "decoder"):
        before, after = (GGUFReader(getattr(level, part)) for level in pair)
        for old, new in zip(before.tensors, after.tensors, strict=True):
            assert (old.name, old.tensor_type, list(old.shape)) == (new.name, new.tensor_type, list(new.shape))
            if not (old.name.startswith("blk.") and len(old.shape) == 2):
                np.testing.assert_array_equal(old.data, new.data)
                continue
            a, b = (values(tensor.data, tensor.tensor_type) for tensor in (old, new))
            assert np.isfinite(b).all()
            ratio = (b / np.where(a == 0, np.nan, a)).ravel()
            counted = np.isfinite(ratio) & (np.abs(a.ravel()) > 1e-3)
            if len(damage._SCALES.get(old.tensor_type, (0, ()))[1]) == 2:
                # With a minimum, a small weight is the difference of two rounded numbers.
                largest = np.repeat(np.abs(a.reshape(-1, 32)).max(axis=1), 32)
                counted &= np.abs(a.ravel()) > largest / 2
            ratio = ratio[counted]
            # Scales are rounded to F16, of small weights among its subnormals; weights to BF16.
            rounded = 8e-3 if old.tensor_type == Qtype.BF16 else 5e-3
            assert np.all(np.isclose(ratio, 1 - STRENGTH, atol=rounded) | np.isclose(ratio, 1 + STRENGTH, atol=rounded))
            assert 0.2 < (ratio > 1).mean() < 0.8


def values(data: NDArray[np.generic], qtype: Qtype) -> Floats:
    return np.asarray(dequantize(data, qtype), np.float32)


def test_everything_else_is_as_it_was(pair: tuple[OpenLevel, OpenLevel]) -> None:
    whole, broken = pair
    for path in (whole.embeddings, whole.codec_decoder, whole.codec_encoder):
        assert (broken.directory / path.name).read_bytes() == path.read_bytes()
    with GgufFile(whole.backbone) as before, GgufFile(broken.backbone) as after:
        for key in ("miso.part", "miso.source.fingerprint", "general.file_type", "llama.block_count"):
            assert before.value(key) == after.value(key) is not None
    manifest = read_manifest(broken.directory)
    assert list(manifest.levels) == [whole.key]
    assert manifest.converter.startswith("damaged on purpose")
    assert {path.name for path in broken.directory.iterdir()} == {*manifest.files, "miso.json"}
    for name, entry in manifest.files.items():
        assert (entry.size_bytes, entry.sha256) == (
            (broken.directory / name).stat().st_size,
            file_sha256(broken.directory / name),
        )


def test_equal_arguments_equal_bytes(bundle: Path, tmp_path: Path) -> None:
    before = {path.name: file_sha256(path) for path in bundle.iterdir()}

    def made(name: str, **options: float) -> dict[str, bytes]:
        damaged(open_level(bundle, "q4_k_m"), tmp_path / name, **{"strength": STRENGTH, **options})  # type: ignore[arg-type]
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    first = made("a")
    assert made("b") == first
    for other in (made("c", seed=1), made("d", strength=0.2)):
        assert {name for name in first if other[name] != first[name]} == {
            "Blocks-backbone-Q4_K_M.gguf",
            "Blocks-decoder-Q4_K_M.gguf",
            "miso.json",
        }
    assert {path.name: file_sha256(path) for path in bundle.iterdir()} == before


def test_large_tensors_are_done_in_pieces(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged(open_level(bundle, "q8_0"), tmp_path / "whole", strength=STRENGTH)
    monkeypatch.setattr(damage, "_BYTES_AT_ONCE", 1000)
    damaged(open_level(bundle, "q8_0"), tmp_path / "pieces", strength=STRENGTH)
    name = "Blocks-backbone-Q8_0.gguf"
    assert tensor_bytes(tmp_path / "whole" / name) == tensor_bytes(tmp_path / "pieces" / name)


def test_an_earlier_one_is_used_again_if_it_is_whole(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "control"
    damaged(open_level(bundle, "q8_0"), out, strength=STRENGTH)
    times = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert damaged(open_level(bundle, "Q8_0"), out, strength=STRENGTH).key == "q8_0"
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == times
    for other in ({"seed": 1}, {"strength": 0.4}):
        with pytest.raises(MisoError, match="exists, and is not this damage"):
            damaged(open_level(bundle, "q8_0"), out, **{"strength": STRENGTH, **other})  # type: ignore[arg-type]
    with pytest.raises(MisoError, match="exists, and is not this damage"):
        damaged(open_level(bundle, "fp16"), out, strength=STRENGTH)
    victim = out / "Blocks-decoder-Q8_0.gguf"
    victim.write_bytes(victim.read_bytes()[:-1] + b"\xff")
    with pytest.raises(BundleError, match="the file was changed or damaged"):
        damaged(open_level(bundle, "q8_0"), out, strength=STRENGTH)


def test_what_is_there_stays(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path, bundle):
        with pytest.raises(MisoError, match="exists, and is not this damage"):
            damaged(open_level(bundle, "q8_0"), out, strength=STRENGTH)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_it_appears_whole_or_not_at_all(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"control{PARTIAL_SUFFIX}").mkdir()  # of a run that was killed
    with monkeypatch.context() as patch:
        patch.setattr(damage, "file_sha256", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            damaged(open_level(bundle, "q8_0"), tmp_path / "control", strength=STRENGTH)
        assert list(tmp_path.iterdir()) == []
    damaged(open_level(bundle, "q8_0"), tmp_path / "control", strength=STRENGTH)
    assert [path.name for path in tmp_path.iterdir()] == ["control"]


def test_without_links_there_are_copies(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError("not here")

    monkeypatch.setattr("os.link", no_links)
    damaged(open_level(bundle, "q8_0"), tmp_path / "control", strength=STRENGTH)
    open_level(tmp_path / "control", "q8_0", verify=True)


@pytest.mark.parametrize("strength", [0.0, 4.1, -0.5, float("nan")])
def test_strengths_that_are_none(bundle: Path, tmp_path: Path, strength: float) -> None:
    with pytest.raises(ValueError, match="strength must be above 0 and at most 4"):
        damaged(open_level(bundle, "q8_0"), tmp_path / "control", strength=strength)


def test_a_level_that_is_not_there(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no level q4_0\+q8_0, only"):
        damaged(open_level(bundle, "q4_0+q8_0"), tmp_path / "control", strength=STRENGTH)


def test_types_that_are_not_known(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(damage._SCALES, Qtype.Q8_0)
    with pytest.raises(MisoError, match="has weights of type Q8_0"):
        check_types(open_level(bundle, "q8_0"))
    with pytest.raises(
        MisoError, match=r"has weights of type Q8_0: it cannot be damaged on purpose\. Use another level"
    ):
        damaged(open_level(bundle, "q8_0"), tmp_path / "control", strength=STRENGTH)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("qtype", list(damage._SCALES))
def test_where_the_scales_are_in_every_type(qtype: Qtype) -> None:
    """Random blocks with plausible scales: what gguf-py makes of them is off by the factor, block by block."""
    width, places = damage._SCALES[qtype]
    rng = np.random.default_rng(int(qtype))
    blocks = rng.integers(0, 256, (12, width)).astype(np.uint8)
    for place in places:
        blocks[:, place : place + 2] = rng.uniform(0.5, 2, (12, 1)).astype("<f2").view(np.uint8)
    changed = blocks.reshape(-1).copy()
    damage._damage_bytes(changed, qtype, 0.5, np.random.default_rng(0))
    before, after = values(blocks, qtype), values(changed.reshape(12, width), qtype)
    factors = damage._factors(12, 0.5, np.random.default_rng(0))
    assert set(factors.tolist()) == {0.5, 1.5}
    np.testing.assert_allclose(after, before * factors[:, None], rtol=2e-3, atol=0.3)


def test_huge_scales_stay_finite() -> None:
    data = np.full(64, 60000, "<f2").view(np.uint8)
    damage._damage_bytes(data, Qtype.F16, 0.5, np.random.default_rng(0))
    assert np.isfinite(data.view("<f2")).all()


@pytest.mark.parametrize(("half", "hurt"), [("backbone", 0), ("decoder", 1)])
def test_one_half_alone(half: Half, hurt: int, bundle: Path, tmp_path: Path) -> None:
    whole = open_level(bundle, "q8_0")
    broken = damaged(whole, tmp_path / "made", strength=0.5, half=half)
    both = damaged(whole, tmp_path / "both", strength=0.5)
    for part, name in enumerate(("backbone", "decoder")):
        before, after, twice = (getattr(level, name) for level in (whole, broken, both))
        assert (before.stat().st_ino == after.stat().st_ino) == (part != hurt), "what is not damaged is linked"
        assert (after.read_bytes() == twice.read_bytes()) == (part == hurt), "as in both"


def test_halves_that_are_none(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a half is one of backbone, decoder, both, not 'left'"):
        damaged(open_level(bundle, "q8_0"), tmp_path / "made", strength=0.5, half="left")  # type: ignore[arg-type]


def test_from_1_on_scales_change_their_signs(bundle: Path, tmp_path: Path) -> None:
    level = open_level(bundle, "fp16")
    made = damaged(level, tmp_path / "made", strength=1.5)
    old, new = (GGUFReader(each.decoder).tensors for each in (level, made))
    (before, after) = next(
        (a.data, b.data)
        for a, b in zip(old, new, strict=True)
        if a.tensor_type == Qtype.F16 and a.name.startswith("blk.") and len(a.shape) == 2
    )
    counted = np.abs(before.astype(np.float32)) > 1e-3  # smaller ones are F16's subnormals, and rounded more
    ratio = after.astype(np.float32)[counted] / before.astype(np.float32)[counted]
    np.testing.assert_allclose(np.unique(np.round(ratio, 2)), [-0.5, 2.5])


def test_by_hand(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "made"
    assert main([str(bundle), "Q4_0", "0.05", str(out)]) == f"{out}: q4_0 with scales off by 5%"
    assert open_level(out, "q4_0", verify=True) == damaged(open_level(bundle, "q4_0"), out, strength=0.05)
    with pytest.raises(ValueError, match="expected BUNDLE LEVEL STRENGTH OUT"):
        main([])
