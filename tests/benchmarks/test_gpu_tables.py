"""No figure of one device in another's row, and nothing computed in a measured column."""

from typing import Any

import pytest
from projection import CARDS, PUBLISHED, Card, Constants, fitted, frame_ms, launches_of, overhead_fitted, projection
from tables import NOT_RUN, markdown

PARTS = {"backbone_ms": 2.1, "depth_ms": 9.6, "noise_ms": 0.1, "gap_ms": 0.2}


def speed(device: str, level: str = "q4_k_m") -> dict[str, Any]:
    return {
        "device": device,
        "level": level,
        "codec_threads": 4,
        "cuda_graphs": True,
        "copy_gb_per_s": 4000.0,
        "streamed_bytes": {"backbone": 4_200_000_000, "depth_decoder": 5_700_000_000},
        "parts_ms": {"backbone": 2.0, "depth decoder": 9.5, "codec": 11.0},
        "first_audio_ms": {"no voice": 30.0, "new voice": 61.0, "kept voice": 33.0},
        "stream": {"rtf": 0.16},
        "batches": [
            {"batch": 1, **PARTS, "step_ms": 12.0, "rtf_each": 0.15, "audio_s_per_s": 6.7},
            {"batch": 8, **PARTS, "step_ms": 16.0, "rtf_each": 0.20, "audio_s_per_s": 40.2},
        ],
    }


def memory(measured: int | None, driver: int | None) -> dict[str, Any]:
    level = {
        "level": "q4_k_m",
        "kv_type": "f16",
        "accounted_total_bytes": 4_900_000_000,
        "formula_bytes": 4_910_000_000,
        "measured_peak_bytes": measured,
        "measured_steady_bytes": measured,
        "measured_why_not": "" if measured else "not run: no NVIDIA GPU",
    }
    return {"levels": [level], "driver_bytes": driver, "goals_gb": {"q4_k_m": 5.3}, "seconds": 90.0, "context": 2048}


def record(**sections: Any) -> dict[str, Any]:
    frame = {"title": "T", "note": "N", "machine": {"cpu": "C"}, "versions": {"numpy": "2"}, "commands": ["run it"]}
    return {**frame, **sections}


def rows(text: str, first: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith(f"| {first}")
    ]


def test_without_a_gpu_its_rows_say_so() -> None:
    text = markdown(record(speed=[speed("CPU")], memory=memory(None, None)))
    for row in rows(text, "GPU"):
        assert set(row[1:]) == {NOT_RUN}
    assert len(rows(text, "GPU")) == 3
    (level,) = rows(text.split("## Memory")[1], "q4_k_m")
    assert level == ["q4_k_m", "f16", "4.90 GB", "4.91 GB", *[NOT_RUN] * 4, "5.3 GB"]
    assert "Measured: not run: no NVIDIA GPU." in text


def test_with_one_its_figures() -> None:
    text = markdown(record(speed=[speed("NVIDIA H200")], memory=memory(5_250_000_000, 300_000_000)))
    (frame,) = rows(text.split("## One frame")[1].split("## ")[0], "NVIDIA H200")
    assert frame[:8] == ["NVIDIA H200", "q4_k_m", "2.10", "9.60", "0.10", "0.20", "12.00", "11.00"]
    assert frame[8:] == ["4", "0.160", "30", "61", "33", "4000"]
    assert rows(text, "NVIDIA H200")[-1] == [
        "NVIDIA H200", "q4_k_m", "8", "2.10", "9.60", "16.00", "0.200", "40.2", "6.00x"
    ]  # fmt: skip
    (level,) = rows(text.split("## Memory")[1], "q4_k_m")
    assert level[4:] == ["0.30 GB", "5.25 GB", "5.25 GB", "+1.0%", "5.3 GB"]
    # Of the three sections, only that of the codes was left out.
    assert len(rows(text, "GPU")) == 1


def counted(level: str = "q4_k_m", batch: int = 1) -> dict[str, Any]:
    return {
        "level": level,
        "batch": batch,
        "streamed_bytes": 9_900_000_000,
        "part_bytes": {"backbone": 4_200_000_000, "depth_decoder": 5_700_000_000},
        "backbone": {"kernels": 600, "copies": 14},
        "depth_decoder": {"kernels": 3970, "copies": 96},
    }


def test_a_projection_says_what_it_is() -> None:
    found = projection([counted("q8_0"), counted(batch=8), counted()], [speed("CPU")])
    assert found is not None
    assert (found["launches"], found["source"]) == (4680, PUBLISHED.source)
    assert [card["card"] for card in found["cards"]] == [card.name for card in CARDS]
    assert "**A projection, not a measurement**" in markdown(record(projection=found))
    assert projection([counted(batch=8)], []) is None


def test_the_formula() -> None:
    card = Card("c", 12, 360)
    assert frame_ms(9_900_000_000, 4600, card, Constants(0.8, 1.5, "")) == pytest.approx(34.375 + 6.9)


def test_the_published_figure_is_met() -> None:
    """156.6 tokens a second of a model of 4.36 GB on 936 GB/s."""
    assert 1e3 / frame_ms(4_360_000_000, 614, Card("RTX 3090", 24, 936), PUBLISHED) == pytest.approx(156.6, rel=0.01)


def measured_on(card: Card, truth: Constants) -> dict[str, Any]:
    found = speed(card.device)
    for part, key in (("backbone", "backbone_ms"), ("depth_decoder", "depth_ms")):
        milliseconds = frame_ms(counted()["part_bytes"][part], launches_of(counted(), part), card, truth)
        found["batches"][0] = {**found["batches"][0], key: milliseconds}
    return found


