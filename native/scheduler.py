"""ggml's scheduler: one graph, run again and again on the devices that it may use."""

import ctypes

from ..core.closing import CLOSED
from ..core.errors import MisoError
from .buffer import Allocation, note
from .device import Backends
from .graph import Graph
from .libraries import ggml_base
from .products import ProductWatch


class Scheduler:
    """Runs one graph again and again; what the best device lacks is computed on the CPU.

    `close` frees its memory, and the graph with the tensors. After it, and after that of the graph or the backends,
    everything raises `MisoError`.
    """

    def __init__(self, backends: Backends, graph: Graph, watch: ProductWatch | None = None) -> None:
        """Allocate all that `graph` needs; `watch` sees its products. Raises `MemoryError` if a device is full."""
        backends.check()
        library, count = ggml_base(), len(backends.handles)
        self._graph = graph
        self._backends = backends
        self._watch = watch
        handles = (ctypes.c_void_p * count)(*backends.handles)
        # It wants room for nodes and leaves; a node of ours has at most two leaves of its own.
        self._open: int | None = library.ggml_backend_sched_new(handles, None, count, 3 * graph.nodes + 64, False, True)
        if not library.ggml_backend_sched_alloc_graph(self._handle, graph.graph):
            self.close()
            names = " and ".join(device.name for device in backends.devices)
            raise MemoryError(f"{names} cannot hold a graph: free some memory, or speak fewer utterances at a time")
        if watch is not None:
            library.ggml_backend_sched_set_eval_callback(self._handle, watch.callback, None)
        for place, size_bytes in self.buffer_bytes.items():
            note(Allocation("compute", place, size_bytes))

    @property
    def _handle(self) -> int:
        self._backends.check()
        if not self._open:
            raise MisoError(CLOSED)
        return self._open

    @property
    def splits(self) -> int:
        """Pieces that the graph was cut into: 1 if a single device computes all of it."""
        return int(ggml_base().ggml_backend_sched_get_n_splits(self._handle))

    @property
    def buffer_bytes(self) -> dict[str, int]:
        """Device name -> bytes of compute buffer."""
        sizes = [int(ggml_base().ggml_backend_sched_get_buffer_size(self._handle, h)) for h in self._backends.handles]
        return {device.name: size for device, size in zip(self._backends.devices, sizes, strict=True)}

    def compute(self) -> None:
        """Run the graph to its end. Raises also what a listener of the watch has raised."""
        status = ggml_base().ggml_backend_sched_graph_compute(self._handle, self._graph.graph)
        if self._watch is not None:
            self._watch.check()
        if status != 0:
            raise MisoError(f"ggml could not compute a graph (status {status})")

    def close(self) -> None:
        """Free it. Idempotent."""
        handle, self._open = self._open, None
        if handle:
            ggml_base().ggml_backend_sched_free(handle)
            self._graph.close()
