"""Synthetic checkpoints are in the upstream layout, reproducible, and made in little memory."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from builders import MICRO
from miso_gguf.models.flavors import TINY
from miso_gguf.models.mimi import MIMI_NAME, TINY_MIMI, mimi_shapes
from miso_gguf.models.spec import TransformerSpec
from miso_gguf.models.synthetic import write_synthetic
from miso_gguf.models.tensors import checkpoint_shapes


def test_the_safetensors_library_reads_it(tmp_path: Path) -> None:
    tensors = load_file(write_synthetic(tmp_path, TINY, TINY_MIMI))
    assert {name: tensor.shape for name, tensor in tensors.items()} == checkpoint_shapes(TINY)
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}
    assert {name: t.shape for name, t in load_file(tmp_path / MIMI_NAME).items()}.items() >= mimi_shapes(
        TINY_MIMI
    ).items()
    assert tensors["backbone.norm.scale"].mean() == pytest.approx(1, abs=0.05)
    assert tensors["backbone.layers.0.mlp.w2.weight"].std() == pytest.approx(768**-0.5, rel=0.02)
    assert not np.array_equal(tensors["backbone.layers.0.mlp.w1.weight"], tensors["backbone.layers.1.mlp.w1.weight"])


def test_equal_seeds_equal_bytes(tmp_path: Path) -> None:
    files = [
        write_synthetic(tmp_path / str(i), MICRO, TINY_MIMI, seed).read_bytes() for i, seed in enumerate((1, 1, 2))
    ]
    assert files[0] == files[1] != files[2]


_MEASURED = """
import resource, sys
from pathlib import Path
from dataclasses import replace
from miso_gguf.models.flavors import TINY
from miso_gguf.models.mimi import TINY_MIMI
from miso_gguf.models.synthetic import write_synthetic
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_synthetic(Path(sys.argv[1]), replace(TINY, text_vocab=700_000), TINY_MIMI)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_it_streams(tmp_path: Path) -> None:
    """717 MB of weights in less than 400 MB of memory."""
    done = subprocess.run([sys.executable, "-c", _MEASURED, tmp_path], capture_output=True, text=True, check=True)
    assert (tmp_path / "model.safetensors").stat().st_size > 700e6
    assert int(done.stdout) < 400_000


def test_command(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "miso_gguf.models.synthetic"]
    done = subprocess.run([*program, "tiny", tmp_path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "mimi.safetensors", "tokenizer.json"}
    failed = subprocess.run([*program, "huge", tmp_path], capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert "usage:" in failed.stderr


def test_any_spec_will_do(tmp_path: Path) -> None:
    odd = replace(MICRO, decoder=TransformerSpec(layers=1, embed_dim=48, heads=3, kv_heads=3, head_dim=16, ffn_dim=80))
    tensors = load_file(write_synthetic(tmp_path, odd, TINY_MIMI))
    assert tensors["projection.weight"].shape == (48, 64)
