"""The file of accepted evaluations: what goes in stays as it was, by force or not, whole or not at all."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluations import GATES, HERE, KLD, THERE, found, observations, results

from miso_gguf.quant_eval.gates import accepted as module
from miso_gguf.quant_eval.gates.accepted import Acceptance, accept_into, load_accepted
from miso_gguf.quant_eval.gates.history import verdict_to_accept
from miso_gguf.quant_eval.gates.observed import (
    OBSERVATIONS_NAME,
    AcceptedError,
    Observed,
    load_observed,
    observed_of,
    write_document,
)
from miso_gguf.quant_eval.stats.observations import Observations


def accept(path: Path, observed: Observed, verdict: Any = "PASS", *, force: bool = False) -> Acceptance:
    return accept_into(path, observed, lambda _held: verdict, force=force)


# What one evaluation found


def test_observations_come_back_as_they_were_rounded(tmp_path: Path) -> None:
    tricky = Observations(
        np.array(['a "[\n] {', "\U0001f600 ü"]), np.array([0, 2**63 + 1], np.uint64), np.array([1, 1 / 3]), np.ones(2)
    )
    made = observed_of(results(), {"q8_0": {"kld_cb0": observations(KLD), "new_failures": tricky}})
    write_document(made, tmp_path / OBSERVATIONS_NAME)
    loaded = load_observed(tmp_path)
    assert loaded == made
    assert loaded.kind == HERE
    again = loaded.metric("q8_0", "kld_cb0")
    assert again is not None
    original = observations(KLD)
    where = [again.clips.index(clip) for clip in original.clips]
    assert again.values[where].tolist() == [float(f"{value:.6g}") for value in original.values]
    assert np.array_equal(again.weights[where], original.weights)
    kept = loaded.metric("q8_0", "new_failures")
    assert kept is not None
    assert sorted(kept.clips) == sorted(tricky.clips)
    assert sorted(kept.values.tolist()) == [0.333333, 1.0]
    assert loaded.metric("q8_0", "mcd") is loaded.metric("q4_0", "kld_cb0") is None
    assert len((tmp_path / OBSERVATIONS_NAME).read_text("utf-8").splitlines()) < 90, "other lists stand on one line"


def test_nothing_measured_is_kept_as_that(tmp_path: Path) -> None:
    write_document(observed_of(results(), {}), tmp_path / OBSERVATIONS_NAME)
    assert load_observed(tmp_path).levels == {}
    with pytest.raises(FileNotFoundError, match=r"observations\.json is not there: run"):
        load_observed(tmp_path / "none")


def edited(document: Any, *keys: Any, value: Any) -> str:
    inner = document
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return json.dumps(document)


VALUES = ["entries", 0, "anchor", "levels", "q4_0", "kld_cb0"]


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["schema_version"], 2, "accepted evaluations of schema 2, this program reads 3"),
        (["schema_version"], None, "accepted evaluations of schema None"),
        (["log", 0, "forced"], "maybe", "damaged, log.0.forced: Input should be a valid boolean"),
        (["extra"], 3, "damaged, extra: Extra inputs are not permitted"),
        ([*VALUES, "values", 3], "x", "damaged, entries.0.anchor.levels.q4_0.kld_cb0.values.3"),
        ([*VALUES, "values"], [1.0], "damaged, kld_cb0 of q4_0 has not one value and one weight for each clip"),
        (["entries", 0, "anchor", "seeds", 1], 0, "damaged, prompt list-0, seed 0 is there twice"),
        (["entries", 0, "anchor", "seeds", 1], 2**80, "damaged, seeds must be integers"),
        (["entries", 0, "anchor", "device"], "GPU", "damaged, an anchor is of another kind of machine"),
        (["entries"], [], "damaged, there must be one entry for each kind of machine"),
        ([*VALUES, "values", 1], float("nan"), "damaged, "),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, keys: list[Any], value: Any, message: str) -> None:
    path = tmp_path / "accepted.json"
    accept(path, found())
    path.write_text(edited(json.loads(path.read_text("utf-8")), *keys, value=value), "utf-8")
    with pytest.raises(AcceptedError) as caught:
        load_accepted(path)
    assert message in str(caught.value)
    assert str(caught.value).endswith("Begin another file with `miso-eval accept`")
    assert "\n" not in str(caught.value)
    before = path.read_bytes()
    with pytest.raises(AcceptedError):
        accept(path, found(), force=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"[]", b"{}", b"3"])
def test_what_is_no_such_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "accepted.json"
    path.write_bytes(content)
    with pytest.raises(AcceptedError, match=r"accepted\.json: no accepted evaluations, because"):
        load_accepted(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no accepted evaluation\. Write one with `miso-eval accept`"):
        load_accepted(tmp_path / "none.json")
    with pytest.raises(AcceptedError, match="cannot be read"):
        load_accepted(tmp_path)


# Accepting


def test_the_first_is_the_anchor_of_its_kind_and_the_last_is_what_counts(tmp_path: Path) -> None:
    path = tmp_path / "made" / "accepted.json"
    for observed in (found(), found(2 * KLD), found(kind=THERE), found(3 * KLD)):
        accept(path, observed)
    accepted = load_accepted(path)
    here, there = accepted.of(HERE), accepted.of(THERE)
    assert here is not None
    assert there is not None
    assert (here.anchor, here.accepted) == (found(), found(3 * KLD))
    assert there.anchor == there.accepted == found(kind=THERE)
    assert accepted.of(("CPU", "NEON")) is None
    assert [(line.instructions, line.verdict, line.forced) for line in accepted.log] == [
        (kind[1], "PASS", False) for kind in (HERE, HERE, THERE, HERE)
    ]
    assert accepted.forced() is None
    assert [entry.name for entry in path.parent.iterdir()] == ["accepted.json"]


@pytest.mark.parametrize("verdict", ["FAIL", "MISSING", None])
def test_what_failed_is_accepted_by_force_alone_and_for_ever(tmp_path: Path, verdict: Any) -> None:
    path = tmp_path / "accepted.json"
    with pytest.raises(AcceptedError, match=rf"it is not accepted: .*{verdict or 'nothing in it was judged'}.*--force"):
        accept(path, found(), verdict)
    assert not path.exists()
    accept(path, found(), verdict, force=True)
    for _ in range(3):
        accept(path, found())
    accepted = load_accepted(path)
    assert [line.forced for line in accepted.log] == [True, False, False, False]
    assert accepted.log[0].verdict == verdict
    assert "1 of 4 accepted evaluations were accepted by force" in (accepted.forced() or "")


@pytest.mark.parametrize("verdict", ["PASS", "INCONCLUSIVE"])
def test_what_passed_needs_no_force_and_is_not_said_to_be_forced(tmp_path: Path, verdict: Any) -> None:
    accept(tmp_path / "accepted.json", found(), verdict, force=True)
    assert not load_accepted(tmp_path / "accepted.json").log[0].forced


def test_the_history_counts_even_if_it_was_not_looked_at(tmp_path: Path) -> None:
    """The report says PASS, for it was made without --history."""
    path = tmp_path / "accepted.json"
    accept(path, found())
    for observed, verdict in ((found(1.5 * KLD), "FAIL"), (observed_of(results(), {}), "MISSING")):
        with pytest.raises(AcceptedError, match=f"its verdict is {verdict}"):
            accept_into(path, observed, lambda held, now=observed: verdict_to_accept(results(), now, held, GATES))  # type: ignore[misc]
    assert len(load_accepted(path).log) == 1


def test_another_model_begins_another_file(tmp_path: Path) -> None:
    path = tmp_path / "accepted.json"
    accept(path, found())
    other = found().model_copy(update={"subject": found().subject.model_copy(update={"model": "Other"})})
    with pytest.raises(AcceptedError, match="model is 'Other'"):
        accept(path, other, force=True)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "accepted.json"
    accept(path, found())
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(AcceptedError, match=r"accepted\.json: cannot be written \(No space left on device\)"):
            accept(path, found(2 * KLD))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["accepted.json"]
    (tmp_path / "file").touch()
    with pytest.raises(AcceptedError, match="cannot be written"):
        accept(tmp_path / "file" / "accepted.json", found())


def test_two_at_once_lose_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reads the file before the other has written it, unless one waits."""
    path = tmp_path / "accepted.json"
    monkeypatch.setattr(module, "_LOOK_S", 0.001)
    both = threading.Barrier(2, timeout=0.2)

    def judge(_held: object) -> Any:
        try:
            both.wait()
        except threading.BrokenBarrierError:
            return "PASS"
        return "FAIL"

    threads = [threading.Thread(target=accept_into, args=(path, each, judge)) for each in (found(), found(kind=THERE))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    accepted = load_accepted(path)
    assert len(accepted.log) == len(accepted.entries) == 2
    monkeypatch.setattr(module, "_PATIENCE_S", 0.0)

    def again(_held: object) -> Any:
        with pytest.raises(AcceptedError, match="another process is writing it"):
            accept(path, found())
        return "PASS"

    accept_into(path, found(), again)
    assert len(load_accepted(path).log) == 3


def test_what_is_accepted_of_the_tiny_model() -> None:
    """`make regression` of both kinds of machine has a history, and nothing in it was forced."""
    kept = load_accepted(Path(__file__).parents[3] / "quant_eval" / "baselines" / "tiny.json")
    assert {"AVX512" in entry.accepted.instructions for entry in kept.entries} == {True, False}
    assert kept.forced() is None
    for entry in kept.entries:
        assert set(entry.accepted.levels) == {"q8_0", "q4_k_m", "q4_0"}
