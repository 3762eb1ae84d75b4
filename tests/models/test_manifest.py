"""Manifests of the future: what this version does not know is passed over, carried along, and never in its way."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miso_gguf.core.errors import BundleError, NewerBundleError
from miso_gguf.models.flavors import TINY
from miso_gguf.models.levels import LEVELS
from miso_gguf.models.manifest import MANIFEST_NAME, Manifest, read_manifest
from miso_gguf.models.memory import level_memory

PARTS = ("backbone", "decoder", "embeddings")


def plain(*levels: str) -> dict[str, Any]:
    """A manifest as JSON."""
    entries = {level: {part: f"{level}-{part}.gguf" for part in PARTS} for level in levels}
    names = ["codec", *(name for entry in entries.values() for name in entry.values())]
    return {
        "schema_version": 1,
        "format_version": 1,
        "converter": "test",
        "llama_cpp": "0",
        "fingerprint": "0" * 64,
        "sources": [{"role": "checkpoint", "name": "a", "sha256": "1" * 64}],
        "spec": TINY.to_dict(),
        "codec": {"decoder": "codec", "encoder": "codec"},
        "levels": entries,
        "files": {name: {"size_bytes": 10, "sha256": "2" * 64} for name in names},
    }


def write(directory: Path, data: Any) -> Path:
    (directory / MANIFEST_NAME).write_text(json.dumps(data), "utf-8")
    return directory


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
UNKNOWN = st.dictionaries(
    st.text().map(lambda key: f"x{key}") | st.sampled_from(["model_spec", "to_json", "newer_levels", "_newer_levels"]),
    VALUES,
    max_size=3,
)


def entries(data: Any) -> Iterator[dict[str, Any]]:
    """Every object in it whose keys are the schema's own: not those of `levels` and `files`, which are names."""
    yield data
    yield from data["sources"]
    yield from (data["spec"], data["spec"]["backbone"], data["spec"]["decoder"], data["spec"]["rope_scaling"])
    yield data["codec"]
    yield from data["levels"].values()
    yield from data["files"].values()


