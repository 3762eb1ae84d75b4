"""The GPU measurements, in steps that can each be a command of less than ten minutes.

\b
With network, once:     python benchmarks/gpu pack build/gpu
On the GPU's machine:   python benchmarks/gpu build build/gpu    then the other steps, tables last
Without a GPU:          python benchmarks/gpu rehearse build/rehearsal

docs/gpu.md has every command in order.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[2]
SITE, WHEELS, SOURCE, RESULTS, BUNDLE, TINY = "site", "wheels", "source", "results", "bundle", "tiny"
PROFILE = "profile"
LEVELS = ("q4_k_m", "q4_0", "q8_0")
_LIMIT_BYTES = 60_000_000
_PART_BYTES = 15 << 20
_PRODUCTS = "products.tar.xz"

_DIRECTORY = click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
_LEVELS = click.option(
    "--quant", "levels", multiple=True, default=LEVELS, show_default=True, help="Level; several times."
)
_GPU_LAYERS = click.option("--gpu-layers", default=-1, show_default=True, help="0 rehearses on the CPU.")


def _as_the_runtime(context: click.Context, _option: click.Parameter, threads: int | None) -> int:
    """Threads: what was asked for, or what the runtime would take. It is found where the other steps find it."""
    if threads is not None:
        return threads
    _use(context.params["directory"] / SITE)
    from miso_gguf.native.threads import default_threads  # noqa: PLC0415

    return default_threads()


_THREADS = click.option("--threads", type=int, callback=_as_the_runtime, help="[default: as the runtime]")


@click.group(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Every step keeps its products in DIRECTORY."""


@main.command()
@_DIRECTORY
@click.option("--python", "python_version", default="3.12", show_default=True, help="Of the machine with the GPU.")
@click.option("--present", default="", help="Distributions that it has, separated by commas: they do not travel.")
def pack(directory: Path, python_version: str, present: str) -> None:
    """With network: fetch what the GPU's machine lacks. Everything under 60 MB."""
    from kit.source import pruned_source  # noqa: PLC0415
    from kit.wheels import download, needed  # noqa: PLC0415

    for name in (SOURCE, WHEELS):
        shutil.rmtree(directory / name, ignore_errors=True)
    size = pruned_source(directory / SOURCE)
    download(needed("miso-gguf", (), present.split(","), python_version), directory / WHEELS, python_version)
    size += sum(wheel.stat().st_size for wheel in (directory / WHEELS).iterdir())
    click.echo(f"{directory}: {size / 1e6:.1f} MB")
    if size > _LIMIT_BYTES:
        raise click.ClickException(f"more than {_LIMIT_BYTES / 1e6:.0f} MB: name with --present what is there already")


@main.command()
@_DIRECTORY
@click.option("--backend", type=click.Choice(["cpu", "cuda", "vulkan"]), default="cuda", show_default=True)
@click.option("--architecture", default="native", show_default=True, help="90 for H100 and H200, without a GPU to ask.")
@click.option("--save", type=click.Path(path_type=Path), help="Also pack the products here, in parts of 15 MiB.")
def build(directory: Path, backend: Any, architecture: str, save: Path | None) -> None:
    """Without network: build and install llama-cpp-python, and this package. Goes on where it was interrupted."""
    from kit.build import build_wheel  # noqa: PLC0415
    from kit.wheels import install  # noqa: PLC0415

    begin = time.perf_counter()
    site = directory / SITE
    install(directory / WHEELS, site)
    _use(site)
    out = directory / "built"
    wheel = build_wheel(directory / SOURCE, out, backend=backend, build=directory / "cmake", architecture=architecture)
    _install(wheel, site)
    click.echo(f"built for {backend} in {time.perf_counter() - begin:.0f} s: {wheel.stat().st_size / 1e6:.1f} MB")
    if save is not None:
        _save(out, save)


