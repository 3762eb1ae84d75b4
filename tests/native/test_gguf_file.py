"""Reading GGUF through ggml's parser: against gguf-py's writer, and against files that are damaged on purpose."""

import logging
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from examples import examples
from gguf import GGMLQuantizationType as Qtype
from gguf import GGUFWriter
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from miso_gguf.core.errors import BundleError
from miso_gguf.native.gguf_file import GgufFile

ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)
KEYS = {
    "miso.part": "backbone",
    "miso.number": 7,
    "miso.float": 0.5,
    "miso.flag": True,
    "general.architecture": "llama",
}
DATA_BYTES = 64 + 96 + 64 + 32
"""Each tensor is padded to 32."""


def write(path: Path) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_string("miso.part", "backbone")
    writer.add_uint32("miso.number", 7)
    writer.add_float32("miso.float", 0.5)
    writer.add_bool("miso.flag", True)
    writer.add_array("miso.list", ["a", "bc"])
    writer.add_array("miso.numbers", [1, 2, 3])
    writer.add_tensor("rows", ROWS)
    writer.add_tensor("blocks", np.arange(68, dtype=np.uint8).reshape(2, 34), raw_dtype=Qtype.Q8_0)
    writer.add_tensor("deep", np.arange(24, dtype=np.float16).reshape(2, 3, 4))
    writer.add_tensor("flat", np.arange(5, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "whole.gguf")


@pytest.fixture(scope="module")
def content(path: Path) -> bytes:
    return path.read_bytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf") / "damaged.gguf"


def test_keys(path: Path) -> None:
    with GgufFile(path) as file:
        assert {key: file.value(key) for key in KEYS} == KEYS
        assert file.value("miso.list") is None
        assert file.value("miso.part ") is None


def test_tensors_outlive_the_file(path: Path) -> None:
    with GgufFile(path) as file:
        tensors = file.tensors
    file.close()
    assert {name: (t.qtype.name, t.shape) for name, t in tensors.items()} == {
        "rows": ("F32", (3, 4)),
        "blocks": ("Q8_0", (2, 32)),
        "deep": ("F16", (2, 3, 4)),
        "flat": ("F32", (5,)),
    }
    np.testing.assert_array_equal(tensors["rows"].data.view(np.float32), ROWS)
    np.testing.assert_array_equal(tensors["blocks"].data.ravel(), np.arange(68))
    assert tensors["deep"].data.shape == (6, 8)
    np.testing.assert_array_equal(tensors["deep"].data.view(np.float16).ravel(), np.arange(24))
    with pytest.raises(ValueError, match="read-only"):
        tensors["rows"].data[0, 0] = 1


def test_a_tensor_of_another_shape_is_named(path: Path) -> None:
    with GgufFile(path) as file:
        assert file.tensor("deep", 2, 3, 4).shape == (2, 3, 4)
        with pytest.raises(BundleError, match=r"rows is \[3, 4\], expected \[4, 3\]. This file is of another model"):
            file.tensor("rows", 4, 3)
        with pytest.raises(BundleError, match=r"whole\.gguf: columns is missing, expected \[2\]"):
            file.tensor("columns", 2)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"nothing\.gguf: cannot be read .*No such file"):
        GgufFile(tmp_path / "nothing.gguf")
    with pytest.raises(BundleError, match="cannot be read"):
        GgufFile(tmp_path)
    empty = tmp_path / "empty.gguf"
    empty.touch()
    with pytest.raises(BundleError, match=r"empty\.gguf: cannot be read"):
        GgufFile(empty)
    empty.write_bytes(b"RIFF" + bytes(1000))
    with pytest.raises(BundleError, match=r"not a whole GGUF file\. Fetch or convert the bundle again"):
        GgufFile(empty)


def test_a_truncated_tensor_is_named(scratch: Path, content: bytes) -> None:
    scratch.write_bytes(content[:-40])
    message = rf"damaged\.gguf: truncated: flat ends at byte {len(content) - 12}, the file at {len(content) - 40}\."
    with pytest.raises(BundleError, match=message):
        GgufFile(scratch)


def read(path: Path, content: bytes) -> dict[str, bytes] | None:
    """All that a file gives; None if it is refused."""
    path.write_bytes(content)
    try:
        with GgufFile(path) as file:
            for key in [*KEYS, "miso.list", "miso.numbers"]:
                file.value(key)
            return {name: tensor.data.tobytes() for name, tensor in file.tensors.items()}
    except BundleError:
        return None


def test_no_truncated_file_passes_for_a_whole_one(scratch: Path, content: bytes) -> None:
    whole = read(scratch, content)
    assert whole is not None
    end = len(content) - 12  # of "flat": 20 bytes, padded to 32
    assert content[end - 4 : end] == np.float32(4).tobytes()
    header = len(content) - DATA_BYTES
    lengths = [*range(header), *range(header, end, 7), end - 1]
    refused = [read(scratch, content[:length]) is None for length in lengths]
    assert all(refused)
    assert read(scratch, content[:end]) == whole


