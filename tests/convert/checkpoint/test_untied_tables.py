"""Checkpoints with an audio table for each transformer: each gets its own, as transformers loads it."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from hf_csm import SPEC, TIES, random_csm
from safetensors.torch import load_file, save_file
from transformers import CsmForConditionalGeneration

from builders import MICRO, make_bundle, make_inputs
from miso_gguf.convert.bundle import convert
from miso_gguf.convert.checkpoint.open import open_checkpoint
from miso_gguf.convert.conversion import Request, plan_conversion
from miso_gguf.convert.verify import Finding, verify_bundle
from miso_gguf.core.errors import CheckpointError
from miso_gguf.core.files import file_sha256
from miso_gguf.models.levels import F32
from miso_gguf.models.manifest import MANIFEST_NAME, BundleFile, Manifest, read_manifest
from miso_gguf.models.synthetic_tokenizer import tiny_tokenizer
from miso_gguf.models.tensors import AUDIO_TABLE, decoder_audio_table

UNTIED = replace(SPEC, tied_audio_embeddings=False)
BACKBONE_TABLE = "backbone_model.embed_tokens.embed_audio_tokens.weight"
DECODER_TABLE = "depth_decoder.model.embed_tokens.weight"
BOTH = {BACKBONE_TABLE, DECODER_TABLE}


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As transformers saves it."""
    directory = tmp_path_factory.mktemp("untied")
    random_csm(tied=False).save_pretrained(directory)
    (directory / "tokenizer.json").write_text(json.dumps(tiny_tokenizer()))
    assert set(load_file(directory / "model.safetensors")) >= BOTH
    return directory


def variant(source: Path, target: Path, tied: bool | None, tables: set[str], **added: torch.Tensor) -> Path:
    """The same model whose config says `tied` and whose file holds `tables` and what is `added`."""
    shutil.copytree(source, target)
    tensors = load_file(source / "model.safetensors")
    for name in BOTH - tables:
        del tensors[name]
    save_file(tensors | added, target / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "tie_codebooks_embeddings": tied}))
    return target


@pytest.mark.parametrize("tables", [BOTH, {BACKBONE_TABLE}, {DECODER_TABLE}], ids=["both", "backbone's", "decoder's"])
@pytest.mark.parametrize("tied", [True, False, None])
def test_each_transformer_gets_the_table_that_transformers_gives_it(
    untied: Path, tmp_path: Path, tied: bool | None, tables: set[str]
) -> None:
    directory = variant(untied, tmp_path / "model", tied, tables)
    if tied is not True and tables != BOTH:
        # transformers makes the missing one up, at random.
        with pytest.raises(CheckpointError, match=f"1 missing, 0 unknown.*\n  missing   {(BOTH - tables).pop()} "):
            open_checkpoint(directory)
        return
    if tables != BOTH and not TIES:
        pytest.skip("this transformers shares no table: it makes the missing one up")
    model = CsmForConditionalGeneration.from_pretrained(directory)
    expected = {
        "backbone": model.backbone_model.embed_tokens.embed_audio_tokens.weight,
        "decoder": model.depth_decoder.model.embed_tokens.weight,
    }
    with open_checkpoint(directory) as checkpoint:
        assert checkpoint.spec == (UNTIED if tables == BOTH else SPEC)
        names = {"backbone": AUDIO_TABLE, "decoder": decoder_audio_table(checkpoint.spec)}
        for transformer, name in names.items():
            found = checkpoint.read(name, 0, checkpoint.shapes[name][0])
            np.testing.assert_array_equal(found, expected[transformer].detach().numpy())


def test_two_equal_tables_make_the_files_of_one(untied: Path, tmp_path: Path) -> None:
    """Some trainers save the shared table under both of its names."""
    table = load_file(untied / "model.safetensors")[DECODER_TABLE]
    once = bundle(variant(untied, tmp_path / "once", True, {DECODER_TABLE}), tmp_path / "a")[0]
    twice = bundle(variant(untied, tmp_path / "twice", True, BOTH, **{BACKBONE_TABLE: table}), tmp_path / "b")[0]
    for name in read_manifest(once).files:
        if name.endswith(".gguf"):
            tensors = [{t.name: t.data.tobytes() for t in GGUFReader(made / name).tensors} for made in (once, twice)]
            assert tensors[0] == tensors[1]


def bundle(source: Path, out: Path) -> tuple[Path, Manifest]:
    with open_checkpoint(source) as checkpoint:
        return out, convert(plan_conversion(out, checkpoint, None, source / "tokenizer.json", Request([F32])))


