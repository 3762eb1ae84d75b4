"""A server that is killed while voices are uploaded, and started anew: each voice is whole and speaks, or is absent."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from clips import clip, tone
from elsewhere import Elsewhere, soon

from builders import Built
from miso_gguf.models.levels import Q4_K_M

PATIENCE_S = 60
SPEECH = "/v1/audio/speech"
VOICES = "/v1/audio/voices"
UPLOADERS = 3


@pytest.fixture(scope="module")
def bundle(built: Built) -> Path:
    return built.bundle([Q4_K_M])


@contextmanager
def command(bundle: Path, voices: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The command, and its address."""
    line = [sys.executable, "-m", "miso_gguf.serve.cli", "--model", str(bundle), "--port", "0", "--threads", "1"]
    line += ["--gpu-layers", "0", "--max-streams", "1", "--voices", str(voices)]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MISO_")}
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=variables) as process:
        try:
            assert process.stderr is not None
            found = next(filter(None, (re.search(r"http://127\.0\.0\.1:\d+", said) for said in process.stderr)))
            reading = threading.Thread(target=process.stderr.read, daemon=True)  # what fills its pipe stands still
            reading.start()
            yield process, found[0]
        finally:
            process.kill()
            reading.join(PATIENCE_S)


def upload_until_it_is_gone(address: str, uploader: int, kept: list[str]) -> None:
    """Notes the ids of those that the server has said it keeps."""
    with httpx.Client(base_url=address, timeout=PATIENCE_S) as client:
        for number in range(1000):
            form = {"name": f"{uploader} {number} {address}", "text": "What is said.", "consent": "true"}
            try:
                answer = client.post(VOICES, data=form, files={"audio_sample": ("a.wav", clip(tone(0.4)))})
            except httpx.TransportError:
                return
            assert answer.status_code == 200, answer.text
            kept.append(answer.json()["id"])


def what_all_say(address: str) -> dict[str, str]:
    """Id and name of each voice that is listed, all of which are heard."""
    with httpx.Client(base_url=address, timeout=PATIENCE_S) as client:
        there = {voice["id"]: voice["name"] for voice in client.get(VOICES).json()["data"]}
        for id in there:
            speech = {"model": "m", "input": "Hi.", "voice": id, "response_format": "pcm", "speed": 4}
            spoken = client.post(SPEECH, json=speech)
            assert spoken.status_code == 200, spoken.text
            assert spoken.content
    return there


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="nothing ends a process so suddenly there")
def test_killed_while_voices_are_uploaded(bundle: Path, tmp_path: Path) -> None:
    kept, rng = list[str](), np.random.default_rng(18)
    for kills in range(2):
        with command(bundle, tmp_path) as (process, address):
            there = what_all_say(address)
            assert {*kept} <= {*there}, "what the server said it keeps is kept"
            assert len(there) - len(kept) <= UPLOADERS * kills
            uploading = [Elsewhere(upload_until_it_is_gone, address, number, kept) for number in range(UPLOADERS)]
            before = len(kept)
            assert soon(lambda: len(kept) > before)  # noqa: B023 (while this goes round)
            assert not uploading[0].is_done_after(rng.uniform(0, 0.5))
            process.kill()
            for each in uploading:
                each.result()
    with command(bundle, tmp_path) as (_, address):
        assert {*kept} <= {*what_all_say(address)}
    assert not [path for path in tmp_path.iterdir() if path.suffix not in (".safetensors", ".miso-partial")]
