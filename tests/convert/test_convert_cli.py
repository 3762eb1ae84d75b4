"""`miso-convert` as a user meets it: exit codes, one-line errors, tables, JSON."""

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from builders import MICRO, Built, Inputs, make_inputs, write_imatrix, write_random_imatrices
from miso_gguf.convert import cli
from miso_gguf.core.files import file_sha256
from miso_gguf.models.levels import LEVELS, Q4_K_M
from miso_gguf.models.manifest import MANIFEST_NAME, read_manifest
from miso_gguf.native import threads


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("inputs"), MICRO)


@pytest.fixture
def miso_convert(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["miso-convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert isinstance(stopped.value.code, int)
        return Result(stopped.value.code, captured.out, captured.err)

    return call


def _arguments(inputs: Inputs, out: Path, *more: object) -> tuple[object, ...]:
    return (inputs.checkpoint, "--config", inputs.config, "--out", out, *more)


def test_convert_inspect_verify(miso_convert, inputs: Inputs, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = miso_convert(*_arguments(inputs, tmp_path, "--quant", "Q4_K_M", "--quant", "f16"))
    assert (done.code, done.err) == (0, "")
    assert "q4_k_m" in done.out
    assert "fp16" in done.out
    seen = miso_convert("inspect", tmp_path)
    assert seen.code == 0
    assert "Micro-backbone-Q4_K_M.gguf" in seen.out
    well = miso_convert("verify", tmp_path, inputs.checkpoint, "--config", inputs.config)
    assert well.code == 0
    assert "all is well" in well.out
    again = miso_convert(*_arguments(inputs, tmp_path, "--quant", "fp16"))
    assert again.code == 0
    assert "fp16 already there" in again.err


def test_a_single_imatrix_goes_before_that_of_the_directory(  # type: ignore[no-untyped-def]
    miso_convert, inputs: Inputs, tmp_path: Path
) -> None:
    both, single = write_random_imatrices(tmp_path / "im", MICRO), tmp_path / "single.gguf"
    write_imatrix(single, {"output.weight": np.ones(MICRO.decoder.embed_dim, np.float32)}, {"output.weight": 1.0})
    given = ("--imatrix", tmp_path / "im", "--imatrix-decoder", single)
    assert miso_convert(*_arguments(inputs, tmp_path / "out", "--quant", "q4_0", *given)).code == 0
    files = read_manifest(tmp_path / "out").levels["q4_0"]
    assert files.imatrix_backbone == file_sha256(both["imatrix_backbone"])
    assert files.imatrix_decoder == file_sha256(single)


def test_of_two_copies_the_key_chooses(miso_convert, inputs: Inputs, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    state = load_file(inputs.checkpoint)
    double = {name: tensor * 2 for name, tensor in state.items()}
    wrapped = replace(inputs, checkpoint=tmp_path / "ckpt.pt")
    torch.save({"model": state, "ema": double, "args": argparse.Namespace(lr=1)}, wrapped.checkpoint)
    beside = ("--mimi", inputs.mimi, "--tokenizer", inputs.tokenizer, "--quant", "q8_0")
    asked = miso_convert(*_arguments(wrapped, tmp_path / "out", *beside))
    assert asked.code == 2
    assert "ckpt.pt: weights are in 2 places (model, ema): say which is meant with --key NAME" in asked.err
    assert not (tmp_path / "out").exists()
    done = miso_convert(*_arguments(wrapped, tmp_path / "out", *beside, "--key", "ema"))
    assert done.code == 0
    assert "the weights are under 'ema'; left out: model (" in " ".join(done.err.split())
    verify = ("verify", tmp_path / "out", wrapped.checkpoint, "--config", inputs.config, "--key")
    assert [miso_convert(*verify, key).code for key in ("ema", "model", "none")] == [0, 1, 2]


def test_json(miso_convert, inputs: Inputs, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    plan = json.loads(miso_convert(*_arguments(inputs, tmp_path, "--quant", "q8_0", "--dry-run", "--json")).out)
    assert not (tmp_path / MANIFEST_NAME).exists()
    done = json.loads(miso_convert(*_arguments(inputs, tmp_path, "--quant", "q8_0", "--json")).out)
    assert done["levels"] == ["q8_0"]
    for name, size_bytes in plan["files"].items():
        assert (tmp_path / name).stat().st_size == size_bytes
    total = sum(path.stat().st_size for path in tmp_path.iterdir() if path.name != MANIFEST_NAME)
    # All but the bytes around the codec's weights is known beforehand.
    assert plan["needed_bytes"] == pytest.approx(total, abs=2000)
    memory = json.loads(miso_convert("inspect", tmp_path, "--json").out)["q8_0"]
    assert memory["backbone_bytes"] == plan["files"]["Micro-backbone-Q8_0.gguf"]
    findings = json.loads(miso_convert("verify", tmp_path, "--json").out)
    assert findings["ok"] is True


def test_dry_run_prints_the_plan(miso_convert, inputs: Inputs, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "new"
    plan = miso_convert(*_arguments(inputs, out, "--quant", "q4_k_m", "--decoder-quant", "q8_0", "--dry-run"))
    assert plan.code == 0
    assert "Micro-backbone-Q4_K_M.gguf" in plan.out
    assert "Micro-decoder-Q8_0.gguf" in plan.out
    assert "of disk, about" in plan.out
    assert not out.exists()


def test_its_threads_are_within_a_quota(  # type: ignore[no-untyped-def]
    miso_convert, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_quota", lambda: 1.0)
    plan = miso_convert(*_arguments(inputs, tmp_path / "new", "--quant", "q8_0", "--dry-run"))
    assert " on 1 threads" in " ".join(plan.out.split())


def test_verify_says_no(miso_convert, inputs: Inputs, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    miso_convert(*_arguments(inputs, tmp_path, "--quant", "q8_0"))
    path = tmp_path / "Micro-decoder-Q8_0.gguf"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = miso_convert("verify", tmp_path)
    assert found.code == 1
    assert "DIFFERS" in found.out
    assert "1 of 11 checks failed, 4 left out" in found.out
    mend = f"miso-convert CHECKPOINT --force q8_0 --out {tmp_path}"
    assert f"To mend it: {mend}" in found.out
    (tmp_path / "mimi-decoder.onnx").write_text("none")
    told = json.loads(miso_convert("verify", tmp_path, inputs.checkpoint, "--config", inputs.config, "--json").out)
    assert [finding["subject"] for finding in told["findings"] if not finding["ok"]] == [path.name, "mimi-decoder.onnx"]
    assert told["mend"] == [mend.replace("CHECKPOINT", f"{inputs.checkpoint} --config {inputs.config}")]
    alone = miso_convert("verify", tmp_path, "--mimi", inputs.mimi)
    assert (alone.code, "pass that too" in alone.err) == (2, True)
    (tmp_path / MANIFEST_NAME).write_text("{")
    unreadable = miso_convert("verify", tmp_path, "--json")  # a table breaks its lines where a path is long
    assert unreadable.code == 1
    assert "not a valid manifest" in unreadable.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny", "--quant", "q4_km"], "unknown level 'q4_km': did you mean q4_k_m?"),
        (["tiny"], "Missing option '--quant'"),
        (["nowhere.safetensors", "--quant", "q8_0"], "nowhere.safetensors: no such file or directory"),
        (["tiny", "--quant", "q8_0", "--threads", "0"], "0 is not in the range 1<=x<=512"),
        (["inspect", "nowhere"], "nowhere: not a bundle (no miso.json). Make one with miso-convert."),
        (["verify", "nowhere"], "nowhere: not a bundle"),
        (["tiny", "--quant", "q8_0", "--tokenizer", "none.json"], "none.json: no such file"),
        (["tiny", "--quant", "q8_0", "--mimi", "none.safetensors"], "none.safetensors: no such file"),
        (["tiny", "--quant", "q8_0", "--imatrix-backbone", "none.gguf"], "none.gguf: cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(  # type: ignore[no-untyped-def]
    miso_convert, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    failed = miso_convert(*arguments)
    assert failed.code == 2
    assert message in failed.err
    assert failed.out == ""
    assert list(tmp_path.iterdir()) == []


def test_interrupt_is_exit_2(miso_convert, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_conversion", interrupted)
    stopped = miso_convert(*_arguments(inputs, tmp_path, "--quant", "q8_0"))
    assert stopped.code == 2
    assert "interrupted" in stopped.err


def test_broken_manifest(miso_convert, inputs: Inputs, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    miso_convert(*_arguments(inputs, tmp_path, "--quant", "q8_0"))
    path = tmp_path / MANIFEST_NAME
    whole = path.read_text("utf-8")
    for text, message in (
        (whole[:-20], "not a valid manifest: JSON"),
        (whole.replace('"schema_version": 1', '"schema_version": "1"'), "not a valid manifest: schema_version"),
        (whole.replace('"schema_version": 1', '"schema_version": 9'), "schema_version is 9, known is 1"),
        (whole.replace('"backbone": "Micro-', '"backbone": "../Micro-', 1), "is not a plain file name"),
        (whole.replace('"Micro-decoder-Q8_0.gguf": {', '"Other.gguf": {'), "no entry for Micro-decoder-Q8_0.gguf"),
        (whole.replace('"embed_dim": 64', '"embed_dim": -64'), "must be a positive integer"),
        ("[]", "not a valid manifest"),
    ):
        assert text != whole
        path.write_text(text, "utf-8")
        failed = miso_convert("inspect", tmp_path)
        assert failed.code == 2
        assert message in failed.err
        assert failed.err.count("\n") == 1


def test_inspect_shows_the_finest_first_and_what_an_imatrix_was_used_for(miso_convert, built: Built) -> None:  # type: ignore[no-untyped-def]
    lines = miso_convert("inspect", built.every_level()).out.splitlines()
    found = {cells[1].strip(): cells[-2].strip() for line in lines if len(cells := line.split("│")) == 9}
    assert [(key, found[key]) for key in found if key in LEVELS] == [
        (level.key, "both" if level.needs_imatrix else "") for level in LEVELS.values()
    ]
    assert "imatrix" not in miso_convert("inspect", built.bundle([Q4_K_M])).out


def test_help_shows_examples(miso_convert) -> None:  # type: ignore[no-untyped-def]
    shown = miso_convert("--help")
    assert shown.code == 0
    assert "miso-convert tiny --quant q4_k_m --out demo" in shown.out
    assert "--imatrix-backbone" in shown.out


def test_tiny_through_the_installed_command(tmp_path: Path) -> None:
    """The command of the README, as a process of its own, away from the repository."""
    command = shutil.which("miso-convert", path=str(Path(sys.executable).parent))
    assert command is not None
    levels = [word for level in ("q4_k_m", "q8_0", "fp16", "q4_0") for word in ("--quant", level)]
    done = subprocess.run([command, "tiny", *levels], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "Miso-Tiny-GGUF" / MANIFEST_NAME).exists()
    assert {level for level in ("q4_k_m", "q8_0", "fp16", "q4_0") if level in done.stdout} == {
        "q4_k_m",
        "q8_0",
        "fp16",
        "q4_0",
    }
