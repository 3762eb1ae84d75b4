"""Which levels cannot do without an importance matrix, of which half and tensors; what is taken from where."""

from pathlib import Path

import numpy as np
import pytest

from builders import BLOCKS, Built, Inputs, write_imatrix, write_random_imatrices
from miso_gguf.convert.checkpoint.open import open_checkpoint
from miso_gguf.convert.conversion import Conversion, Request, plan_conversion
from miso_gguf.convert.imatrix import imatrices_in, imatrix_name, read_imatrix
from miso_gguf.core.errors import CheckpointError
from miso_gguf.core.files import file_sha256
from miso_gguf.models.levels import IQ3_M, IQ3_XXS, Q4_0, Q8_0, Level
from miso_gguf.models.manifest import mending_command, read_manifest
from miso_gguf.models.tensors import gguf_tensors


@pytest.fixture(scope="module")
def inputs(built: Built) -> Inputs:
    return built.inputs(BLOCKS)


@pytest.fixture(scope="module")
def matrices(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_random_imatrices(tmp_path_factory.mktemp("im"), BLOCKS)


def plan(inputs: Inputs, levels: list[Level], **request: object) -> Conversion:
    wanted = Request(levels, threads=1, **request)  # type: ignore[arg-type]
    with open_checkpoint(inputs.checkpoint, config=inputs.config) as checkpoint:
        return plan_conversion(inputs.checkpoint.parent / "out", checkpoint, inputs.mimi, inputs.tokenizer, wanted)


def test_each_half_needs_its_own(inputs: Inputs, matrices: dict[str, Path]) -> None:
    backbone, decoder = ({name: path} for name, path in matrices.items())
    for given, lacking in (({}, "backbone"), (backbone, "decoder"), (decoder, "backbone")):
        said = rf"^iq3_m needs an importance matrix of the {lacking}: pass --imatrix DIR.*--imatrix-{lacking} FILE$"
        with pytest.raises(ValueError, match=said):
            plan(inputs, [Q8_0, IQ3_M], **given)
    with pytest.raises(ValueError, match=r"^q8_0\+iq3_m needs an importance matrix of the decoder"):
        plan(inputs, [Q8_0], decoder_level=IQ3_M, **backbone)
    assert list(plan(inputs, [Q8_0], decoder_level=IQ3_M, **decoder).levels) == ["q8_0+iq3_m"]
    assert list(plan(inputs, [IQ3_M], decoder_level=Q8_0, **backbone).levels) == ["iq3_m+q8_0"]


def test_only_what_was_weighed_is_recorded(inputs: Inputs, matrices: dict[str, Path]) -> None:
    files = plan(inputs, [Q8_0], decoder_level=Q4_0, **matrices).levels["q8_0+q4_0"]
    assert files.imatrix_backbone is None
    assert files.imatrix_decoder == file_sha256(matrices["imatrix_decoder"])


def test_both_are_asked_for_to_mend_what_had_both(built: Built) -> None:
    command = mending_command("DIR", "iq3_m", manifest=read_manifest(built.every_level()))
    assert command == "miso-convert CHECKPOINT --force iq3_m --imatrix DIR --out DIR"


def lacking(directory: Path, *names: str) -> Path:
    """A backbone's without these tensors."""
    tensors = [t for t in gguf_tensors(BLOCKS) if t.part == "backbone" and len(t.shape) == 2 and t.name not in names]
    sums = {tensor.name: np.ones(tensor.shape[-1], np.float32) for tensor in tensors}
    write_imatrix(directory / "lacking.gguf", sums, dict.fromkeys(sums, 1.0))
    return directory / "lacking.gguf"


def test_a_tensor_of_so_few_bits_needs_its_entry(inputs: Inputs, matrices: dict[str, Path], tmp_path: Path) -> None:
    gate, key = "blk.1.ffn_gate.weight", "blk.2.attn_k.weight"
    path = lacking(tmp_path, gate, key)
    said = rf"lacking\.gguf: has no entry for 2 tensors .* the first ({gate}|{key}): make it anew"
    with pytest.raises(CheckpointError, match=said):
        plan(inputs, [IQ3_XXS], **{**matrices, "imatrix_backbone": path})
    # The tables and the output are of types that need none, and so is IQ3_S.
    for level, names in ((IQ3_XXS, ("token_embd.weight", "output.weight")), (IQ3_M, (gate, key))):
        assert plan(inputs, [level], **{**matrices, "imatrix_backbone": lacking(tmp_path, *names)}).plans


def test_a_directory_has_both(matrices: dict[str, Path], tmp_path: Path) -> None:
    directory = matrices["imatrix_backbone"].parent
    assert {f"imatrix_{part}": path for part, path in imatrices_in(directory).items()} == matrices
    (tmp_path / imatrix_name("backbone")).touch()
    with pytest.raises(CheckpointError, match=r": has no decoder\.imatrix\.gguf\. Make them: miso-recipe imatrix"):
        imatrices_in(tmp_path)


def test_one_of_the_other_half_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    tensors = {part: [t for t in gguf_tensors(BLOCKS) if t.part == part] for part in ("backbone", "decoder")}
    sums = {"output.weight": np.ones(BLOCKS.decoder.embed_dim, np.float32)}
    write_imatrix(path, sums, {"output.weight": 1.0}, part="decoder")
    assert read_imatrix(path, tensors["decoder"]).columns
    with pytest.raises(CheckpointError, match=r"m\.gguf: is of the decoder, not of the backbone: pass each half"):
        read_imatrix(path, tensors["backbone"])
