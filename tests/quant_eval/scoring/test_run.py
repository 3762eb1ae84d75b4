"""An evaluation by the command with a recogniser of the user's: a level that it understands less well fails."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from builders import Built
from miso_gguf.console import run
from miso_gguf.quant_eval.cli import cli

GATES = 'schema_version = 1\n[gates.wer]\nkind = "at_most"\nmargins = { fp16 = 2, q8_0 = 2, q4_k_m = 3, q4_0 = 5 }\n'


@pytest.mark.long
@pytest.mark.parametrize(("worse", "code"), [(30.0, 1), (0.0, 0)])
def test_a_level_that_is_understood_less_well_fails(
    worse: float, code: int, built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("my_ears")

    def wer(samples: "np.ndarray[tuple[int], np.dtype[np.float32]]", text: str, reference: object) -> float:
        """Noise, that is the control, is heard by both; another rendition only by the one that is to fail."""
        assert isinstance(reference, np.ndarray)
        if np.array_equal(samples, reference):
            return 0.0
        return 30.0 if len(samples) == len(reference) and not worse else worse

    module.wer = wer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_ears", module)
    (tmp_path / "gates.toml").write_text(GATES, "utf-8")
    options = ["--corpus", "tiny:8", "--seeds", "1", "--stages", "free", "--threads", "1", "--no-vram"]
    asked = ["--extra", "wer=my_ears:wer", "--gates", str(tmp_path / "gates.toml"), "--out", str(tmp_path / "report")]
    assert run(cli, ["run", str(built.tiny("fp16", "q4_0")), *options, *asked], "miso-eval") == code
