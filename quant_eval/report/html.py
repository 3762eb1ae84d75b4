"""The report as one HTML file that opens offline: plots, sound, style and script are inside.

The page forbids itself the network, and any script but its own: text from outside could not run even if it got in.
"""

import base64
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import soundfile

from ..results import Clip, Results
from . import figures, figures_ladder
from .headline import alerts, headline
from .outline import basis, sections, title
from .plots import Plot, library
from .sections.clips import clip_values, worst_of_each
from .words import MARK_WORDS, SIGNS, label_of

BUDGET_BYTES = 12_000_000
"""Of 16-bit WAV in one page. Above it MP3, with which a page of 40 long clips is still a few megabytes."""


@dataclass(frozen=True)
class Sounds:
    """Data URIs by file name; names that could not be read are missing. `is_lossy` if they had to be MP3."""

    uris: dict[str, str]
    is_lossy: bool


@dataclass(frozen=True)
class ClipView:
    """One clip as the page shows it; a sound is None if it could not be read."""

    clip: Clip
    level: str
    values: list[tuple[str, str]]
    reference_sound: str | None
    sound: str | None
    plot: Plot


def page(results: Results, audio_dir: Path) -> str:
    """The whole page. The same results and sounds give the same bytes.

    Args:
        results: To be shown.
        audio_dir: Where the clips' audio is; a file that is missing there is said to be.

    Raises:
        MisoError: The extra `eval` is not installed.
    """
    script = template("report.js")
    names = [name for clip in results.clips for name in (clip.reference_audio, clip.audio)]
    sounds = embedded(names, audio_dir)
    text: str = page_template("report.html.j2", template).render(
        title=title(results),
        headline=headline(results),
        basis=basis(results),
        verdict=results.verdict,
        alerts=alerts(results),
        notes=results.notes,
        reference=label_of(results.reference),
        sections=sections(results),
        plots=_plots(results),
        clips=list(_clip_views(results, sounds)),
        is_lossy=sounds.is_lossy,
        signs=SIGNS,
        mark_words=MARK_WORDS,
        style=template("report.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        # Inside a script element only "<" could end it; JSON may write it as an escape anywhere.
        data=results.model_dump_json().replace("<", "\\u003c"),
    )
    return text


def page_template(name: str, load: Callable[[str], str]) -> Any:
    """A Jinja template that escapes what is put in; `load` gives the text of a file of its folder.

    Raises `MisoError` if the extra `eval` is not installed.
    """
    jinja2 = library("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(load),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def template(name: str) -> str:
    """The text of a file of the templates."""
    return (resources.files(__package__) / "templates" / name).read_text("utf-8")


def _plots(results: Results) -> dict[str, list[Plot]]:
    """By the key of the section that shows them."""
    names = dict.fromkeys(entry.name for entry in results.distributions)
    found: dict[str, list[Plot | None]] = {
        "costs": [figures.memory(results)],
        "codebooks": [figures.heat_map(results)],
        "attribution": [figures.attribution(results)],
        "f0": [
            figures.contours(clip, f"f0-{i}", _place(results, clip)) for i, clip in enumerate(worst_of_each(results))
        ],
        "distributions": [figures.distribution(results, name, index) for index, name in enumerate(names)],
        "noise": [figures.forest(results)],
        "pareto": [figures.pareto(results)],
        "ladder": [*figures_ladder.ladder(results)],
    }
    return {key: [plot for plot in plots if plot is not None] for key, plots in found.items()}


def _clip_views(results: Results, sounds: Sounds) -> Iterator[ClipView]:
    for index, clip in enumerate(results.clips):
        yield ClipView(
            clip,
            label_of(clip.level),
            clip_values(clip),
            sounds.uris.get(clip.reference_audio),
            sounds.uris.get(clip.audio),
            figures.contours(clip, f"clip-{index}", _place(results, clip)),
        )


def _place(results: Results, clip: Clip) -> int:
    """The level's place among the results, by which it gets its colour."""
    return next((index for index, level in enumerate(results.levels) if level.level == clip.level), 1)


def embedded(names: list[str], folder: Path) -> Sounds:
    """The files called `names` in `folder`. One that is not there, or is no audio, is left out.

    Names come from a document: those that lead out of the folder are left out as well.
    """
    paths = {name: folder / name for name in dict.fromkeys(names) if _is_inside(name)}
    wavs = {name: wav for name, path in paths.items() if (wav := _encoded(path, "WAV")) is not None}
    if sum(map(len, wavs.values())) <= BUDGET_BYTES:
        return Sounds({name: _data_uri("audio/wav", wav) for name, wav in wavs.items()}, is_lossy=False)
    mp3s = {name: mp3 for name in wavs if (mp3 := _encoded(paths[name], "MP3")) is not None}
    return Sounds({name: _data_uri("audio/mpeg", mp3) for name, mp3 in mp3s.items()}, is_lossy=True)


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\\" not in name and ":" not in name


def _encoded(path: Path, kind: str) -> bytes | None:
    try:
        samples, rate_hz = soundfile.read(str(path), dtype="float32", always_2d=True)
        if not len(samples):
            return None
        with TemporaryDirectory() as folder:
            # By name, so that no Python runs inside libsndfile: Ctrl-C there would become a short write.
            written = Path(folder) / "sound"
            soundfile.write(str(written), samples, rate_hz, format=kind, subtype="PCM_16" if kind == "WAV" else None)
            return written.read_bytes()
    except (OSError, ValueError, soundfile.LibsndfileError):
        return None


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