@pytest.mark.parametrize(
    ("width", "values"),
    [(4, (0, 0x7FFFFFFF, 0xFFFFFFFF)), (8, (1 << 40, (1 << 62) + 1, (1 << 64) - 32))],
    ids=["four bytes", "eight bytes"],
)
def test_hostile_numbers(scratch: Path, content: bytes, width: int, values: tuple[int, ...]) -> None:
    """In every place of the header in turn: counts, lengths, dimensions, types and offsets.

    No crash, no endless loop, no gigabytes: only a file that is read, or a `BundleError`.
    """
    refused = 0
    for start in range(len(content) - DATA_BYTES):
        for value in values:
            damaged = content[:start] + value.to_bytes(width, "little") + content[start + width :]
            refused += read(scratch, damaged) is None
    assert refused > 600


@settings(max_examples=examples(300), suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), min_size=1, max_size=6))
@example([(8, 0)])
def test_any_flipped_bytes(scratch: Path, content: bytes, changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(content)
    for position, value in changes:
        damaged[position % len(damaged)] = value
    read(scratch, bytes(damaged))


def _text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _header(tensors: int, keys: int, body: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + body


def _array(kind: int, count: int) -> bytes:
    return _header(0, 1, _text(b"a") + struct.pack("<IIQ", 9, kind, count))


HOSTILE = {
    "keys": _header(0, 1 << 60),
    "keys, fewer": _header(0, 1 << 31),
    "tensors": _header(1 << 60, 0),
    "tensors, fewer": _header(1 << 31, 0),
    "everything": _header((1 << 64) - 1, (1 << 64) - 1),
    "name": _header(0, 1, struct.pack("<Q", 1 << 62)),
    "name of a gigabyte": _header(0, 1, struct.pack("<Q", 1 << 30) + b"abc"),
    "value": _header(0, 1, _text(b"a") + struct.pack("<IQ", 8, 1 << 33)),
    "numbers": _array(0, 1 << 60),
    "numbers, fewer": _array(10, 1 << 30),
    "texts": _array(8, 1 << 60),
    "texts, fewer": _array(8, 1 << 28),
    "arrays of arrays": _header(0, 1, _text(b"a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1 << 10) * 4),
    "an array of itself": _array(9, 1 << 60),
    "dimensions": _header(1, 0, _text(b"a") + struct.pack("<I", 1 << 31)),
    "a dimension": _header(1, 0, _text(b"a") + struct.pack("<IQQIQ", 2, 1 << 40, 1 << 40, 0, 0)),
    "alignment": _header(0, 1, _text(b"general.alignment") + struct.pack("<II", 4, 0)),
    "truncated": _header(1, 1)[:12],
}
"""Files of less than 100 bytes that claim more than they hold."""


def test_hostile_files_cost_no_time_and_no_memory(tmp_path: Path) -> None:
    """In a process of its own, with a second each and half a gigabyte above what it starts with."""
    paths = []
    for name, content in HOSTILE.items():
        assert len(content) < 100, name
        paths.append(tmp_path / f"{name}.gguf")
        paths[-1].write_bytes(content)
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from miso_gguf.core.errors import BundleError\n"
        "from miso_gguf.native.gguf_file import GgufFile, ggml_base\n"
        "ggml_base()\n"
        "taken = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (taken + (1 << 29),) * 2)\n"
        "for path in sys.argv[1:]:\n"
        "    signal.setitimer(signal.ITIMER_REAL, 1)\n"
        "    try:\n"
        "        GgufFile(Path(path))\n"
        "    except BundleError as error:\n"
        "        print(error)\n"
    )
    command = [sys.executable, "-c", script, *map(str, paths)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    message = "not a whole GGUF file. Fetch or convert the bundle again."
    assert done.stdout.splitlines() == [f"{path}: {message}" for path in paths]


def test_the_first_of_several_texts(path: Path) -> None:
    with GgufFile(path) as file:
        assert file.first_text("miso.list") == "a"
        assert [file.first_text(key) for key in ("miso.numbers", "miso.part", "miso.nothing")] == [None] * 3


def test_what_is_written_into_a_writable_file_lands_in_it(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(path.read_bytes())
    with GgufFile(copy, writable=True) as file:
        file.tensors["rows"].data.view(np.float32)[1, 2] = 77
    with GgufFile(copy) as file:
        assert file.tensors["rows"].data.view(np.float32)[1].tolist() == [4, 5, 77, 7]


def test_what_ggml_says_of_a_damaged_file_goes_to_logging(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A command that a test ran before may have left its own handler, which prints.
    monkeypatch.setattr(logging.getLogger(), "handlers", [caplog.handler])
    path = tmp_path / "damaged.gguf"
    path.write_bytes(b"GGUF")
    with caplog.at_level(logging.DEBUG, "miso_gguf"), pytest.raises(BundleError, match="not a whole GGUF file"):
        GgufFile(path)
    assert "failed to read header" in caplog.text
    assert capfd.readouterr() == ("", "")
