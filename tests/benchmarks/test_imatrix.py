"""What an importance matrix brings: the arithmetic of changes, which half can change what, and what is held out."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import imatrix
import imatrix_files
import numpy as np
import plot_imatrix
import pytest
import teacher_forced
from held_out import held_out
from teacher_forced import change_percent, typical_change_percent, with_interval

from builders import MICRO, Built, make_bundle
from miso_gguf.convert.imatrix import read_imatrix
from miso_gguf.models.flavors import TINY
from miso_gguf.models.levels import FP16, Q4_0, Level
from miso_gguf.models.manifest import Manifest, read_manifest
from miso_gguf.models.tensors import gguf_tensors
from miso_gguf.models.tiny.make.conversations import is_held_out
from miso_gguf.models.tiny.make.words import parse
from miso_gguf.quant_eval.corpus import Prompt, Turn, load_corpus
from miso_gguf.quant_eval.stats.observations import Observations
from miso_gguf.recipes.sums import multiplied


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_forced, "RESAMPLES", 200)


def gammas(bundle: Path, prompts: int, out: Path) -> None:
    """A matrix that no speech made."""
    rng, spec = np.random.default_rng(prompts), read_manifest(bundle).model_spec
    for part, path in imatrix_files.paths(out).items():
        sums = {name: rng.gamma(0.5, 40.0, columns) for name, columns in multiplied(spec, part).items()}
        imatrix_files.write(path, {name: values.astype(np.float32) for name, values in sums.items()})


def micro_writer(built: Built) -> Callable[..., Manifest]:
    """`write_tiny` of a model that converts in no time: once without a matrix, once with one for all that have any."""

    def write(out: Path, _levels: Sequence[Level], _threads: int, matrix: Path | None = None) -> Manifest:
        made = out.with_name("made-with" if matrix else "made-without")
        if not made.exists():
            request = {f"imatrix_{part}": path for part, path in imatrix_files.paths(matrix).items()} if matrix else {}
            make_bundle(built.inputs(MICRO), made, [FP16, Q4_0], threads=1, **request)
        out.symlink_to(made)
        return read_manifest(out)

    return write


def of(values: list[float], weights: list[float]) -> Observations:
    count = len(values)
    names = np.array([str(index) for index in range(count)])
    return Observations(names, np.zeros(count, np.int64), np.array(values), np.array(weights))


def test_changes_are_of_the_means_and_of_the_typical_clip() -> None:
    old, new = of([1.0, 2.0, 8.0], [1.0, 3.0, 1.0]), of([2.0, 1.0, 8.0], [1.0, 3.0, 1.0])
    # (2 + 3 + 8) / (1 + 6 + 8), and the cube root of 2 * 1/2 * 1.
    assert change_percent(new, old)["value"] == pytest.approx(100 * (13 / 15 - 1), rel=1e-5)
    assert typical_change_percent(new, old)["value"] == pytest.approx(0.0, abs=1e-9)
    assert with_interval(new, old)["value"] == pytest.approx((13 - 15) / 5)


def test_a_change_that_all_clips_share_is_certain() -> None:
    old = of([1.0, 2.0, 8.0], [1.0, 3.0, 1.0])
    new = of([0.5, 1.0, 4.0], [1.0, 3.0, 1.0])
    for change in (change_percent(new, old), typical_change_percent(new, old)):
        assert change == pytest.approx({"value": -50.0, "low": -50.0, "high": -50.0})


def test_a_clip_without_divergence_divides_nothing() -> None:
    old, new = of([0.0, 1.0, 1.0], [1.0, 1.0, 1.0]), of([0.0, 2.0, 2.0], [1.0, 1.0, 1.0])
    assert change_percent(new, old)["value"] == pytest.approx(100.0)
    assert typical_change_percent(new, old)["value"] == pytest.approx(100 * (4 ** (1 / 3) - 1), rel=1e-5)


def test_held_out_sentences_were_never_seen() -> None:
    taught = load_corpus("tiny")
    found = held_out(30, taught)
    assert [prompt.text for prompt in found] == [prompt.text for prompt in held_out(30, taught)]
    texts = {prompt.text for prompt in found}
    assert len(texts) == 30
    assert not texts & {prompt.text for prompt in taught.prompts}
    assert all(is_held_out(parse(text)[0]) for text in texts)


def test_another_ending_does_not_make_another_sentence() -> None:
    taught, first = load_corpus("tiny"), held_out(2, load_corpus("tiny"))
    (words, _), (earlier, _) = (parse(prompt.text) for prompt in first)
    said = Prompt("said", "test", f"{' '.join(words)},", before=(Turn(0, f"{' '.join(earlier)}?"),))
    found = held_out(30, replace(taught, prompts=(*taught.prompts, said)))
    assert not {words, earlier} & {parse(prompt.text)[0] for prompt in found}


def test_matrices_without_an_entry_and_in_disorder(bundle: Path, tmp_path: Path) -> None:
    gammas(bundle, 1, tmp_path / "real")
    imatrix_files.write_without(tmp_path / "real", tmp_path / "lacking", TINY, "output.weight")
    imatrix_files.write_shuffled(tmp_path / "real", tmp_path / "shuffled", TINY)
    for part, path in imatrix_files.paths(tmp_path / "real").items():
        tensors = [tensor for tensor in gguf_tensors(TINY) if tensor.part == part]
        real, lacking, shuffled = (
            read_imatrix(tmp_path / side / path.name, tensors).columns for side in ("real", "lacking", "shuffled")
        )
        assert real.keys() - lacking.keys() == {"output.weight"}
        assert all(np.array_equal(real[name], lacking[name]) for name in lacking)
        assert all(np.array_equal(np.sort(real[name]), np.sort(shuffled[name])) for name in real)
        assert not any(np.array_equal(real[name], shuffled[name]) for name in real)


def test_a_half_changes_only_what_it_can(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imatrix, "write_tiny", micro_writer(built))
    result = imatrix.measure(tmp_path, [Q4_0], 2, 3, 1, gammas)
    (row,) = result["levels"]
    change, kld = row["change"], row["kld"]
    assert change["decoder"]["cb0"]["typical_percent"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert kld["decoder"]["rest"]["value"] != kld["without"]["rest"]["value"]
    assert change["backbone"]["cb0"] == change["with"]["cb0"]
    assert row["by_codebook"][0] == change["with"]["cb0"]
    assert len(row["by_codebook"]) == MICRO.codebooks
    books = 1 / MICRO.codebooks
    for one in kld.values():
        assert one["all"]["value"] == pytest.approx(
            books * one["cb0"]["value"] + (1 - books) * one["rest"]["value"], rel=1e-4
        )
    with_, without = kld["with"]["all"]["value"], kld["without"]["all"]["value"]
    assert change["with"]["all"]["mean_percent"]["value"] == pytest.approx(100 * (with_ / without - 1), rel=1e-3)
    assert (row["against"], result["held_out"], result["corpus"]) == ("none", 3, "tiny:2")
    tables = imatrix.markdown(json.loads(json.dumps(result))).split("\n\n")
    assert [len(table.splitlines()) for table in tables] == [3, 3, 3]
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_bold_where_zero_lies_outside() -> None:
    sure = {"typical_percent": {"value": -20.0, "low": -30.0, "high": -10.0}}
    unsure = {"typical_percent": {"value": -20.0, "low": -30.0, "high": 10.0}}
    assert imatrix._percent(sure) == "**-20.0 % (-30.0 .. -10.0)**"
    assert imatrix._percent(unsure) == "-20.0 % (-30.0 .. +10.0)"


def test_the_figure_is_drawn(tmp_path: Path) -> None:
    change = {"typical_percent": {"value": -20.0, "low": -30.0, "high": -10.0}}
    row = {"level": "q4_0", "label": "Q4_0", "against": "none", "change": {"with": {"all": change}}}
    plot_imatrix.draw({"levels": [{**row, "by_codebook": [change] * 8}]}, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
