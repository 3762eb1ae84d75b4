"""The table of levels: what is counted is what the files hold, FP16 is at no distance from itself, a run goes on."""

import json
from pathlib import Path

import click
import levels
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from level_rows import Row, Turns, measured_row
from level_tables import markdown
from random_bundle import PooledStore, _RowsOnce
from tiny_bundle import write_tiny

from builders import MICRO
from miso_gguf.core.arrays import F32Array
from miso_gguf.models.flavors import FLAVORS, TINY
from miso_gguf.models.levels import FP16, Q4_0, Q4_K_M, parse_level
from miso_gguf.native.ggml import quantize
from miso_gguf.quant_eval.corpus import Prompt, load_corpus
from miso_gguf.quant_eval.metrics.divergence import log_softmax
from miso_gguf.quant_eval.run.candidate import LoadedCandidate

ONCE = Turns(rounds=1, threads=1)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    work = tmp_path_factory.mktemp("tiny")
    write_tiny(work / "plain", [FP16, Q4_K_M], 1)
    prompts = load_corpus("tiny:2").prompts
    return work / "plain", levels.tiny_rows(work, [FP16, Q4_K_M], None, prompts, 1, ONCE)


def test_fp16_is_at_no_distance_and_a_level_is(measured: tuple[Path, list[Row]]) -> None:
    fp16, q4_k_m = measured[1]
    assert (fp16["level"], fp16["prompts"], fp16["clips"]) == ("fp16", 2, 2)
    assert fp16["kld_cb0"] == fp16["kld_rest"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert fp16["top1_percent"] == {"value": 100.0, "low": 100.0, "high": 100.0}
    for key in ("kld_cb0", "kld_rest"):
        assert 0 <= q4_k_m[key]["low"] <= q4_k_m[key]["value"] <= q4_k_m[key]["high"]
        assert 0 < q4_k_m[key]["value"] < 0.1
    assert q4_k_m["frames"] == fp16["frames"] > 2


def test_what_a_frame_reads_is_what_the_files_hold(measured: tuple[Path, list[Row]]) -> None:
    bundle, rows = measured
    for row in rows:
        sizes = {
            part: {
                t.name: int(t.n_bytes) for t in GGUFReader(bundle / f"{TINY.name}-{part}-{row['label']}.gguf").tensors
            }
            for part in ("backbone", "decoder")
        }
        assert row["backbone_bytes"] == sum(sizes["backbone"].values()) - sizes["backbone"].get("token_embd.weight", 0)
        # All layers at each of the steps; of the stacked heads one a step, and never codebook 0's.
        steps = TINY.codebooks - 1
        layers = sum(size for name, size in sizes["decoder"].items() if name.startswith("blk.") and "norm" not in name)
        heads = sizes["decoder"]["output.weight"] * steps // TINY.codebooks
        assert row["depth_bytes"] == pytest.approx(steps * layers + heads, rel=0.02)
        assert row["vram_bytes"] > sum(path.stat().st_size for path in bundle.glob(f"*r-{row['label']}.gguf"))


def test_a_level_that_needs_an_imatrix_asks_for_it(tmp_path: Path) -> None:
    needing = parse_level("iq3_m")
    with pytest.raises(click.UsageError, match="iq3_m needs --imatrix DIR"):
        levels.tiny_rows(tmp_path, [needing], None, load_corpus("tiny:2").prompts, 1, ONCE)


def test_the_tiny_model_says_nothing_of_the_corpus_that_imatrices_are_of(monkeypatch: pytest.MonkeyPatch) -> None:
    said = list[Prompt]()
    monkeypatch.setattr(levels, "tiny_rows", lambda _work, _levels, _imatrix, prompts, *_: said.extend(prompts))
    monkeypatch.setattr(levels, "record", lambda *_, **__: None)
    levels.main(["tiny", "--prompts", "30"], standalone_mode=False)
    assert len(said) == 30
    assert not {prompt.text for prompt in said} & {prompt.text for prompt in load_corpus("tiny").prompts}


def test_the_table_has_the_finest_first(measured: tuple[Path, list[Row]]) -> None:
    lines = markdown(list(reversed(measured[1]))).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| F16", "| Q4_K_M"]
    assert len({line.count("|") for line in lines}) == 1
    assert "| 0 (0 .. 0) | 0 (0 .. 0) | 100.0 % |" in lines[2]


def test_a_slow_hour_of_the_machine_makes_no_level_slow(measured: tuple[Path, list[Row]]) -> None:
    """Of two that take as long as the base, one was measured while everything took five times as long."""
    times = ("backbone_ms", "depth_ms", "backbone_base_ms", "depth_base_ms")
    rows = [
        row | dict.fromkeys(times, took) | dict.fromkeys(("backbone_over_base", "depth_over_base"), 1.0)
        for row, took in zip(measured[1], (10.0, 50.0), strict=True)
    ]
    assert [line.split(" | ")[-4:-2] for line in markdown(rows).splitlines()[2:]] == [["30.00", "30.00"]] * 2


def check_not_degenerate(logits: F32Array) -> None:
    """Rows recur in the matrices, but no code is certain, and no two codebooks or frames say the same."""
    chances = np.exp(log_softmax(logits))
    assert chances.max() < 0.5
    flat = logits.reshape(-1, logits.shape[-1])
    assert np.abs(np.corrcoef(flat) - np.eye(len(flat))).max() < 0.95


@pytest.fixture
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "FULL_PROMPTS", 2)
    monkeypatch.setattr(levels, "FULL_FRAMES", 2)
    monkeypatch.setitem(FLAVORS, "tiny", MICRO)