def _save(out: Path, save: Path) -> None:
    save.mkdir(parents=True, exist_ok=True)
    for earlier in save.glob(f"{_PRODUCTS}*"):
        earlier.unlink()
    archive = save / _PRODUCTS
    subprocess.run(["tar", "cJf", str(archive), "-C", str(out), "."], check=True)
    subprocess.run(["split", "-d", f"--bytes={_PART_BYTES}", str(archive), f"{archive}."], check=True)
    archive.unlink()


@main.command()
@_DIRECTORY
@click.argument("parts", type=click.Path(exists=True, path_type=Path))
def restore(directory: Path, parts: Path) -> None:
    """Install what `build --save` packed on an earlier machine, instead of building."""
    from kit.wheels import install  # noqa: PLC0415

    install(directory / WHEELS, directory / SITE)
    out = directory / "built"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    found = sorted(parts.glob(f"{_PRODUCTS}.*"))
    if not found:
        raise click.ClickException(f"{parts}: no {_PRODUCTS}.00 and so on: not what build --save wrote")
    pieces = b"".join(part.read_bytes() for part in found)
    subprocess.run(["tar", "xJf", "-", "-C", str(out)], input=pieces, check=True)
    _install(next(out.glob("*.whl")), directory / SITE)


def _install(llama_cpp: Path, site: Path) -> None:
    """The wheel, and this package, into `site`."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(site)]
    subprocess.run([*pip, "--no-index", str(llama_cpp)], check=True)
    subprocess.run([*pip, "--no-index", "--no-build-isolation", str(ROOT)], check=True, env=_environment(site))


@main.command()
@_DIRECTORY
@_LEVELS
@click.option("--flavor", type=click.Choice(["miso-8b", "csm-1b", "tiny"]), default="miso-8b", show_default=True)
def bundle(directory: Path, levels: Sequence[str], flavor: str) -> None:
    """Make a bundle of random weights in full size, and one of the tiny model."""
    _use(directory / SITE)
    from bundle import write_repeated_bundle, write_tiny_bundle  # noqa: PLC0415

    from miso_gguf.models.levels import parse_level  # noqa: PLC0415

    begin = time.perf_counter()
    chosen = [parse_level(level) for level in levels]
    write_tiny_bundle(directory / TINY, chosen)
    write_repeated_bundle(directory / BUNDLE, flavor, chosen)
    click.echo(f"{directory / BUNDLE}: {', '.join(levels)} in {time.perf_counter() - begin:.0f} s")


@main.command()
@_DIRECTORY
@_LEVELS
@_GPU_LAYERS
@_THREADS
def codes(directory: Path, levels: Sequence[str], gpu_layers: int, threads: int) -> None:
    """Compare the GPU's codes and logits with the CPU's, and see where the depth graph runs."""
    _use(directory / SITE)
    from measure.codes import level_codes  # noqa: PLC0415

    _keep(
        directory,
        "codes",
        [level_codes(directory / TINY, level, gpu_layers=gpu_layers, threads=threads) for level in levels],
    )


@main.command()
@_DIRECTORY
@_LEVELS
@_GPU_LAYERS
@_THREADS
@click.option("--frames", default=100, show_default=True, help="Of a stream, and of each batch.")
@click.option("--rounds", default=20, show_default=True)
@click.option("--batch", "batches", multiple=True, type=int, default=(1, 2, 4, 8), show_default=True)
def speed(
    directory: Path,
    levels: Sequence[str],
    gpu_layers: int,
    threads: int,
    frames: int,
    rounds: int,
    batches: Sequence[int],
) -> None:
    """Time frames, first audio and batches. GGML_CUDA_DISABLE_GRAPHS=1 shows what CUDA graphs bring."""
    _use(directory / SITE)
    from measure.speed import Effort, level_speed  # noqa: PLC0415

    effort = Effort(frames=frames, rounds=rounds, batches=batches)
    results = []
    for level in levels:
        results.append(level_speed(directory / BUNDLE, level, gpu_layers=gpu_layers, threads=threads, effort=effort))
        click.echo(json.dumps(results[-1]))
    graphs = "" if "GGML_CUDA_DISABLE_GRAPHS" not in os.environ else "-without-graphs"
    _keep(directory, f"speed{graphs}", results)


@main.command()
@_DIRECTORY
@_LEVELS
@click.option("--kv-type", "kv_types", multiple=True, default=("f16", "q8_0"), show_default=True)
@click.option("--seconds", default=90.0, show_default=True, help="Of speech while memory is watched.")
def memory(directory: Path, levels: Sequence[str], kv_types: Any, seconds: float) -> None:
    """Account and measure the memory of every level."""
    _use(directory / SITE)
    from measure.memory import levels_memory  # noqa: PLC0415

    _keep(directory, "memory", levels_memory(directory / BUNDLE, levels, kv_types, seconds))


@main.command()
@_DIRECTORY
@_LEVELS
@_GPU_LAYERS
@_THREADS
@click.option("--frames", default=60, show_default=True, help="Of each stream.")
@click.option("--codec-threads", "counts", multiple=True, type=int, default=(1, 2, 3, 4, 8), show_default=True)
def codec(
    directory: Path, levels: Sequence[str], gpu_layers: int, threads: int, frames: int, counts: Sequence[int]
) -> None:
    """Time the codec, and streams that wait for it, by its threads."""
    _use(directory / SITE)
    from measure.codec import codec_threads  # noqa: PLC0415

    where = {"gpu_layers": gpu_layers, "threads": threads}
    found = [codec_threads(directory / BUNDLE, level, counts=counts, frames=frames, **where) for level in levels]
    _keep(directory, "codec", [entry for entries in found for entry in entries])


@main.command()
@_DIRECTORY
@_LEVELS
@_THREADS
@click.option("--batch", "batches", multiple=True, type=int, default=(1, 8), show_default=True)
def profile(directory: Path, levels: Sequence[str], threads: int, batches: Sequence[int]) -> None:
    """Which kernels a frame's time goes to; needs torch with CUDA."""
    _use(directory / SITE)
    from measure.kernels import level_profile  # noqa: PLC0415

    found = [level_profile(directory / BUNDLE, level, threads=threads, batches=batches) for level in levels]
    _keep(directory, PROFILE, [entry for entries in found for entry in entries])


