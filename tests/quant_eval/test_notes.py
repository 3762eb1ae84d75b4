"""What a reader must know beside the numbers: by which importance matrices a level was quantised, and made of what."""

from pathlib import Path

import pytest

from builders import MICRO, Built, make_bundle, write_random_imatrices
from miso_gguf.models.levels import FP16, Q4_0
from miso_gguf.quant_eval.corpus import load_corpus
from miso_gguf.quant_eval.notes import notes_of
from miso_gguf.quant_eval.run.plan import Asked, plan_run


def test_importance_matrices_are_named(built: Built, tmp_path: Path) -> None:
    bundle = built.every_level()
    plan = plan_run(bundle, ["q4_k_m", "iq3_s"], "fp16", Asked(tmp_path, prompts=2, seeds=1, controls=False, threads=1))
    files = plan.reference.files.manifest.levels["iq3_s"]
    assert files.imatrix_backbone
    assert files.imatrix_decoder
    fp16, weighed, plain = sorted(notes_of(plan, [], "run")[:3], key=lambda note: note.split(":")[0])
    said = f", importance matrix: backbone {files.imatrix_backbone[:12]} and depth decoder {files.imatrix_decoder[:12]}"
    assert weighed.startswith("iq3_s: level iq3_s of ")
    assert weighed.endswith(said)
    assert "importance" not in fp16 + plain


@pytest.mark.parametrize(
    ("heard", "is_its_own"),
    [
        ("tiny (0123456789ab), said by fp16, seed 0", True),
        ("tiny:4 (0123456789ab), said by fp16, seed 0", True),
        (f"renamed.jsonl ({load_corpus('tiny:6').sha256[:12]}), said by fp16, seed 0", True),
        ("builtin (0123456789ab), said by fp16, seed 0", False),
        ("tinyish.jsonl (0123456789ab), said by fp16, seed 0", False),
        ("noise.txt", False),
    ],
)
@pytest.mark.parametrize("halves", [("backbone", "decoder"), ("decoder",)])
def test_who_is_judged_on_what_its_matrix_heard_is_named(
    heard: str, is_its_own: bool, halves: tuple[str, ...], built: Built, tmp_path: Path
) -> None:
    matrices = write_random_imatrices(tmp_path / "imatrix", MICRO, heard)
    given = {name: path for name, path in matrices.items() if name.removeprefix("imatrix_") in halves}
    bundle = tmp_path / "bundle"
    make_bundle(built.inputs(MICRO), bundle, [FP16, Q4_0], threads=1, **given)
    asked = Asked(tmp_path / "out", corpus="tiny", prompts=6, seeds=1, controls=False, threads=1)
    notes = [note for note in notes_of(plan_run(bundle, ["q4_0"], "fp16", asked), [], "run") if "judged here" in note]
    assert len(notes) == is_its_own
    if is_its_own:
        name = heard.partition(",")[0]
        assert notes[0].startswith(f"q4_0: its importance matrix heard {name}, of which it is judged here")
        assert notes[0].endswith("--corpus FILE")
