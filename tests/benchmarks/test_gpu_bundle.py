"""The bundle that is made in a minute is, but for the values, the bundle of a conversion."""

from pathlib import Path

import bundle as bundle_module
import pytest
from bundle import RepeatedStore, write_repeated_bundle
from gguf import GGMLQuantizationType, GGUFReader

from builders import make_bundle, make_inputs
from miso_gguf import MisoTTS, SpeechOptions
from miso_gguf.core.arrays import F32Array, U8Array
from miso_gguf.models.flavors import TINY
from miso_gguf.models.levels import Q4_K_M, Q8_0
from miso_gguf.models.manifest import read_manifest
from miso_gguf.native.ggml import quantize


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("repeated") / "bundle"
    write_repeated_bundle(out, "tiny", [Q4_K_M, Q8_0])
    return out


def layout(path: Path) -> list[tuple[str, str, list[int], int]]:
    tensors = GGUFReader(path).tensors
    return [(t.name, t.tensor_type.name, [int(n) for n in t.shape], int(t.n_bytes)) for t in tensors]


def test_the_files_are_those_of_a_conversion(repeated: Path, tmp_path: Path) -> None:
    """A conversion may order the tensors otherwise: as they lie in its checkpoint."""
    converted = tmp_path / "converted"
    make_bundle(make_inputs(tmp_path / "inputs", TINY), converted, [Q4_K_M, Q8_0])
    expected, found = read_manifest(converted), read_manifest(repeated)
    assert set(found.files) == set(expected.files)
    for name, record in expected.files.items():
        assert found.files[name].size_bytes == record.size_bytes == (repeated / name).stat().st_size
        if name.endswith(".gguf"):
            assert sorted(layout(repeated / name)) == sorted(layout(converted / name))


def test_it_runs(repeated: Path) -> None:
    with MisoTTS.load(repeated, "q4_k_m", threads=1, gpu_layers=0) as tts:
        codes = tts.generate_codes("One two three.", options=SpeechOptions(max_seconds=0.4))
    assert codes.shape == (5, TINY.codebooks)
    assert len({tuple(frame) for frame in codes.tolist()}) > 1


def test_each_kind_of_chunk_is_quantised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[object, ...]] = []

    def counting(qtype: GGMLQuantizationType, rows: F32Array, imatrix: F32Array | None = None) -> U8Array:
        shapes.append((qtype, rows.shape, rows[0, :4].tobytes()))
        return quantize(qtype, rows, imatrix)

    monkeypatch.setattr(bundle_module, "quantize", counting)
    write_repeated_bundle(tmp_path / "bundle", "tiny", [Q4_K_M])
    # Workers that want the same chunk at the same time may both make it.
    assert len(set(shapes)) < 30
    assert len(shapes) < 2 * len(set(shapes))


def test_reading_is_what_a_checkpoint_gives(tmp_path: Path) -> None:
    store = RepeatedStore(TINY, tmp_path / "label")
    for name, shape in store.shapes.items():
        rows = store.read(name, 0, min(3, shape[0]))
        assert rows.shape == (min(3, shape[0]), *shape[1:])
        assert rows.std() > 0
    assert abs(store.read("backbone.norm.scale", 0, 256).mean() - 1) < 0.1
