"""What is made of the counts of the CUDA runtime that computes nothing."""

from typing import Any

import pytest
from dry_run.count import per_frame

GEMV = "_ZN12_GLOBAL__N_113mul_mat_vec_qILi8EEEvPKf"


def counts(**changes: Any) -> dict[str, Any]:
    plain = {
        "graph_launches": 0,
        "captures": 0,
        "copies": 12,
        "captured_copies": 5,
        "host_copies": 24,
        "synchronisations": 6,
    }
    return {**plain, "kernels": [[GEMV, 60, 7], ["cublas", 6, 0]], **changes}


def test_launched_one_by_one() -> None:
    found = per_frame(counts(), 6)
    assert (found["kernels"], found["copies"], found["in_one_graph"]) == (11, 2, False)
    assert (found["host_copies"], found["waits"]) == (4, 1)
    assert found["by_kernel"] == {"mul_mat_vec_q": 10, "cublas": 1}


def test_launched_as_a_graph() -> None:
    found = per_frame(counts(graph_launches=6, copies=0, kernels=[[GEMV, 0, 7]]), 6)
    assert (found["kernels"], found["copies"], found["in_one_graph"]) == (7, 5, True)
    beside = per_frame(counts(graph_launches=6, kernels=[[GEMV, 6, 7]]), 6)
    assert (beside["kernels"], beside["copies"], beside["in_one_graph"]) == (8, 7, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"graph_launches": 4}, "launched 4 graphs, 0 of them new"),
        ({"graph_launches": 6, "captures": 1}, "launched 6 graphs, 1 of them new"),
        ({"kernels": [[GEMV, 61, 0]]}, "61 times"),
    ],
)
def test_frames_that_differ_have_no_figure(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        per_frame(counts(**changes), 6)
