"""Damaged levels in a run: measured on a few clips, copied once, and not again once there are records."""

from dataclasses import replace
from pathlib import Path

import pytest

from builders import Built
from miso_gguf.quant_eval.gates.config import load_gates
from miso_gguf.quant_eval.gates.controls import Hurt, gate_controls, ladder_controls
from miso_gguf.quant_eval.run import damages
from miso_gguf.quant_eval.run.plan import Asked, Plan, plan_run
from miso_gguf.quant_eval.run.record_store import Records
from miso_gguf.quant_eval.run.runner import evaluate
from miso_gguf.quant_eval.summary import observed

GATES = load_gates().only(["logits"])


def planned(bundle: Path, out: Path, prompts: int = 6) -> Plan:
    asked = Asked(out, prompts=prompts, seeds=2, stages=("logits",), ladder=True, threads=1)
    plan = plan_run(bundle, ["fp16", "q4_0"], "fp16", asked)
    chosen = {("both", 0.8), ("both", 1.2), ("decoder", 0.4), ("decoder", 1.2)}
    damages = tuple(damage for damage in plan.damages if (damage.half, damage.strength) in chosen)
    return replace(plan, candidates=(), damages=damages)


@pytest.fixture(scope="module")
def bundle(built: Built) -> Path:
    return built.tiny("fp16", "q8_0", "q4_0")


@pytest.fixture(scope="module")
def done(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    plan = planned(bundle, tmp_path_factory.mktemp("damaged"))
    counted: list[int] = []
    evaluate(plan, progress=counted.append)
    assert counted[-1] == plan.clips() == 6 * 2 + 6 * len(plan.damages)
    return plan


def hurt(plan: Plan) -> list[Hurt]:
    with Records.open(plan.records, plan.fingerprint) as records:
        found = observed(records)
    return [Hurt(each.half, each.strength, found[each.candidate.key]) for each in plan.damages]


def test_gates_at_q4_0_s_margins_fail(done: Plan) -> None:
    controls = gate_controls(["q4_0"], GATES, hurt(done), [])
    assert [(each.metric, each.behaved) for each in controls] == [("kld_cb0", True), ("top1", True)]
    assert {each.name for each in controls} == {"all scales off by 120 %"}


def test_the_depth_decoder_does_not_touch_codebook_0(done: Plan) -> None:
    low, high = (each.measured for each in hurt(done) if each.half == "decoder")
    assert not low["kld_cb0"].values.any()
    assert not high["kld_cb0"].values.any()
    assert 0 < low["kld_rest"].mean < high["kld_rest"].mean
    assert [control.behaved for control in ladder_controls(hurt(done), GATES)] == [True]


def test_the_first_seed_only_and_no_halves(done: Plan) -> None:
    with Records.open(done.records, done.fingerprint) as records:
        of_damages = [record for record in records if record.level != done.reference.key]
    assert {record.seed for record in of_damages} == {0}
    assert not any("backbone_only" in record.values for record in of_damages)


def test_copies_are_gone_and_not_made_again(done: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(done.copies.iterdir()) == []
    monkeypatch.setattr(damages, "damaged", lambda *_args, **_options: 1 / 0)
    counted: list[int] = []
    evaluate(done, progress=counted.append)
    assert counted[-1] == done.clips()
    more = replace(done, damages=(*done.damages, damages.Damage.of(done.reference, "both", 0.3)))
    with pytest.raises(ZeroDivisionError):
        evaluate(more)


def test_a_few_prompts_over_the_whole_corpus(bundle: Path, tmp_path: Path) -> None:
    plan = planned(bundle, tmp_path, prompts=36)
    damage = plan.damages[0].candidate
    said = [index for index, prompt in enumerate(plan.corpus.prompts) if plan.seeds_of(damage, prompt)]
    assert said == list(range(0, 36, 3))
    assert all(plan.seeds_of(plan.reference, prompt) == (0, 1) for prompt in plan.corpus.prompts)


def test_without_another_level_or_enough_prompts_nothing_is_damaged(bundle: Path, tmp_path: Path) -> None:
    asked = Asked(tmp_path, prompts=5, seeds=1, threads=1)
    plan = plan_run(bundle, ["fp16", "q4_0"], "fp16", asked)
    assert (plan.controls, len(plan.damages)) == (True, len(damages.STRENGTHS))
    for levels, changed in (
        (["fp16"], asked),
        (["q4_0"], replace(asked, prompts=4)),
        ([], replace(asked, controls=False)),
    ):
        plan = plan_run(bundle, levels, "fp16", changed)
        assert (plan.controls, plan.damages) == (False, ())
    free = plan_run(bundle, [], "fp16", replace(asked, stages=("free",)))
    assert (free.controls, free.damages) == (True, ()), "its clips are damaged instead"
