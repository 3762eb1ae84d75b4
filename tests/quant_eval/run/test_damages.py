"""Damages of growing strength: known before they are made, one copy at a time, and gone when they are measured."""

from dataclasses import replace
from pathlib import Path

import pytest

from builders import COMMON, MICRO, Built
from miso_gguf.core.errors import MisoError
from miso_gguf.native.gguf_file import GgufFile
from miso_gguf.quant_eval.run.candidate import Candidate
from miso_gguf.quant_eval.run.damages import LADDER, STRENGTHS, Damage, damages_of
from miso_gguf.runtime.bundle import open_level


@pytest.fixture(scope="module")
def whole(built: Built) -> Candidate:
    return Candidate.of("fp16", open_level(built.bundle(COMMON, MICRO), "fp16"))


def test_which_are_made(whole: Candidate) -> None:
    assert damages_of(whole, controls=False, ladder=False) == ()
    quick = damages_of(whole, controls=True, ladder=False)
    assert [(each.half, each.strength) for each in quick] == [("both", strength) for strength in STRENGTHS]
    all_of_them = damages_of(whole, controls=True, ladder=True)
    assert all_of_them[: len(quick)] == quick
    assert [(each.half, each.strength) for each in all_of_them[len(quick) :]] == [
        (half, strength) for half in ("backbone", "decoder") for strength in LADDER
    ]
    assert len(LADDER) == 6
    assert len({each.candidate.key for each in all_of_them}) == len(all_of_them)


def test_records_are_of_what_was_damaged_and_how(whole: Candidate) -> None:
    one = Damage.of(whole, "both", 0.5)
    assert one.candidate.name == "damaged-both-0.5"
    assert one == Damage.of(whole, "both", 0.5)
    others = [
        Damage.of(whole, "both", 0.8),
        Damage.of(whole, "backbone", 0.5),
        Damage.of(replace(whole, digest="another"), "both", 0.5),
    ]
    assert one.candidate.digest not in {other.candidate.digest for other in others}


def test_one_copy_that_goes_when_it_is_measured(whole: Candidate, tmp_path: Path) -> None:
    damage = Damage.of(whole, "decoder", 0.5)
    with damage.copied(tmp_path / "damaged") as candidate:
        assert candidate.key == damage.candidate.key
        (copy,) = (tmp_path / "damaged").iterdir()
        assert candidate.files.directory == copy
        assert candidate.files.decoder.read_bytes() != whole.files.decoder.read_bytes()
    assert list((tmp_path / "damaged").iterdir()) == []


def test_after_an_interrupt_it_is_there_to_go_on(whole: Candidate, tmp_path: Path) -> None:
    damage = Damage.of(whole, "both", 0.5)
    with pytest.raises(KeyboardInterrupt), damage.copied(tmp_path) as candidate:
        raise KeyboardInterrupt
    times = candidate.files.decoder.stat().st_mtime_ns
    with damage.copied(tmp_path) as again:
        assert again.files.decoder.stat().st_mtime_ns == times
    assert list(tmp_path.iterdir()) == []


def test_what_is_written(whole: Candidate) -> None:
    sizes = [Damage.of(whole, half, 0.5).copied_bytes for half in ("both", "backbone", "decoder")]
    assert sizes[0] == sizes[1] + sizes[2]
    assert sizes[1:] == [path.stat().st_size for path in (whole.files.backbone, whole.files.decoder)]


def test_what_cannot_be_damaged_is_found_out_at_once(whole: Candidate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GgufFile, "tensors", {}, raising=False)
    monkeypatch.setattr(GgufFile, "__init__", lambda self, _path: setattr(self, "_handle", None))
    with pytest.raises(MisoError, match="has no matrices in layers: it cannot be damaged on purpose"):
        damages_of(whole, controls=True, ladder=False)
    assert damages_of(whole, controls=False, ladder=False) == ()
