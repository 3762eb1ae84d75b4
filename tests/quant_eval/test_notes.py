"""What a reader must know beside the numbers: by which importance matrices a level was quantised."""

from pathlib import Path

from builders import Built
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
