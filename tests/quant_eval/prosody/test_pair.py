"""Two files side by side, whatever their sample rate and channels."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from synthetic_voice import RATE_HZ, Phrase

from miso_gguf.console import run
from miso_gguf.quant_eval.cli import cli
from miso_gguf.quant_eval.prosody.compare import compare_free
from miso_gguf.quant_eval.prosody.pair import pair_report
from miso_gguf.quant_eval.prosody.recording import measure_both

PHRASE = Phrase(vowels="aioa")


def test_the_report_is_of_what_was_heard(tmp_path: Path) -> None:
    first, second = PHRASE.samples(), PHRASE.but(median_hz=150.0, outer_s=0.2).samples()
    soundfile.write(tmp_path / "a.wav", first, RATE_HZ, "FLOAT")
    soundfile.write(tmp_path / "b.wav", second, RATE_HZ, "FLOAT")
    report = pair_report(tmp_path / "a.wav", tmp_path / "b.wav")
    a, b = measure_both(first, second)
    assert (report.reference, report.test, report.free) == (a.scalars(), b.scalars(), compare_free(a, b))
    assert report.aligned is None
    assert report.why_not_aligned == "they are 1.20 s and 1.40 s long"
    read = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert read["free"] == report.free
    assert read["pitch_range"].keys() == {"floor_hz", "ceiling_hz"}


def test_rate_and_channels_do_not_matter(tmp_path: Path) -> None:
    """Resampling moves F0 by less than 1 cent."""
    samples = PHRASE.samples()
    soundfile.write(tmp_path / "a.wav", samples, RATE_HZ)
    stereo = np.stack([soxr.resample(samples, RATE_HZ, 44_100)] * 2, axis=1)
    soundfile.write(tmp_path / "b.flac", stereo, 44_100)
    report = pair_report(tmp_path / "a.wav", tmp_path / "b.flac")
    assert report.aligned is not None
    assert report.aligned["lf0_rmse"] < 1
    assert report.aligned["vuv_error"] == 0
    assert report.free["dur_ratio"] == 0


def test_a_delayed_pair_is_not_compared_step_by_step(tmp_path: Path) -> None:
    samples = PHRASE.but(outer_s=0.3).samples()
    soundfile.write(tmp_path / "a.wav", samples, RATE_HZ)
    soundfile.write(tmp_path / "b.wav", np.roll(samples, -round(0.12 * RATE_HZ)), RATE_HZ)
    report = pair_report(tmp_path / "a.wav", tmp_path / "b.wav")
    assert report.aligned is None
    assert report.why_not_aligned == "the second comes 120 ms earlier than the first"
    assert report.free["dur_ratio"] == pytest.approx(0, abs=0.01)


def test_the_command_says_why_nothing_is_compared_step_by_step(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "a.wav", PHRASE.samples(), RATE_HZ)
    soundfile.write(tmp_path / "b.wav", PHRASE.but(outer_s=0.2).samples(), RATE_HZ)
    assert run(cli, ["prosody", str(tmp_path / "a.wav"), str(tmp_path / "b.wav")], "miso-eval") == 0
    said = capfd.readouterr().out
    assert "Not compared step by step: they are 1.20 s and 1.40 s long." in said
    assert run(cli, ["prosody", str(tmp_path / "a.wav"), str(tmp_path / "a.wav")], "miso-eval") == 0
    said = capfd.readouterr().out
    assert "Not compared" not in said
    assert "Gross pitch error" in said


def test_files_that_are_no_recordings(tmp_path: Path) -> None:
    good, empty, short = tmp_path / "good.wav", tmp_path / "empty.wav", tmp_path / "short.wav"
    soundfile.write(good, PHRASE.samples(), RATE_HZ)
    empty.touch()
    soundfile.write(short, np.zeros(0, np.float32), RATE_HZ)
    for path, message in ((empty, r"empty\.wav: the file is empty"), (short, r"short\.wav: 0\.00 s")):
        with pytest.raises(ValueError, match=message):
            pair_report(good, path)
        with pytest.raises(ValueError, match=message):
            pair_report(path, good)
    with pytest.raises(FileNotFoundError, match=r"none\.wav"):
        pair_report(good, tmp_path / "none.wav")
