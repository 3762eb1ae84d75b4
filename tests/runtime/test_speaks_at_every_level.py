"""The tiny model speaks at every level: `miso-speak` on a bundle of all of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from bundle import write_tiny_bundle

from builders import Built
from miso_gguf import MisoTTS, SpeechOptions
from miso_gguf.models.levels import LEVELS
from miso_gguf.runtime import cli

TEXT = "This is very good."
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def every(built: Built) -> Path:
    return built._once("tiny at every level", lambda out: write_tiny_bundle(out, list(LEVELS.values())))


@pytest.mark.parametrize("level", LEVELS)
def test_it_is_heard_and_the_same_again(
    every: Path, tmp_path: Path, level: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once as a command and twice from one model: the same codes, and sound that is not silence."""
    out = tmp_path / "said.wav"
    command = [TEXT, "--model", str(every), "--quant", level, "--out", str(out), "--threads", "1", "--gpu-layers", "0"]
    assert cli.speak.main([*command, "--json"], standalone_mode=False) == 0
    facts = json.loads(capsys.readouterr().out)
    samples, _ = soundfile.read(out)
    assert 0.5 < facts["audio_s"] < 4
    assert np.sqrt(np.mean(samples**2)) > 0.01
    with MisoTTS.load(every, level, threads=1, gpu_layers=0) as tts:
        first, again = (tts.generate_codes(TEXT, options=SpeechOptions()) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert len(first) == round(facts["audio_s"] / 0.08)
