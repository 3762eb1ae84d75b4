"""Reading llama.cpp's log: its lines of today, of a GPU, of other years, and what is none of them."""

import logging
import threading
from pathlib import Path

import pytest

from builders import COMMON, MICRO, Built
from miso_gguf.native import messages
from miso_gguf.native.llama import LlamaModel, LlamaOptions
from miso_gguf.native.llama_log import LoggedBuffer, captured_log, logged_buffers

MIB = 1 << 20

TODAY = """\
load_tensors: offloaded 33/33 layers to GPU
load_tensors:   CPU_Mapped model buffer size =     4.51 MiB
load_tensors:        CUDA0 model buffer size =  4001.25 MiB
...
llama_context: n_ctx                 = 2048
llama_context:  CUDA_Host  output buffer size =     0.02 MiB
llama_kv_cache:      CUDA0 KV buffer size =   256.00 MiB
llama_kv_cache: size =  256.00 MiB (  2048 cells,  32 layers,  1/1 seqs), K (f16):  128.00 MiB, V (f16):  128.00 MiB
sched_reserve:      CUDA0 compute buffer size =   118.00 MiB
sched_reserve:  CUDA_Host compute buffer size =    12.01 MiB
print_info: file size   = 3.99 GiB (4.88 BPW)
"""


def test_the_lines_of_a_gpu() -> None:
    assert logged_buffers(TODAY.splitlines()) == [
        LoggedBuffer("model", "CPU_Mapped", round(4.51 * MIB)),
        LoggedBuffer("model", "CUDA0", round(4001.25 * MIB)),
        LoggedBuffer("output", "CUDA_Host", round(0.02 * MIB)),
        LoggedBuffer("kv", "CUDA0", 256 * MIB),
        LoggedBuffer("compute", "CUDA0", 118 * MIB),
        LoggedBuffer("compute", "CUDA_Host", round(12.01 * MIB)),
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("llm_load_tensors: Metal model buffer size = 12.5 GiB", [LoggedBuffer("model", "Metal", 12800 * MIB)]),
        ("x: Vulkan0 kv buffer size=7 KiB", [LoggedBuffer("kv", "Vulkan0", 7 << 10)]),
        ("1.08 I load_tensors:  CPU_REPACK model buffer size = 1.00 MiB", [LoggedBuffer("model", "CPU_REPACK", MIB)]),
        ("llm_load_tensors:      CUDA0 buffer size =  5434.38 MiB", []),
        ("llama_kv_cache: CUDA0 KV buffer size = lots", []),
        ("llama_kv_cache: CUDA0 KV buffer size = 3 cells", []),
        ("llama_kv_cache: CUDA0 RS buffer size = 3.00 MiB", []),
        ("", []),
    ],
)
def test_other_lines(line: str, expected: list[LoggedBuffer]) -> None:
    assert logged_buffers([line]) == expected


@pytest.mark.parametrize(
    ("place", "host"),
    [("CPU", True), ("CPU_Mapped", True), ("CPU_REPACK", True), ("CUDA_Host", True), ("Vulkan_Host", True),
     ("CUDA0", False), ("Metal", False), ("Vulkan1", False), ("ROCm0", False)],
)  # fmt: skip
def test_which_memory_is_the_hosts(place: str, host: bool) -> None:
    assert LoggedBuffer("kv", place, 1).is_on_host is host


@pytest.fixture(scope="module")
def backbone(built: Built) -> Path:
    return built.bundle(COMMON, MICRO) / "Micro-backbone-F16.gguf"


@pytest.mark.parametrize("level", [logging.NOTSET, logging.WARNING, logging.DEBUG])
def test_nobody_else_hears_more_or_less(backbone: Path, caplog: pytest.LogCaptureFixture, level: int) -> None:
    with caplog.at_level(logging.WARNING), caplog.at_level(level, messages.log.name):
        with LlamaModel(backbone, LlamaOptions(threads=1), context=64):
            before = len(caplog.records)
        with captured_log() as lines:
            LlamaModel(backbone, LlamaOptions(threads=1), context=64).close()
            messages.log.warning("something else")
        assert len(caplog.records) == 2 * before + 1
        assert (before > 0) == (level == logging.DEBUG)
        assert messages.log.level == level
    assert {buffer.kind for buffer in logged_buffers(lines)} == {"model", "kv", "compute", "output"}
    assert messages.log.filters == []
    assert lines[-1] == "something else"


def test_other_threads_are_not_listened_to() -> None:
    with captured_log() as lines:
        thread = threading.Thread(target=lambda: messages.log.debug("CUDA0 KV buffer size = 1.00 MiB"))
        thread.start()
        thread.join()
        messages.log.debug("CUDA0 compute buffer size = 1.00 MiB")
    assert lines == ["CUDA0 compute buffer size = 1.00 MiB"]


def test_an_error_leaves_nothing_behind() -> None:
    level = messages.log.level
    with pytest.raises(ZeroDivisionError), captured_log():
        1 / 0  # noqa: B018
    assert (messages.log.level, messages.log.filters) == (level, [])
