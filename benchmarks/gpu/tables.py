"""The results as Markdown. What was not run says so: no figure of one device stands in another's row."""

from collections.abc import Sequence
from typing import Any

NOT_RUN = "not run"
_KERNELS, _NAME = 4, 54
TARGET_RTF, TARGET_TTFA_MS, TARGET_BATCH8 = 0.30, 110.0, 4.0
"""For an H200-class card at Q4_K_M: one utterance, a kept voice, and eight together over one."""


def markdown(record: dict[str, Any]) -> str:
    """The whole document of a record."""
    machine = "\n".join(f"- {name}: {value}" for name, value in {**record["machine"], **record["versions"]}.items())
    commands = "\n".join(f"    {command}" for command in record["commands"])
    sections = [
        f"# {record['title']}\n\n{record['note']}\n\n{machine}\n\nCommands:\n\n{commands}",
        _codes(record.get("codes", [])),
        _frames(record.get("speed", [])),
        _batches(record.get("speed", [])),
        _many(record.get("batch", [])),
        _passes(record.get("passes", [])),
        _codec(record.get("codec", [])),
        _profile(record.get("profile", [])),
        _memory(record.get("memory")),
        _dry(record.get("dry_run", [])),
        _projection(record.get("projection")),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _has_gpu(entries: Sequence[dict[str, Any]]) -> bool:
    return any(entry["device"] != "CPU" for entry in entries)


def _missing(columns: int) -> list[list[str]]:
    return [["GPU", *[NOT_RUN] * (columns - 1)]]


def _codes(entries: Sequence[dict[str, Any]]) -> str:
    columns = ["device", "level", "sentences equal", "frames before a difference", "largest logit error", "relative"]
    columns += ["top-1 equal", "pieces of the depth graph", "captured as a CUDA graph"]
    rows = [
        [
            entry["device"],
            entry["level"],
            f"{entry['sentences_equal']} of {entry['sentences']}",
            f"{entry['frames_equal_before']} of {entry['frames']}",
            f"{entry['logits']['max_abs_error']:.2g}",
            f"{entry['logits']['relative_error']:.2g}",
            f"{entry['logits']['top1_agreement']:.2%}",
            str(entry["depth_graph_splits"]),
            "-" if entry["device"] == "CPU" else "yes" if entry["depth_graph_captured"] else "no",
        ]
        for entry in entries
    ]
    rows += [] if _has_gpu(entries) else _missing(len(columns))
    return f"## The tiny model's greedy codes against the CPU's\n\n{_table(columns, rows)}"


def _frames(entries: Sequence[dict[str, Any]]) -> str:
    columns = ["device", "level", "backbone", "depth decoder", "noise", "gaps", "step", "codec (beside)", "its threads"]
    columns += ["RTF of a stream", "TTFA, no voice", "new 10 s voice", "kept voice", "copy GB/s"]
    rows = []
    for entry in entries:
        alone, first = entry["batches"][0], entry["first_audio_ms"]
        times = [alone[key] for key in ("backbone_ms", "depth_ms", "noise_ms", "gap_ms", "step_ms")]
        times.append(entry["parts_ms"]["codec"])
        rows.append(
            [
                entry["device"],
                _level(entry),
                *(f"{value:.2f}" for value in times),
                str(entry["codec_threads"]),
                f"{entry['stream']['rtf']:.3f}",
                *(f"{first[name]:.0f}" for name in ("no voice", "new voice", "kept voice")),
                f"{entry['copy_gb_per_s']:.0f}",
            ]
        )
    rows += [] if _has_gpu(entries) else _missing(len(columns))
    goal = f"Targets on an H200-class card, Q4_K_M: RTF at most {TARGET_RTF}, first audio in a kept voice after at "
    goal += f"most {TARGET_TTFA_MS:.0f} ms. Medians of one run, but for the codec, timed alone; the RTF is of a stream "
    goal += "as a user hears it, its prefill included."
    return f"## One frame, in milliseconds\n\n{_table(columns, rows)}\n\n{goal}"


def _level(entry: dict[str, Any]) -> str:
    return str(entry["level"]) + ("" if entry["cuda_graphs"] else ", no CUDA graphs")


def _batches(entries: Sequence[dict[str, Any]]) -> str:
    columns = ["device", "level", "utterances", "backbone ms", "depth decoder ms", "step ms", "RTF of each"]
    columns += ["seconds of speech a second", "over one"]
    rows = [
        [
            entry["device"],
            _level(entry),
            str(each["batch"]),
            *(f"{each[key]:.2f}" for key in ("backbone_ms", "depth_ms", "step_ms")),
            f"{each['rtf_each']:.3f}",
            f"{each['audio_s_per_s']:.1f}",
            f"{each['audio_s_per_s'] / entry['batches'][0]['audio_s_per_s']:.2f}x",
        ]
        for entry in entries
        for each in entry["batches"]
    ]
    rows += [] if _has_gpu(entries) else _missing(len(columns))
    return f"## Several utterances in step\n\n{_table(columns, rows)}\n\nTarget: 8 at least {TARGET_BATCH8:.0f}x one."


def _many(entries: Sequence[dict[str, Any]]) -> str:
    """What `benchmarks/batch.py` printed last."""
    if not entries:
        return ""
    columns = ["level", "sequences", "codec's threads", "come while one is spoken", "frames a second"]
    columns += ["one after another", "gain", "wall s", "models s", "their calls alone", "codec s", "its calls alone"]
    rows = [
        [
            entry["level"],
            str(size["sequences"]),
            str(entry["codec_threads"]),
            f"{entry['pressure']:.0f}",
            *(f"{size[key]:.1f}" for key in ("frames_per_s", "one_after_another_frames_per_s")),
            f"{size['gain']:.2f}x",
            f"{size['last_wall_s']:.2f}",
            *(
                f"{sum(size[key][kind] for kind in kinds):.2f}"
                for kinds in (("chunk", "step", "frame"), ("codec",))
                for key in ("spent_in_calls_s", "sum_of_calls_s")
            ),
        ]
        for entry in entries
        for size in entry["sizes"]
    ]
    words = "Utterances that come at random and join a running batch, the codec beside the models. Medians of the "
    words += "rounds up to the gain; seconds are the last round's."
    return f"## Many at once\n\n{_table(columns, rows)}\n\n{words}"


def _passes(entries: Sequence[dict[str, Any]]) -> str:
    if not entries:
        return ""
    columns = ["device", "level", "sequences of a step", "gaps filled, ms", "in passes, ms"]
    rows = [
        [
            entry["device"],
            entry["level"],
            " ".join(map(str, entry["sequences"])),
            *(f"{entry[key]:.2f}" for key in ("filled_ms", "passes_ms")),
        ]
        for entry in entries
    ]
    words = "One step of the backbone; gaps of up to seven sequences were filled with rows that nobody asked for."
    return f"## Steps with gaps\n\n{_table(columns, rows)}\n\n{words}"


def _codec(entries: Sequence[dict[str, Any]]) -> str:
    if not entries:
        return ""
    columns = [
        "device",
        "level",
        "codec's threads",
        "1 frame a call, ms",
        "4 frames",
        "12 frames",
        "RTF of two streams",
    ]
    columns += ["their TTFA, ms"]
    rows = [
        [
            entry["device"],
            entry["level"],
            str(entry["codec_threads"]),
            *(f"{milliseconds:.1f}" for milliseconds in entry["decode_ms"].values()),
            ", ".join(f"{rtf:.3f}" for rtf in entry["rtf"]),
            ", ".join(f"{milliseconds:.0f}" for milliseconds in entry["ttfa_ms"]),
        ]
        for entry in entries
    ]
    return f"## The codec's threads\n\n{_table(columns, rows)}"


def _profile(entries: Sequence[dict[str, Any]]) -> str:
    if not entries:
        return ""
    columns = ["device", "level", "utterances", "part", "kernels and copies", "busy ms", "gaps ms", "most of it"]
    rows = [
        [
            entry["device"],
            entry["level"],
            str(entry["batch"]),
            entry["part"].replace("_", " "),
            str(entry["launches"]),
            f"{entry['busy_ms']:.2f}",
            f"{entry['gaps_ms']:.2f}",
            "; ".join(f"`{kernel['name'][:_NAME]}` {kernel['ms']:.2f}" for kernel in entry["by_kernel"][:_KERNELS]),
        ]
        for entry in entries
    ]
    words = "Under the profiler, which makes kernels longer: how the time is divided, not how long a frame takes. The "
    words += "last column is milliseconds of a frame."
    return f"## Where it goes\n\n{_table(columns, rows)}\n\n{words}"


def _memory(record: dict[str, Any] | None) -> str:
    if record is None:
        return ""
    columns = ["level", "KV cache", "accounted", "formula", "driver", "measured peak", "steady", "difference", "goal"]
    rows = []
    for entry in record["levels"]:
        measured, driver = entry["measured_steady_bytes"], record["driver_bytes"]
        known = measured is not None and driver is not None
        excess = measured - driver - entry["accounted_total_bytes"] if known else 0
        rows.append(
            [
                entry["level"],
                entry["kv_type"],
                _gb(entry["accounted_total_bytes"]),
                _gb(entry["formula_bytes"]) if entry["formula_bytes"] else "",
                _gb(driver),
                _gb(entry["measured_peak_bytes"]),
                _gb(measured),
                f"{excess / measured:+.1%}" if known else NOT_RUN,
                f"{goal} GB" if (goal := record["goals_gb"].get(entry["level"])) else "",
            ]
        )
    why = next((entry["measured_why_not"] for entry in record["levels"] if entry["measured_why_not"]), "")
    words = f"{record['seconds']:.0f} s of speech, {record['context']} positions. The difference is what was measured, "
    words += "less the driver's own and what is accounted, over what was measured: cuBLAS, and the code of kernels."
    return f"## Memory\n\n{_table(columns, rows)}\n\n{words}" + (f" Measured: {why}." if why else "")


def _gb(size_bytes: int | None) -> str:
    return NOT_RUN if size_bytes is None else f"{size_bytes / 1e9:.2f} GB"


def _dry(entries: Sequence[dict[str, Any]]) -> str:
    if not entries:
        return ""
    columns = ["level", "utterances", "kernels: backbone", "depth decoder", "copies: backbone", "depth decoder"]
    columns += ["depth decoder in one CUDA graph", "pieces", "copies to and from the host", "waits", "on the device"]
    rows = []
    for entry in entries:
        depth = entry["depth_decoder"]
        rows.append(
            [
                entry["level"],
                str(entry["batch"]),
                str(entry["backbone"]["kernels"]),
                str(depth["kernels"]),
                str(entry["backbone"]["copies"]),
                str(depth["copies"]),
                "yes" if depth["in_one_graph"] else "no",
                str(entry["depth_graph_splits"]),
                f"{depth['host_copies']:.0f}",
                f"{depth['waits']:.0f}",
                _gb(entry["device_bytes"]),
            ]
        )
    words = "Counted, not timed: ggml's CUDA backend over a CUDA runtime that computes nothing."
    return f"## What a frame asks of CUDA\n\n{_table(columns, rows)}\n\n{words}"


def _projection(record: dict[str, Any] | None) -> str:
    if record is None:
        return ""
    columns, floor = ["card", "frame ms", "RTF"], record.get("overhead_only")
    rows = [[row["card"], f"{row['frame_ms']:.1f}", f"{row['rtf']:.2f}"] for row in record["cards"]]
    words = f"**A projection, not a measurement**, of {record['level']}: {record['streamed_bytes'] / 1e9:.2f} GB over "
    words += (
        f"{record['efficiency']:.0%} of the data sheet's bandwidth, and {record['launches']} kernels and copies of "
    )
    words += f"{record['overhead_us']:.1f} us. Constants: {record['source']}."
    if floor:
        columns += [f"frame ms at {floor['efficiency']:.0%} of the bandwidth", "RTF"]
        for row, other in zip(rows, floor["cards"], strict=True):
            row += [f"{other['frame_ms']:.1f}", f"{other['rtf']:.2f}"]
        words += f" The last columns: {floor['overhead_us']:.1f} us, {floor['source']}."
    return f"## Other cards\n\n{words}\n\n{_table(columns, rows)}"