@pytest.fixture(scope="module")
def converted(untied: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    return bundle(untied, tmp_path_factory.mktemp("bundle"))


def test_each_table_has_its_place_in_the_bundle(untied: Path, converted: tuple[Path, Manifest]) -> None:
    directory, manifest = converted
    assert manifest.model_spec == UNTIED
    files = manifest.levels["f32"]
    read = {
        part: {tensor.name: tensor.data for tensor in GGUFReader(directory / getattr(files, part)).tensors}
        for part in ("backbone", "decoder", "embeddings")
    }
    tensors = {name: tensor.numpy() for name, tensor in load_file(untied / "model.safetensors").items()}
    projection = tensors["depth_decoder.model.inputs_embeds_projector.weight"].astype(np.float64)
    np.testing.assert_array_equal(read["embeddings"]["audio_embd.weight"], tensors[BACKBONE_TABLE])
    np.testing.assert_array_equal(read["backbone"]["token_embd.weight"], tensors[BACKBONE_TABLE][: SPEC.audio_vocab])
    np.testing.assert_allclose(
        read["decoder"]["token_embd.weight"], tensors[DECODER_TABLE] @ projection.T, rtol=0, atol=1e-4
    )


@contextmanager
def _quiet(_label: str, _total: int) -> Iterator[Callable[[int], None]]:
    yield lambda _amount: None


def verify(directory: Path, source: Path) -> list[Finding]:
    with open_checkpoint(source) as checkpoint:
        return verify_bundle(directory, read_manifest(directory), checkpoint, 2, _quiet)


def test_verify_finds_it_well(untied: Path, converted: tuple[Path, Manifest]) -> None:
    findings = verify(converted[0], untied)
    assert [finding for finding in findings if not finding.ok] == []
    codec = [finding.measured for finding in findings if finding.check == "codec"]
    assert [measured.split(";")[0] for measured in codec] == ["weights as in its source"] * 2, "inside the checkpoint"
    assert [finding.subject for finding in findings if finding.check == "logits"] == ["f32"]


@pytest.mark.parametrize("table", [BACKBONE_TABLE, DECODER_TABLE], ids=["backbone's", "decoder's"])
def test_verify_finds_one_table_taken_for_both(
    untied: Path, converted: tuple[Path, Manifest], tmp_path: Path, table: str
) -> None:
    """A bundle of one table is another checkpoint's; its files, smuggled into a good bundle, are not their source."""
    one, manifest = bundle(variant(untied, tmp_path / "model", True, {table}), tmp_path / "one")
    assert [(f.check, f.ok) for f in verify(one, untied)][-1] == ("source", False)
    directory = Path(shutil.copytree(converted[0], tmp_path / "smuggled"))
    files = manifest.levels["f32"]
    name = files.decoder if table == BACKBONE_TABLE else files.embeddings
    shutil.copy(one / name, directory / name)
    record = BundleFile(size_bytes=(one / name).stat().st_size, sha256=file_sha256(one / name))
    fields = {**dict(converted[1]), "files": {**converted[1].files, name: record}}
    (directory / MANIFEST_NAME).write_text(Manifest(**fields).to_json())
    bad = [(finding.check, finding.subject) for finding in verify(directory, untied) if not finding.ok]
    assert bad == [("origin", name), ("tensors", name), ("logits", "f32")]


def test_what_is_there_twice_and_cannot_be_told_apart_is_named(untied: Path, tmp_path: Path) -> None:
    second = "backbone_model.embed_tokens.embed_text_tokens.weight"
    directory = variant(untied, tmp_path / "text", True, BOTH, **{second: torch.zeros(SPEC.text_vocab, 256)})
    with pytest.raises(
        CheckpointError, match=rf"0 missing, 1 unknown.*\n  unknown   {second} \[1100, 256\]: there as embed_text"
    ):
        open_checkpoint(directory)
    wrong = variant(untied, tmp_path / "shape", True, BOTH, **{BACKBONE_TABLE: torch.zeros(7, 256)})
    with pytest.raises(CheckpointError, match=rf"mis-shaped {BACKBONE_TABLE}: expected \[536, 256\], found \[7, 256\]"):
        open_checkpoint(wrong)


@pytest.mark.parametrize(
    ("given_to", "name"),
    [
        (None, BACKBONE_TABLE),
        ("model-2.safetensors", "backbone_model.norm.weight"),
        (None, "backbone_model.norm.weight"),
    ],
)
def test_what_a_shard_holds_beside_its_index_is_not_passed_over(
    untied: Path, tmp_path: Path, given_to: str | None, name: str
) -> None:
    """transformers reads shards without the index: it would take the second table, and the last of two norms."""
    directory = tmp_path / "model"
    shutil.copytree(untied, directory)
    tensors = load_file(untied / "model.safetensors")
    (directory / "model.safetensors").rename(directory / "model-1.safetensors")
    second = {"lm_head.weight": tensors["lm_head.weight"], "backbone_model.norm.weight": torch.zeros(256)}
    save_file(second, directory / "model-2.safetensors")
    owner = {each: "model-1.safetensors" for each in tensors if each not in ("lm_head.weight", name)}
    owner["lm_head.weight"] = "model-2.safetensors"
    if given_to:
        owner[name] = given_to
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": owner}))
    config = json.loads((untied / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "tie_codebooks_embeddings": True}))
    with pytest.raises(CheckpointError, match=f"\n  left out by the index  {name}: it is in a shard, remove it there"):
        open_checkpoint(directory)


def test_upstream_names_with_a_table_of_its_own(tmp_path: Path) -> None:
    """No public checkpoint has it; a spec may say so."""
    spec = replace(MICRO, tied_audio_embeddings=False)
    inputs = make_inputs(tmp_path, spec)
    assert json.loads(inputs.config.read_text()) == asdict(spec)
    make_bundle(inputs, tmp_path / "out", [F32])
    with open_checkpoint(inputs.checkpoint, inputs.config) as checkpoint:
        findings = verify_bundle(tmp_path / "out", read_manifest(tmp_path / "out"), checkpoint, 2, _quiet)
    assert all(finding.ok for finding in findings)
    assert findings[-1].check == "logits"
    with pytest.raises(CheckpointError, match="1 unknown"):
        open_checkpoint(inputs.checkpoint, _config(tmp_path / "tied.json", MICRO))


def _config(path: Path, spec: object) -> Path:
    path.write_text(json.dumps(asdict(spec)))  # type: ignore[call-overload]
    return path
