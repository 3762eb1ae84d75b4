"""In which of a device's kinds of memory a tensor should lie, and what the device can do with it there.

It asks with trial operations, as llama.cpp does: nothing is loaded for that.
"""

from collections.abc import Callable

from gguf import GGMLQuantizationType

from .device import Device, devices
from .graph import F32, I32, Graph, Tensor
from .libraries import ggml_base, procedure


def plain_buffer_type(device: Device) -> int:
    """Memory that everything can be done with."""
    return int(ggml_base().ggml_backend_dev_buffer_type(device.handle))


def matrix_buffer_type(device: Device, qtype: GGMLQuantizationType, columns: int, rows: int) -> int:
    """The memory in which `device` multiplies fastest with a matrix of this type and shape.

    On the CPU that may be one that interleaves rows for its vector units (ggml's CPU_REPACK). A matrix in it can
    only be multiplied with: not read, not looked up by row.
    """
    for buffer_type in _extra_buffer_types(device):
        if can_multiply(device, buffer_type, qtype, columns, rows):
            return buffer_type
    return plain_buffer_type(device)


def can_multiply(
    device: Device, buffer_type: int, qtype: GGMLQuantizationType, columns: int, rows: int, *, inputs: int = 1
) -> bool:
    """Whether `device` multiplies `inputs` rows at once with such a matrix, in such memory."""
    return _can(
        device,
        buffer_type,
        (qtype, columns, rows),
        lambda graph, matrix: graph.mul_mat(matrix, graph.new(F32, columns, inputs)),
    )


def can_look_up(device: Device, buffer_type: int, qtype: GGMLQuantizationType, columns: int, rows: int) -> bool:
    """Whether `device` takes rows by their index from such a table, in such memory."""
    return _can(
        device, buffer_type, (qtype, columns, rows), lambda graph, table: graph.get_rows(table, graph.new(I32, 1))
    )


def _can(
    device: Device,
    buffer_type: int,
    weights: tuple[GGMLQuantizationType, int, int],
    trial: Callable[[Graph, Tensor], Tensor],
) -> bool:
    """Ask for one operation on `weights`, in a buffer that is empty."""
    library, graph = ggml_base(), Graph(4)
    buffer = library.ggml_backend_buft_alloc_buffer(buffer_type, 0)
    try:
        tensor = graph.new(*weights)
        result = trial(graph, tensor)
        graph.place(tensor, buffer)
        return bool(library.ggml_backend_dev_supports_op(device.handle, result.pointer))
    finally:
        library.ggml_backend_buffer_free(buffer)
        graph.close()


_AMX = b"AMX"


def is_interleaving_safe() -> bool:
    """Whether llama.cpp may choose among all kinds of memory by itself (`LlamaModel`'s `repack`).

    Not on a CPU with AMX: GCC 12's `_tile_loadconfig` tells the compiler of the first 8 of its 64 bytes only, so the
    rest is never written, and ggml's first product of more than one row ends the process (SIGILL). Which compiler built
    ggml cannot be seen. AMX gained 5 to 9 % over CPU_REPACK (one row, Q4_K_M).
    """
    return all(ggml_base().ggml_backend_buft_name(entry) != _AMX for entry in _listed(devices()[-1]))


def _extra_buffer_types(device: Device) -> list[int]:
    if device.kind != "cpu":
        return []
    return [entry for entry in _listed(device) if ggml_base().ggml_backend_buft_name(entry) != _AMX]


def _listed(cpu: Device) -> list[int]:
    extra = procedure(cpu.handle, "ggml_backend_dev_get_extra_bufts")
    listed = extra(cpu.handle)
    found: list[int] = []
    while listed and (entry := listed[len(found)]):
        found.append(entry)
    return found