def test_measured_constants_take_the_place_of_published_ones() -> None:
    card = next(card for card in CARDS if card.name == "H200 SXM")
    measured = measured_on(card, Constants(0.7, 2.5, ""))
    found = projection([counted()], [speed("CPU"), {**speed("NVIDIA H200"), "cuda_graphs": False}, measured])
    assert found is not None
    assert found["efficiency"] == pytest.approx(0.7)
    assert found["overhead_us"] == pytest.approx(2.5)
    assert "measured on H200 SXM" in found["source"]


def test_the_overhead_is_fitted_alone_too() -> None:
    """At the published efficiency, which a fast card's short kernels do not reach."""
    card = next(card for card in CARDS if card.name == "H200 SXM")
    found = projection([counted()], [measured_on(card, Constants(PUBLISHED.efficiency, 2.5, ""))])
    assert found is not None
    assert found["overhead_only"]["overhead_us"] == pytest.approx(2.5)
    assert found["overhead_only"]["cards"] == found["cards"]
    slower = projection([counted()], [measured_on(card, Constants(0.4, 2.5, ""))])
    assert slower is not None
    assert slower["overhead_only"]["overhead_us"] > 2.5
    assert slower["overhead_only"]["cards"][0]["frame_ms"] < slower["cards"][0]["frame_ms"]
    assert "frame ms at 85% of the bandwidth" in markdown(record(projection=slower))
    with pytest.raises(ValueError, match="faster than 85%"):
        overhead_fitted([measured_on(card, Constants(2.0, 0.0, ""))], {"q4_k_m": counted()}, card, 0.85)


def test_codec_and_profile() -> None:
    codec = {"device": "NVIDIA H200", "level": "q4_k_m", "codec_threads": 2, "rtf": [0.2366, 0.236]}
    codec |= {"decode_ms": {"1": 16.29, "4": 33.76, "12": 84.23}, "ttfa_ms": [53.6, 47.3]}
    part = {"device": "NVIDIA H200", "level": "q4_k_m", "batch": 1, "part": "depth_decoder", "launches": 4070}
    part |= {"busy_ms": 15.504, "gaps_ms": 0.494, "by_kernel": [{"name": "a", "count": 480, "ms": 4.287}]}
    text = markdown(record(codec=[codec], profile=[part]))
    assert rows(text.split("## The codec's threads")[1], "NVIDIA H200")[0][2:] == [
        "2", "16.3", "33.8", "84.2", "0.237, 0.236", "54, 47"
    ]  # fmt: skip
    assert rows(text.split("## Where it goes")[1], "NVIDIA H200")[0][3:] == [
        "depth decoder", "4070", "15.50", "0.49", "`a` 4.29"
    ]  # fmt: skip


def test_many_at_once_and_steps_with_gaps() -> None:
    seconds = {"chunk": 0.1, "step": 0.5, "frame": 2.0, "codec": 5.0}
    size: dict[str, Any] = {"sequences": 8, "frames_per_s": 77.04, "one_after_another_frames_per_s": 48.94, "gain": 1.582}
    size |= {"last_wall_s": 5.068, "spent_in_calls_s": seconds, "sum_of_calls_s": {**seconds, "codec": 5.76}}
    many = {"level": "q4_k_m", "codec_threads": 1, "pressure": 12.0, "sizes": [size]}
    step = {"device": "NVIDIA H200", "level": "q4_k_m", "sequences": [0, 4], "filled_ms": 6.54, "passes_ms": 9.21}
    text = markdown(record(batch=[many], passes=[step]))
    assert rows(text.split("## Many at once")[1], "q4_k_m")[0][1:] == [
        "8", "1", "12", "77.0", "48.9", "1.58x", "5.07", "2.60", "2.60", "5.00", "5.76"
    ]  # fmt: skip
    assert rows(text.split("## Steps with gaps")[1], "NVIDIA H200")[0][2:] == ["0 4", "6.54", "9.21"]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"backbone_ms": 1.3, "depth_ms": 30.0}, "ms a GB and"),
        ({"backbone_ms": 9.0, "depth_ms": 2.0}, "ms a GB and"),
    ],
)
def test_what_gives_no_constants_leaves_the_published(parts: dict[str, float], message: str) -> None:
    measured = speed("NVIDIA H200")
    measured["batches"][0] = {**measured["batches"][0], **parts}
    found = projection([counted()], [measured])
    assert found is not None
    assert found["efficiency"] == PUBLISHED.efficiency
    assert message in found["source"]
    proportional = {
        **counted(),
        "backbone": {"kernels": 420, "copies": 0},
        "depth_decoder": {"kernels": 570, "copies": 0},
    }
    with pytest.raises(ValueError, match="in proportion"):
        fitted([measured], {"q4_k_m": proportional}, CARDS[-1])
    with pytest.raises(ValueError, match="two measured parts"):
        fitted([], {}, CARDS[-1])


@pytest.mark.parametrize("device", ["NVIDIA GeForce RTX 3090", "NVIDIA H100 PCIe", "NVIDIA GeForce RTX 3060", "CPU"])
def test_a_card_of_unknown_bandwidth_gives_no_constants(device: str) -> None:
    measured = {**measured_on(CARDS[-1], Constants(0.7, 2.5, "")), "device": device}
    found = projection([counted()], [measured])
    assert found is not None
    assert found["source"] == PUBLISHED.source