@settings(deadline=None)
@given(data=st.data())
def test_unknown_keys_at_any_depth(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("bundle")
    known = plain("q8_0", "q4_k_m+q8_0")
    without = read_manifest(write(directory, known))
    sprinkled = json.loads(json.dumps(known))
    for entry in list(entries(sprinkled)):
        entry.update({key: value for key, value in data.draw(UNKNOWN).items() if key not in entry})
    found = read_manifest(write(directory, sprinkled))
    assert found.model_spec == without.model_spec
    for level in known["levels"]:
        assert level_memory(found, level) == level_memory(without, level)
        assert found.levels[level].backbone == without.levels[level].backbone
    text = found.to_json()
    assert {**json.loads(text), "levels": _without_none(json.loads(text)["levels"])} == sprinkled
    (directory / MANIFEST_NAME).write_text(text, "utf-8")
    assert read_manifest(directory) == found
    assert read_manifest(directory).to_json() == text


def _without_none(levels: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Imatrices that were not used are written out."""
    optional = ("imatrix_backbone", "imatrix_decoder")
    return {
        key: {k: v for k, v in entry.items() if k not in optional or v is not None} for key, entry in levels.items()
    }


@settings(deadline=None)
@given(newer=st.dictionaries(st.text().filter(lambda key: key.split("+")[0] not in LEVELS), VALUES, max_size=4))
def test_unknown_levels(newer: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("bundle")
    known = plain("q8_0", "fp16")
    found = read_manifest(write(directory, {**known, "levels": {**newer, **known["levels"]}}))
    assert set(found.levels) == {"q8_0", "fp16"}
    assert found.newer_levels == newer
    written = json.loads(found.to_json())["levels"]
    assert {key: written[key] for key in newer} == newer
    (directory / MANIFEST_NAME).write_text(found.to_json(), "utf-8")
    assert read_manifest(directory) == found


@pytest.mark.parametrize("key", ["q8_0+tq1_0", "tq1_0+q8_0", "q8_0+fp16+q8_0", "", "q8_0+"])
def test_a_combination_of_which_a_half_is_unknown_is_unknown(key: str, tmp_path: Path) -> None:
    data = plain("q8_0")
    data["levels"][key] = 7
    found = read_manifest(write(tmp_path, data))
    assert (list(found.levels), found.newer_levels) == (["q8_0"], {key: 7})


def test_numbers_that_no_float_holds_are_read_and_not_kept(tmp_path: Path) -> None:
    assert read_manifest(write(tmp_path, {**plain("q8_0"), "more": {"a": [1e300, 10**40, None]}})).is_kept
    text = json.dumps({**plain("q8_0"), "more": {"a": [1.5]}}).replace("1.5", "1e400")
    (tmp_path / MANIFEST_NAME).write_text(text, "utf-8")
    assert not read_manifest(tmp_path).is_kept


def test_names_of_newer_levels_are_harmless_to_a_terminal(tmp_path: Path) -> None:
    data = plain("q8_0")
    data["levels"] |= {"a\n\x1b[31m": 1, "": 2, "tq1_0": 3}
    found = read_manifest(write(tmp_path, data))
    assert found.newer_names == [r"'a\n\x1b[31m'", "''", "tq1_0"]


def test_sources_of_an_unknown_role(tmp_path: Path) -> None:
    data = plain("q8_0")
    data["sources"].append({"role": "watermark", "name": "w", "sha256": "3" * 64})
    found = read_manifest(write(tmp_path, data))
    assert [source.name for source in found.sources_of("checkpoint")] == ["a"]
    assert json.loads(found.to_json())["sources"] == data["sources"]


def test_an_old_digest_is_read_and_not_kept(tmp_path: Path) -> None:
    found = read_manifest(write(tmp_path, {**plain("q8_0"), "digest": "4" * 64}))
    assert "digest" not in json.loads(found.to_json())
    assert found == read_manifest(write(tmp_path, plain("q8_0")))


def test_what_is_added_keeps_what_was_there() -> None:
    there = Manifest.model_validate({**plain("q8_0"), "levels": {**plain("q8_0")["levels"], "q1": [1]}, "x": {"y": 1}})
    new = Manifest.model_validate({**plain("q8_0", "fp16"), "converter": "later"})
    both = json.loads(there.updated(new).to_json())
    assert both["converter"] == "later"
    assert both["x"] == {"y": 1}
    assert (set(both["levels"]), both["levels"]["q1"]) == ({"q8_0", "fp16", "q1"}, [1])


@pytest.mark.parametrize("key", ["schema_version", "format_version"])
def test_a_higher_version_may_mean_anything(key: str, tmp_path: Path) -> None:
    for data in ({**plain("q8_0"), key: 2}, {key: 2, "levels": 3}):
        with pytest.raises(NewerBundleError) as refused:
            read_manifest(write(tmp_path, data))
        message = str(refused.value)
        assert message.startswith(f"{tmp_path / MANIFEST_NAME}: {key} is 2, known is 1: made by a newer version")
        assert "pip install --upgrade miso-gguf" in message


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("schema_version",), 0, "schema_version is 0, expected 1"),
        (("schema_version",), "1", "schema_version is '1', expected 1"),
        (("schema_version",), True, "schema_version is True, expected 1"),
        (("schema_version",), 1.0, "schema_version is 1.0, expected 1"),
        (("schema_version",), None, "schema_version is None, expected 1"),
        (("converter",), 3, "converter: "),
        (("fingerprint",), "short", "fingerprint: "),
        (("sources",), {}, "sources: "),
        (("sources", 0, "role"), 1, "sources.0.role: "),
        (("spec",), [], "spec: "),
        (("spec", "backbone"), 3, "not a model spec"),
        (("spec", "backbone", "layers"), "4", "must be a positive integer"),
        (("spec", "rope_scaling"), "none", "not a model spec"),
        (("spec", "rope_scaling", "factor"), "8", "not a model spec"),
        (("spec", "norm_eps"), [], "not a model spec"),
        (("spec", "prompt"), 1, "prompt template"),
        (("codec",), "codec", "codec: "),
        (("codec", "decoder"), "../codec", "is not a plain file name"),
        (("levels",), [], "levels: "),
        (("levels", "q8_0"), None, "levels.q8_0: "),
        (("levels", "q8_0", "backbone"), None, "levels.q8_0.backbone: "),
        (("levels", "q8_0", "imatrix_decoder"), "", "levels.q8_0.imatrix_decoder: "),
        (("files",), [], "files: "),
        (("files", "codec"), 3, "files.codec: "),
        (("files", "codec", "size_bytes"), "10", "files.codec.size_bytes: "),
        (("files", "codec", "size_bytes"), 10.0, "files.codec.size_bytes: "),
        (("files", "codec", "size_bytes"), True, "files.codec.size_bytes: "),
        (("files", "a\nb"), {"size_bytes": 1, "sha256": "0" * 64}, "is not a plain file name"),
    ],
)
def test_known_keys_must_be_what_they_are(where: tuple[Any, ...], value: Any, message: str, tmp_path: Path) -> None:
    data = plain("q8_0")
    entry: Any = data
    for key in where[:-1]:
        entry = entry[key]
    entry[where[-1]] = value
    with pytest.raises(BundleError) as refused:
        read_manifest(write(tmp_path, data))
    assert message in str(refused.value)
    assert str(refused.value).startswith(f"{tmp_path / MANIFEST_NAME}: not a valid manifest: ")
    assert "\n" not in str(refused.value)
    assert not isinstance(refused.value, NewerBundleError)


@settings(deadline=None)
@given(cut=st.integers(0, len(json.dumps(plain("q8_0"))) - 1))
def test_a_torn_manifest_is_said_in_one_line(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("bundle")
    (directory / MANIFEST_NAME).write_text(json.dumps(plain("q8_0"))[:cut], "utf-8")
    with pytest.raises(BundleError, match=r"miso\.json: not a valid manifest: JSON cut off or damaged") as refused:
        read_manifest(directory)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\0" * 100, b"[" * 1000, b'{"a": NaN}', b'{"a": "\\ud800"}'])
def test_what_is_no_json(content: bytes, tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(BundleError, match="not a valid manifest: JSON cut off or damaged"):
        read_manifest(tmp_path)