@pytest.mark.usefixtures("_few")
def test_a_run_goes_on_where_it_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = measured_row, list[str]()

    def cut_off(loaded: LoadedCandidate, *arguments: object) -> Row:
        seen.append(loaded.candidate.level)
        if seen == ["fp16", "q4_0"]:
            raise KeyboardInterrupt
        return real(loaded, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(levels, "measured_row", cut_off)
    with pytest.raises(KeyboardInterrupt):
        levels.full_rows(tmp_path, [Q4_0, FP16], ONCE, "tiny")
    files = {path.name for path in (tmp_path / "bundle").glob("*.gguf")}
    assert not any("F16" in name for name in files)
    clips = {path: path.stat().st_mtime_ns for path in (tmp_path / "clips").iterdir()}
    rows = levels.full_rows(tmp_path, [Q4_0, FP16], ONCE, "tiny")
    assert seen == ["fp16", "q4_0", "q4_0"]
    assert [row["level"] for row in rows] == ["fp16", "q4_0"]
    assert rows == [json.loads(line) for line in (tmp_path / "levels.jsonl").read_text().splitlines()]
    assert clips == {path: path.stat().st_mtime_ns for path in (tmp_path / "clips").iterdir()}
    for clip in levels._full_clips(tmp_path / "bundle", "tiny", MICRO, tmp_path, ONCE):
        check_not_degenerate(clip.base.logits)
    left = {path.name for path in (tmp_path / "bundle").glob("*.gguf")}
    assert left == {f"{MICRO.name}-{part}.gguf" for part in ("backbone-Q4_K_M", "decoder-Q4_K_M", "embeddings-Q8_0")}


def test_rows_are_quantised_as_they_would_be_without_memory(tmp_path: Path) -> None:
    store, remembers = PooledStore(TINY, tmp_path / "label"), _RowsOnce()
    name = "backbone.layers.0.mlp.w1.weight"
    for start, stop in ((0, 30), (20, 60)):
        rows = store.read(name, start, stop)
        assert rows.shape == (stop - start, TINY.backbone.embed_dim)
        for qtype in (GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q6_K):
            assert np.array_equal(remembers(qtype, rows), quantize(qtype, rows))
