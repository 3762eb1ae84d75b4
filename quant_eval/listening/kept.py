"""The sounds that an evaluation has kept, as a file beside its report: what a listening test is made of."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from ...core.files import write_whole
from ..metric import FREE, ONE_STEP
from ..results import Document
from ..run.plan import Plan
from ..run.record import Record

SCHEMA_VERSION = 1
SOUNDS_NAME = "sounds.json"
"""In the directory of every evaluation."""


class KeptSound(Document):
    """One clip of one level.

    Attributes:
        stage: "one-step" or "free".
        level: Of the bundle; "old" or "new" in a comparison.
        prompt: Id in the corpus.
        category: Of the prompt.
        text: What is said.
        seed: Of the noise.
        audio: File name in the folder of the clips.
    """

    stage: str
    level: str
    prompt: str
    category: str
    text: str
    seed: int
    audio: str


class KeptSounds(Document):
    """All of one evaluation.

    Attributes:
        schema_version: `SCHEMA_VERSION`.
        reference: Level that the others are held against.
        levels: The others, in the order of the evaluation.
        sounds: Of all levels, the reference among them.
    """

    schema_version: int = SCHEMA_VERSION
    reference: str
    levels: list[str]
    sounds: list[KeptSound]


def kept_sounds(plan: Plan, records: Sequence[Record]) -> KeptSounds:
    """Those that the records of a plan name; not of damaged levels."""
    prompts = {prompt.id: prompt for prompt in plan.corpus.prompts}
    names = [candidate.name for candidate in plan.candidates]
    return KeptSounds(
        reference=plan.reference.name,
        levels=[name for name in names if name != plan.reference.name],
        sounds=[
            KeptSound(
                stage=record.stage,
                level=record.level,
                prompt=record.prompt,
                category=prompts[record.prompt].category,
                text=prompts[record.prompt].text,
                seed=record.seed,
                audio=record.files["audio"],
            )
            for record in records
            if record.stage in (ONE_STEP, FREE) and record.level in names and "audio" in record.files
        ],
    )


def write_sounds(sounds: KeptSounds, path: Path) -> None:
    """Whole or not at all. Raises `OSError`."""
    write_whole(path, (sounds.model_dump_json(indent=1) + "\n").encode())


def load_sounds(report: Path) -> KeptSounds:
    """Of the evaluation in a folder.

    Raises:
        FileNotFoundError: The folder has none.
        ValueError: The file is damaged, or of another version.
    """
    path = report / SOUNDS_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: run `miso-eval run … --out {report}` first")
    try:
        found = KeptSounds.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path}: is damaged or of another version: run `miso-eval run` again") from error
    if found.schema_version != SCHEMA_VERSION:
        raise ValueError(
            f"{path}: is of version {found.schema_version}, this program reads {SCHEMA_VERSION}: "
            "run `miso-eval run` again"
        )
    return found
