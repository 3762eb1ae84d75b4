"""What is made of a profiler's events; and what a process holds that only opens the GPU."""

import io
import json
import sys

import pytest
from measure import kernels, memory
from measure.kernels import kernel_name, summary

from miso_gguf.core.errors import MisoError
from miso_gguf.native.buffer import noted_allocations
from miso_gguf.native.device import devices


@pytest.mark.parametrize(
    ("demangled", "name"),
    [
        (
            "void mul_mat_vec_q<(ggml_type)12, 1, true, true, false>(void const*, int const*, uint3)",
            "mul_mat_vec_q<Q4_K, 1, true, true, false>",
        ),
        ("quantize_q8_1(float const*, void*, long)", "quantize_q8_1"),
        (
            "void k_get_rows<32, 1, &_INTERNAL_ab018536_10_getrows_cu_f63e7a93::dequantize_q8_0, float>(void const*)",
            "k_get_rows<32, 1, dequantize_q8_0, float>",
        ),
        ("void cub::detail::radix_sort::Sort<cub::Policy<int>, 1>(int)", "Sort<cub::Policy<int>, 1>"),
        ("Memcpy HtoD (Pageable -> Device)", "Memcpy HtoD"),
        (f"void f<{'x' * 100}>(int)", "f<" + "x" * 78),
    ],
)
def test_names(demangled: str, name: str) -> None:
    assert kernel_name(demangled) == name


def test_one_call_of_two() -> None:
    # Microseconds: two kernels with 5 between them, then 400 until the next call.
    events = [("b(int)", 25, 30), ("a(int)", 0, 20), ("a(int)", 455, 20), ("b(int)", 470, 30)]
    found = summary([(name, 1000 * start, 1000 * length) for name, start, length in events], 2, 1e-3)
    assert found == {
        "wall_ms": 0.5,
        "launches": 2,
        "busy_ms": 0.05,
        "gaps_ms": pytest.approx((5 + 100) / 2 / 1e3, abs=1e-3),
        "by_kernel": [{"name": "b", "count": 1, "ms": 0.03}, {"name": "a", "count": 1, "ms": 0.02}],
    }


def test_without_torch_or_cuda_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch  # noqa: PLC0415

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MisoError, match="profile needs a GPU that torch can use"):
        kernels._profiler()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MisoError, match="profile needs the package torch"):
        kernels._profiler()


def test_the_drivers_own_memory_is_read_while_a_buffer_is_held(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """CUDA makes no context before: a process that only opens the backend was seen to take 3 MB."""
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with noted_allocations() as held:
        memory.hold_a_buffer(devices()[-1], seconds=0)
    assert [each.size_bytes > 0 for each in held] == [True]
    assert [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()] == ["loaded", "spoken"]
