"""Commands on what lies on the hub: one commit for all, said where it is looked for, and nothing fetched in vain."""

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import HubServer, meet, serving
from huggingface_hub import constants

from builders import MICRO, Built
from miso_gguf.models.manifest import read_manifest

REPO = "someone/micro"
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def hub(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    made = built.inputs(MICRO)
    server = HubServer()
    server.publish(REPO, {path.name: path.read_bytes() for path in (made.checkpoint, made.mimi, made.tokenizer)}, "v1")
    server.publish(REPO, {**server.history[server.refs[REPO, "v1"]], "model.safetensors": b"another"})
    monkeypatch.chdir(tmp_path)
    with serving(server):
        meet(server, tmp_path / "cache", monkeypatch)
        yield server


@pytest.fixture
def miso_convert(run: Command) -> Command:
    """What it prints as one line."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code, out, err = run(*arguments)
        return code, " ".join(out.split()), err

    return call


@pytest.fixture
def config(built: Built) -> Path:
    return built.inputs(MICRO).config


def test_a_revision_is_converted_recorded_shown_and_verified(
    hub: HubServer, miso_convert: Command, config: Path
) -> None:
    commit = hub.refs[REPO, "v1"]
    arguments = (REPO, "--revision", "v1", "--config", config, "--quant", "q8_0", "--out", "out")
    code, out, err = miso_convert(*arguments, "--dry-run")
    assert (code, err) == (0, "")
    assert f"tokenizer: {REPO}/tokenizer.json of commit {commit[:12]}" in out
    code, _, err = miso_convert(*arguments)
    assert (code, err.splitlines()) == (0, [
        f"codec: {REPO}/mimi.safetensors of commit {commit[:12]}",
        f"tokenizer: {REPO}/tokenizer.json of commit {commit[:12]}",
    ])  # fmt: skip
    assert {(source.repo, source.revision) for source in read_manifest(Path("out")).sources} == {(REPO, commit)}
    assert f"{REPO} │ {commit[:12]}" in miso_convert("inspect", "out")[1]
    constants.HF_HUB_CACHE += "-other"  # put back by the monkeypatch that set it
    hub.count_anew()
    code, out, err = miso_convert("verify", "out", REPO, "--config", config, "--json")
    assert code == 1
    source = json.loads(out)["findings"][-1]
    assert (source["check"], source["ok"]) == ("source", False)
    assert f"it was made from commit {commit}: pass that with --revision" in source["measured"]
    assert hub.sent_bytes == 0
    code, out, _ = miso_convert("verify", "out", REPO, "--config", config, "--revision", "v1")
    assert (code, "all is well" in out) == (0, True)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda hub, _: hub.gated.add(REPO), "the repository is gated: accept its terms and run `hf auth login`, or"),
        (lambda hub, _: hub.private.add(REPO), f"{REPO}@v1: no such repository on the hub (or it is private)"),
        (lambda hub, _: hub.refs.pop((REPO, "v1")), f"{REPO}@v1: the repository has no such branch, tag or commit"),
        (lambda hub, _: Path("cache").write_text(""), "cannot be read or written (Not a directory): set HF_HOME"),
        (
            lambda _, patch: patch.setattr(constants, "HF_HUB_CACHE", "~/x"),
            "no home directory to keep it in: set",
        ),
        (lambda hub, _: hub.damaged.add("model.safetensors"), "what arrived is damaged (its sha256 is "),
        (
            lambda _, patch: patch.setattr(os, "fsync", _full),
            "the disk is full (the hub's cache): free some space, set HF_HOME to a folder on another disk, or",
        ),
    ],
)
def test_what_cannot_be_fetched_is_one_line(
    hub: HubServer,
    miso_convert: Command,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    break_it: Callable[[HubServer, pytest.MonkeyPatch], object],
    said: str,
) -> None:
    break_it(hub, monkeypatch)
    code, out, err = miso_convert(REPO, "--revision", "v1", "--config", config, "--quant", "q8_0", "--out", "out")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert not Path("out").exists()


@pytest.mark.parametrize("options", [("--quant", "iq3_m"), ("--quant", "q8_0", "--decoder-quant", "iq3_xxs")])
def test_a_level_that_lacks_its_importance_matrix_is_refused_before_anything_is_fetched(
    hub: HubServer, miso_convert: Command, config: Path, options: tuple[str, ...]
) -> None:
    hub.count_anew()
    code, out, err = miso_convert(REPO, "--revision", "v1", "--config", config, *options, "--out", "out")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "needs an importance matrix of the" in err
    assert hub.sent_bytes == 0


def _full(_handle: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