@main.command()
@_DIRECTORY
@click.pass_context
def rehearse(context: click.Context, directory: Path) -> None:
    """All measurements on the CPU, the tiny model in the place of the large one: does everything run?

    In DIRECTORY/rehearsal, so that nothing of it is taken for a measurement.
    """
    _use(directory / SITE)
    directory = directory / "rehearsal"
    shutil.rmtree(directory, ignore_errors=True)
    where = {"gpu_layers": 0, "threads": 1}
    context.invoke(bundle, directory=directory, levels=LEVELS, flavor="tiny")
    context.invoke(codes, directory=directory, levels=LEVELS, **where)
    context.invoke(speed, directory=directory, levels=LEVELS[:1], frames=8, rounds=4, batches=(1, 2), **where)
    context.invoke(codec, directory=directory, levels=LEVELS[:1], frames=8, counts=(1, 2), **where)
    context.invoke(memory, directory=directory, levels=LEVELS, kv_types=("f16", "q8_0"), seconds=1.0)
    note = "A rehearsal on a CPU with the tiny model: that the measurements run, not what a GPU would give."
    context.invoke(tables, directory=directory, title="Rehearsal", note=note, out=directory / "gpu.json")


@main.command("dry-run")
@_DIRECTORY
@_LEVELS
@click.option("--batch", "batches", multiple=True, type=int, default=(1, 8), show_default=True)
@click.option(
    "--backbone-layers", type=click.IntRange(1), help="Make a bundle with so few for each level, and delete it again."
)
def dry(directory: Path, levels: Sequence[str], batches: Sequence[int], backbone_layers: int | None) -> None:
    """Without a GPU, with a CUDA build: count kernels, captures and bytes. `--quant all` is every level but f32."""
    _use(directory / SITE)
    from bundle import write_repeated_bundle  # noqa: PLC0415
    from dry_run.count import dry_run  # noqa: PLC0415

    from miso_gguf.models.levels import F32, parse_level  # noqa: PLC0415
    from miso_gguf.models.levels import LEVELS as KNOWN  # noqa: PLC0415

    results = []
    for level in [key for key in KNOWN if key != F32.key] if "all" in levels else levels:
        with tempfile.TemporaryDirectory(dir=directory) as temporary:
            where = directory / BUNDLE
            if backbone_layers is not None:
                where = Path(temporary, BUNDLE)
                write_repeated_bundle(where, "miso-8b", [parse_level(level)], backbone_layers=backbone_layers)
            results += [dry_run(where, level, batch=batch) for batch in batches]
        for counted in results[-len(batches) :]:
            kernels = f"{counted['backbone']['kernels']} + {counted['depth_decoder']['kernels']}"
            click.echo(f"{level} x{counted['batch']}: {kernels}, {counted['depth_graph_splits']} pieces")
        _keep(directory, "dry_run", results)


