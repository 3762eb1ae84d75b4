"""Damaged files, a few of them here and ten thousand in the slow tier. What was found once has a test of its own:
`runtime/test_part_check.py`, `models/test_models_as_data.py`, `models/test_manifest.py`."""

from pathlib import Path
from random import Random

import pytest
from fuzz import NAMES, fuzz
from gguf_mutations import Gguf, damage_gguf
from mutations import damage_json, damage_safetensors, flip_bytes, json_text, parse_json

from builders import MICRO, Built
from miso_gguf.models.levels import Q4_K_M


def test_damaged_files_are_refused_or_work(tmp_path: Path) -> None:
    result = fuzz(60, 14, NAMES, tmp_path, workers=1)
    assert not result.findings
    assert result.cases == 60
    assert all(result.outcomes[name]["refused"] for name in NAMES)


@pytest.mark.slow
def test_ten_thousand_damaged_files(tmp_path: Path) -> None:
    result = fuzz(10_000, 14, NAMES, tmp_path)
    assert not result.findings
    assert result.cases == 10_000
    worked = {"safetensors": "converted", "gguf": "spoke", "manifest": "spoke"}
    assert {name: set(result.outcomes[name]) for name in NAMES} == {n: {"refused", worked[n]} for n in NAMES}


def test_a_finding_is_kept_with_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends, as after an abort in ggml: its case is named, and the others go on."""
    (tmp_path / "fuzz_kinds.py").write_text(
        "import os\n"
        "from pathlib import Path\n"
        "class Seeds:\n"
        "    make = staticmethod(lambda directory: None)\n"
        "class Kind:\n"
        "    def case(self, seeds, directory, random):\n"
        "        (directory / 'file').write_text('damaged')\n"
        "        return directory / 'file'\n"
        "    def use(self, seeds, directory, path, random):\n"
        "        number = random.randrange(4)\n"
        "        if number == 0:\n"
        "            print('the reason', flush=True)\n"
        "            os.abort()\n"
        "        if number == 1:\n"
        "            raise KeyError('name')\n"
        "        if number == 2:\n"
        "            (directory.parent / 'outside').write_text('x')\n"
        "        return 'refused'\n"
        "KINDS = {'gguf': Kind()}\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    result = fuzz(12, 1, ["gguf"], tmp_path / "found", workers=1)
    names = {"finding: process ended (-6)", "finding: KeyError", "finding: wrote outside", "refused"}
    assert set(result.outcomes["gguf"]) == names
    assert result.cases == 12
    assert len(result.findings) == 12 - result.outcomes["gguf"]["refused"]
    texts = [(Path(folder) / "what-happened.txt").read_text() for folder in result.findings]
    assert all((Path(folder) / "file").read_text() == "damaged" for folder in result.findings)
    assert {text.splitlines()[0] for text in texts} == names - {"refused"}
    assert any("the reason" in text for text in texts)


def test_damage_is_drawn_from_its_seed_and_nothing_is_lost_on_the_way(built: Built) -> None:
    inputs, bundle = built.inputs(MICRO), built.bundle([Q4_K_M], MICRO)
    checkpoint, manifest = inputs.checkpoint.read_bytes(), (bundle / "miso.json").read_bytes()
    header = checkpoint[8 : 8 + int.from_bytes(checkpoint[:8], "little")]
    assert parse_json(json_text(parse_json(header))) == parse_json(header)
    for path in bundle.glob("*.gguf"):
        content = path.read_bytes()
        assert Gguf.parse(content).dump() == content
        for seed in range(5):
            assert damage_gguf(content, Random(seed)) == damage_gguf(content, Random(seed))
    for seed in range(5):
        assert damage_safetensors(checkpoint, Random(seed)) == damage_safetensors(checkpoint, Random(seed))
        assert flip_bytes(manifest, Random(seed), 100) == flip_bytes(manifest, Random(seed), 100)
        damaged = (damage_json(parse_json(manifest), Random(seed)) for _ in range(2))
        assert next(damaged) == next(damaged)
