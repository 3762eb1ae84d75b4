"""What is damaged, how, and what a user's commands then do with it: a row for each kind of file.

Whatever is wrong with a file must end in one line, as a `MisoError` or a `ValueError`. All else that is raised is a
finding; so is what is raised as one of these and no one line.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
import torch
from gguf_mutations import damage_gguf
from mutations import damage_json, damage_safetensors, flip_bytes, parse_json
from safetensors.torch import load_file

from builders import MICRO, Inputs, make_bundle, make_inputs, write_imatrix
from miso_gguf.convert import cli
from miso_gguf.core.errors import MisoError
from miso_gguf.models.levels import Q4_K_M
from miso_gguf.models.manifest import MANIFEST_NAME
from miso_gguf.models.tensors import gguf_tensors
from miso_gguf.native.gguf_file import GgufFile
from miso_gguf.runtime.options import SpeechOptions
from miso_gguf.runtime.tts import MisoTTS

_LEVEL = Q4_K_M


class Finding(Exception):
    """What must not happen to a damaged file."""


@dataclass(frozen=True)
class Seeds:
    """Whole files to be damaged, and what else a conversion needs. They stay as they are."""

    inputs: Inputs
    bundle: Path
    imatrix: Path
    pickles: list[Path]
    """The checkpoint as torch saves it: as a zip file, and as before torch 1.6."""

    @classmethod
    def make(cls, directory: Path) -> "Seeds":
        """A checkpoint of a very small model, and its bundle."""
        inputs, bundle = make_inputs(directory / "inputs", MICRO), directory / "bundle"
        make_bundle(inputs, bundle, [_LEVEL], threads=1)
        columns = {tensor.name: tensor.shape[-1] for tensor in gguf_tensors(MICRO) if tensor.part == "backbone"}
        imatrix = directory / "imatrix.gguf"
        write_imatrix(
            imatrix,
            {name: np.arange(count, dtype=np.float32) for name, count in columns.items()},
            dict.fromkeys(columns, 5.0),
        )
        pickles, state = [directory / "ckpt.pt", directory / "old.pt"], load_file(inputs.checkpoint)
        for path in pickles:
            torch.save({"model": state, "epoch": 1}, path, _use_new_zipfile_serialization=path.name == "ckpt.pt")
        return cls(inputs, bundle, imatrix, pickles)


@dataclass(frozen=True)
class Kind:
    """A kind of file."""

    files: Callable[[Seeds], list[Path]]
    damage: Callable[[bytes, Random], bytes]
    """What knows the format; bytes are flipped for every kind."""
    head: int
    """Bytes where damage does most: the header."""
    use: Callable[[Seeds, Path, Path, Random], str]
    """Use a damaged file, the third argument, within the folder that is the second; say what came of it."""

    def case(self, seeds: Seeds, directory: Path, random: Random) -> Path:
        """A damaged file in `directory`."""
        source = random.choice(self.files(seeds))
        content = source.read_bytes()
        known = random.random() < 0.65
        damaged = self.damage(content, random) if known else flip_bytes(content, random, self.head)
        path = directory / source.name
        path.write_bytes(damaged)
        return path


@contextmanager
def _refusal(refused: list[str]) -> Iterator[None]:
    """Take note of an error as it should be."""
    try:
        yield
    except (MisoError, ValueError) as error:
        text = str(error)
        # One line, or the list of all that differs.
        if isinstance(error, UnicodeError) or not text.strip() or not text.replace("\n  ", "").isprintable():
            raise Finding(f"no message for people: {type(error).__name__}: {text!r}") from error
        refused.append(text)


def _run(command: object, *arguments: object) -> int:
    return int(command.main(args=[*map(str, arguments)], standalone_mode=False))  # type: ignore[attr-defined]


def _convert(inputs: Inputs, checkpoint: Path, out: Path, *options: object) -> None:
    sources = ("--mimi", inputs.mimi, "--tokenizer", inputs.tokenizer, "--config", inputs.config)
    _run(cli.convert, checkpoint, "--quant", _LEVEL.key, "--threads", 1, *sources, *options, "--out", out)


def _damage_json(content: bytes, random: Random) -> bytes:
    return damage_json(parse_json(content), random)


def _use_checkpoint(seeds: Seeds, directory: Path, path: Path, _random: Random) -> str:
    refused: list[str] = []
    with _refusal(refused):
        _convert(seeds.inputs, path, directory / "out")
    return "refused" if refused else "converted"


def _use_input(field: str) -> Callable[[Seeds, Path, Path, Random], str]:
    """Of a conversion, in the place of another one."""

    def use(seeds: Seeds, directory: Path, path: Path, _random: Random) -> str:
        refused: list[str] = []
        with _refusal(refused):
            _convert(replace(seeds.inputs, **{field: path}), seeds.inputs.checkpoint, directory / "out")
        return "refused" if refused else "converted"

    return use


def _use_imatrix(seeds: Seeds, directory: Path, path: Path, _random: Random) -> str:
    refused: list[str] = []
    with _refusal(refused):
        _convert(seeds.inputs, seeds.inputs.checkpoint, directory / "out", "--imatrix-backbone", path)
    return "refused" if refused else "converted"


def _copied(seeds: Seeds, directory: Path) -> Path:
    """The bundle, its files linked."""
    copy = directory / "bundle"
    shutil.copytree(seeds.bundle, copy, copy_function=os.link)
    return copy


def _use_part(seeds: Seeds, directory: Path, path: Path, random: Random) -> str:
    """In a bundle whose manifest says that the file is as it should be: damage may come before a hash."""
    bundle, content = _copied(seeds, directory), path.read_bytes()
    (bundle / path.name).unlink()
    os.link(path, bundle / path.name)
    manifest = json.loads((bundle / MANIFEST_NAME).read_text())
    manifest["files"][path.name].update(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    (bundle / MANIFEST_NAME).unlink()
    (bundle / MANIFEST_NAME).write_text(json.dumps(manifest))
    refused: list[str] = []
    with _refusal([]), GgufFile(path) as file:
        sum(int(tensor.data[-1:].sum()) for tensor in file.tensors.values())
    with _refusal([]):
        _run(cli.verify, bundle, "--threads", 1)
    with _refusal(refused):
        _speak(bundle, random)
    return "refused" if refused else "spoke"


def _speak(bundle: Path, random: Random) -> None:
    options = SpeechOptions(temperature=random.choice((0.0, 0.9)), max_seconds=0.3, retry=False)
    with MisoTTS.load(bundle, _LEVEL.key, threads=1, gpu_layers=0) as tts:
        speech = tts.generate("Hi there.", options=options)
        if speech.samples.size:
            tts.codec.encode(speech.samples)


def _use_manifest(seeds: Seeds, directory: Path, path: Path, random: Random) -> str:
    bundle = _copied(seeds, directory)
    (bundle / MANIFEST_NAME).unlink()
    shutil.copy(path, bundle / MANIFEST_NAME)
    refused: list[str] = []
    with _refusal([]):
        _run(cli.inspect, bundle)
    with _refusal([]):
        _run(cli.inspect, bundle, "--json")
    with _refusal([]):
        _run(cli.verify, bundle, "--threads", 1)
    with _refusal(refused):
        _speak(bundle, random)
    with _refusal([]):
        _convert(seeds.inputs, seeds.inputs.checkpoint, bundle)
    return "refused" if refused else "spoke"


KINDS = {
    "safetensors": Kind(lambda seeds: [seeds.inputs.checkpoint], damage_safetensors, 4000, _use_checkpoint),
    "gguf": Kind(lambda seeds: sorted(seeds.bundle.glob("*.gguf")), damage_gguf, 6000, _use_part),
    "manifest": Kind(
        lambda seeds: [seeds.bundle / MANIFEST_NAME],
        _damage_json,
        1 << 20,
        _use_manifest,
    ),
    "pt": Kind(
        lambda seeds: seeds.pickles, lambda content, random: flip_bytes(content, random, 6000), 6000, _use_checkpoint
    ),
    "codec": Kind(
        lambda seeds: sorted(seeds.bundle.glob("*.onnx")),
        lambda content, random: flip_bytes(content, random, 1 << 20),
        20000,
        _use_part,
    ),
    "mimi": Kind(lambda seeds: [seeds.inputs.mimi], damage_safetensors, 4000, _use_input("mimi")),
    "tokenizer": Kind(lambda seeds: [seeds.inputs.tokenizer], _damage_json, 1 << 20, _use_input("tokenizer")),
    "imatrix": Kind(lambda seeds: [seeds.imatrix], damage_gguf, 2000, _use_imatrix),
}
