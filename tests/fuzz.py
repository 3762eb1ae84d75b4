"""Damaged files by the thousand, through all that a user's commands do with them: `python tests/fuzz.py --help`.

Cases run in processes of their own, many in each, so that a crash, a hang or gigabytes of memory are one case's
finding. A case is its kind, seed and number: the same again makes the same file.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

NAMES = ("safetensors", "gguf", "manifest")
OTHERS = ("pt", "codec", "mimi", "tokenizer", "imatrix")
"""Kinds of files, rows of `fuzz_kinds.KINDS`: what bundles and checkpoints are, and what else a conversion reads."""
_MEMORY_BYTES = 2 << 30
"""Of address space, above what a process has when it starts."""
_LONGEST_CPU_S, _LONGEST_S = 20.0, 300.0
"""Of a case: what it may compute, and how long it may take; the machine may have other things to do."""


@dataclass
class Result:
    """What came of all cases."""

    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in NAMES + OTHERS})
    """By kind of file."""
    findings: list[str] = field(default_factory=list)
    """Folders: the file and what happened."""

    @property
    def cases(self) -> int:
        """How many were run."""
        return sum(sum(counts.values()) for counts in self.outcomes.values())


def fuzz(count: int, seed: int, kinds: Sequence[str], found: Path, workers: int = 2) -> Result:
    """Run `count` cases, taking turns with the kinds; what must not happen is kept in the folder `found`."""
    result, lock, stop = Result(), threading.Lock(), threading.Event()
    cases = ((kinds[number % len(kinds)], number) for number in range(count))
    with tempfile.TemporaryDirectory(prefix="miso-fuzz-") as scratch:
        places = [Path(scratch) / str(index) for index in range(workers)]
        threads = [
            threading.Thread(target=_serve, args=(place, seed, cases, found, result, lock, stop)) for place in places
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:
            stop.set()
            for thread in threads:
                thread.join()
            print("interrupted", file=sys.stderr)
    return result


def _serve(
    place: Path,
    seed: int,
    cases: Iterator[tuple[str, int]],
    found: Path,
    result: Result,
    lock: threading.Lock,
    stop: threading.Event,
) -> None:
    """Give cases to a process, and to another one when it is gone."""
    place.mkdir()
    process, pipe = None, None
    while not stop.is_set():
        with lock:
            case = next(cases, None)
        if case is None:
            break
        if process is None or pipe is None:
            process, pipe = _start(place, seed)
        pipe.send(case)
        outcome = _outcome(process, pipe, place, stop)
        if outcome is None:
            break
        if outcome[0].startswith("finding"):
            with lock:
                result.findings.append(_keep(found, place, seed, case, outcome))
        if not process.is_alive():
            process, pipe = None, None
        with lock:
            result.outcomes[case[0]][outcome[0]] += 1
    if process is not None:
        process.kill()
        process.join()


def _outcome(
    process: multiprocessing.process.BaseProcess, pipe: Connection, place: Path, stop: threading.Event
) -> tuple[str, str] | None:
    """What came of the case that the process has, and the details; None if nobody waits for it any more."""
    start, start_cpu = time.monotonic(), _cpu_seconds(process)
    while not pipe.poll(0.2):
        if stop.is_set():
            return None
        taken, computed = time.monotonic() - start, _cpu_seconds(process) - start_cpu
        if taken > _LONGEST_S or computed > _LONGEST_CPU_S:
            process.kill()
            process.join()
            return "finding: hang", f"{taken:.0f} s, {computed:.0f} s of them computing"
    try:
        outcome: tuple[str, str] = pipe.recv()
        return outcome
    except (EOFError, ConnectionResetError):
        process.join()
        return f"finding: process ended ({process.exitcode})", (place / "log").read_text(errors="replace")[-3000:]


def _cpu_seconds(process: multiprocessing.process.BaseProcess) -> float:
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _start(place: Path, seed: int) -> tuple[multiprocessing.process.BaseProcess, Connection]:
    shutil.rmtree(place)
    place.mkdir()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(place, seed, theirs), daemon=True)
    process.start()
    theirs.close()
    if not ours.poll(300) or ours.recv() != "ready":
        raise RuntimeError("the process does not start")
    return process, ours


def _keep(found: Path, place: Path, seed: int, case: tuple[str, int], outcome: tuple[str, str]) -> str:
    kind, number = case
    folder = found / f"{kind}-{seed}-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in (place / "case").iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    (folder / "what-happened.txt").write_text("\n".join(outcome), errors="replace")
    return str(folder)


def _work(place: Path, seed: int, pipe: Connection) -> None:
    """The process: case after case."""
    os.nice(10)
    os.environ["GGML_NO_BACKTRACE"] = "1"  # it starts a debugger
    log = os.open(place / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from fuzz_kinds import KINDS, Seeds  # noqa: PLC0415  (what it imports may print, and takes a second)

    (place / "here").mkdir()
    os.chdir(place / "here")
    seeds = Seeds.make(place / "seeds")
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + _MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    before = _contents(place)
    pipe.send("ready")
    while True:
        name, number = pipe.recv()
        os.ftruncate(log, 0)
        case = place / "case"
        shutil.rmtree(case, ignore_errors=True)
        case.mkdir()
        random = Random(f"{name} {seed} {number}")
        try:
            path = KINDS[name].case(seeds, case, random)
            outcome = (KINDS[name].use(seeds, case, path, random), "")
        except BaseException as error:
            outcome = (f"finding: {type(error).__name__}", traceback.format_exc())
        if (after := _contents(place)) != before:
            outcome = ("finding: wrote outside", repr(sorted(before.items() ^ after.items())))
            before = after
        pipe.send(outcome)


def _contents(place: Path) -> dict[str, tuple[int, int]]:
    """All files of a process but those of its case."""
    found = {}
    for path in [*place.glob("*"), *place.glob("here/**/*"), *place.glob("seeds/**/*")]:
        if path.name not in ("case", "log"):
            state = path.stat()
            found[str(path)] = (state.st_size, state.st_mtime_ns)
    return found


def _table(result: Result) -> str:
    kinds = [name for name in NAMES + OTHERS if result.outcomes[name]]
    rows = sorted({outcome for name in kinds for outcome in result.outcomes[name]})
    lines = [f"{'outcome':40}" + "".join(f"{name:>14}" for name in kinds)]
    lines += [f"{row:40}" + "".join(f"{result.outcomes[name][row]:14}" for name in kinds) for row in rows]
    return "\n".join(lines)


def main() -> int:
    """The command. Exit code 1 if there was a finding."""
    parser = argparse.ArgumentParser(description="Damage files, and use them as a user's commands would.")
    parser.add_argument("--count", type=int, default=10000, help="cases of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=NAMES + OTHERS, help="several times: several kinds")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--found", type=Path, default=Path("build/fuzz"), help="folder for findings")
    wanted = parser.parse_args()
    start = time.monotonic()
    result = fuzz(wanted.count, wanted.seed, wanted.kind or NAMES, wanted.found, wanted.workers)
    print(_table(result))
    for folder in result.findings:
        print(f"finding: {folder}")
    summary = {
        "cases": result.cases,
        "seed": wanted.seed,
        "seconds": round(time.monotonic() - start),
        "findings": len(result.findings),
        "outcomes": {name: dict(counts) for name, counts in result.outcomes.items() if counts},
    }
    print(json.dumps(summary))
    return 1 if result.findings else 0


if __name__ == "__main__":
    sys.exit(main())