@main.command()
@_DIRECTORY
@click.option("--title", default="On the GPU", show_default=True)
@click.option("--note", default="", help="What a reader must know of this run.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="FILE.json; the table goes beside it.")
def tables(directory: Path, title: str, note: str, out: Path) -> None:
    """Put all results together: one JSON file and one Markdown file."""
    _use(directory / SITE)
    from projection import projection  # noqa: PLC0415
    from tables import markdown  # noqa: PLC0415

    from miso_gguf.quant_eval.machine import machine, versions  # noqa: PLC0415

    record: dict[str, Any] = {
        "title": title,
        "note": note,
        "machine": machine(),
        "versions": versions(),
        "commands": [],
    }
    for path in sorted((directory / RESULTS).glob("*.json")):
        kept = json.loads(path.read_text())
        record["commands"].append(kept["command"])
        if path.stem == PROFILE:
            # Long, and for programs: it gets a file of its own, and the table what is in it.
            profiled = out.with_name(f"{out.stem}-{PROFILE}.json")
            profiled.parent.mkdir(parents=True, exist_ok=True)
            profiled.write_text(json.dumps(kept, indent=1) + "\n")
        key = path.stem.removesuffix("-without-graphs")
        record[key] = record.get(key, []) + kept["results"] if key == "speed" else kept["results"]
    record["projection"] = projection(record.get("dry_run", []), record.get("speed", []))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text(markdown(record))
    record.pop(PROFILE, None)
    out.write_text(json.dumps(record, indent=1) + "\n")
    click.echo(out.with_suffix(".md").read_text())


def _keep(directory: Path, name: str, results: Any) -> None:
    path = directory / RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    graphs = "GGML_CUDA_DISABLE_GRAPHS=1 " if "GGML_CUDA_DISABLE_GRAPHS" in os.environ else ""
    command = f"{graphs}python benchmarks/gpu {' '.join(sys.argv[1:])}"
    path.write_text(json.dumps({"command": command, "results": results}, indent=1) + "\n")
    click.echo(f"{path}")


def _use(site: Path) -> None:
    """Import from `site` first, if there is one, in children too."""
    if site.is_dir():
        sys.path.insert(0, str(site.resolve()))
        os.environ["PYTHONPATH"] = _environment(site)["PYTHONPATH"]


def _environment(site: Path) -> dict[str, str]:
    earlier = [path for path in [os.environ.get("PYTHONPATH")] if path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(site.resolve()), *earlier])}


def _run() -> int:
    """Exit code 0, or 2 after one line that says what could not be done."""
    try:
        main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
    except click.Abort:
        click.echo("interrupted", err=True)
    except Exception as error:
        if "DEBUG" in os.environ:
            raise
        click.echo(f"error: {str(error) or type(error).__name__} (DEBUG=1 shows where)", err=True)
    else:
        return 0
    return 2


if __name__ == "__main__":
    sys.exit(_run())
