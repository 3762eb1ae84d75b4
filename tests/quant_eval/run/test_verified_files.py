"""Files are what their manifest says: before the work, after it, and without reading them again for nothing."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from miso_gguf.core.errors import BundleError
from miso_gguf.models.manifest import BundleFile, read_manifest
from miso_gguf.quant_eval.run import verified_files as module
from miso_gguf.quant_eval.run.verified_files import HASHES_NAME, VerifiedFiles
from miso_gguf.runtime.bundle import OpenLevel

CONTENT = b"weights" * 100


@pytest.fixture
def level(bundle: Path, tmp_path: Path) -> OpenLevel:
    """A level of files with a few bytes each, and a manifest that fits."""
    return made(bundle, tmp_path / "bundle", CONTENT)


def made(bundle: Path, directory: Path, content: bytes) -> OpenLevel:
    manifest = read_manifest(bundle)
    directory.mkdir()
    record = BundleFile(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    level = OpenLevel(directory, manifest.model_copy(update={"files": dict.fromkeys(manifest.files, record)}), "fp16")
    for path in files(level):
        path.write_bytes(content)
    return level


def files(level: OpenLevel) -> list[Path]:
    return [level.backbone, level.decoder, level.embeddings, level.codec_decoder, level.codec_encoder]


@pytest.fixture
def much_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was just written was written long ago."""
    monkeypatch.setattr(module, "time", SimpleNamespace(time_ns=lambda: 1 << 62))


def hashed(level: OpenLevel, out: Path) -> int:
    """Bytes that a check reads."""
    said = [(0, 0)]
    VerifiedFiles([level], out).check(lambda done, total: said.append((done, total)))
    assert said[-1][0] == said[-1][1]
    assert said == sorted(said)
    return said[-1][0]


@pytest.mark.usefixtures("much_later")
def test_what_is_known_is_not_read_again(level: OpenLevel, tmp_path: Path) -> None:
    assert [hashed(level, tmp_path / "out") for _ in range(2)] == [5 * len(CONTENT), 0]
    VerifiedFiles([level], tmp_path / "out").check_after()
    level.decoder.touch()
    assert [hashed(level, tmp_path / "out") for _ in range(2)] == [len(CONTENT), 0]
    assert hashed(level, tmp_path / "another") == 5 * len(CONTENT)


def test_what_was_just_written_is_not_known(level: OpenLevel, tmp_path: Path) -> None:
    """Within one tick of the clock it may be written again, and nobody would see it."""
    assert [hashed(level, tmp_path) for _ in range(2)] == [5 * len(CONTENT)] * 2


def in_place(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def with_its_times(path: Path, content: bytes) -> None:
    """As `cp -p` and `rsync -t --inplace` do."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def by_another(path: Path, content: bytes) -> None:
    """As `mv` and `rsync -t` do."""
    other = path.with_name("other")
    other.write_bytes(content)
    shutil.copystat(path, other)
    other.rename(path)


@pytest.mark.usefixtures("much_later")
@pytest.mark.parametrize("change", [in_place, with_its_times, by_another])
@pytest.mark.parametrize("index", range(5))
def test_what_was_replaced_is_found_out(change: "type[object]", index: int, level: OpenLevel, tmp_path: Path) -> None:
    hashed(level, tmp_path)
    path = files(level)[index]
    change(path, CONTENT[::-1])  # type: ignore[call-arg]
    with pytest.raises(
        BundleError, match=rf"{path.name}: holds something else .*miso-convert verify {level.directory}"
    ):
        hashed(level, tmp_path)
    change(path, CONTENT)  # type: ignore[call-arg]
    assert hashed(level, tmp_path) == len(CONTENT)


@pytest.mark.usefixtures("much_later")
def test_links_of_a_hub_s_cache(level: OpenLevel, tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for path in files(level):
        path.rename(blobs / path.stem)
        path.symlink_to(blobs / path.stem)
    assert [hashed(level, tmp_path) for _ in range(2)] == [5 * len(CONTENT), 0]
    in_place(blobs / level.backbone.stem, b"else")
    with pytest.raises(BundleError, match="holds something else"):
        hashed(level, tmp_path)


def test_one_file_that_two_manifests_disagree_about(bundle: Path, level: OpenLevel, tmp_path: Path) -> None:
    other = made(bundle, tmp_path / "other", CONTENT[1:])
    other.backbone.unlink()
    other.backbone.symlink_to(level.backbone)
    for both in ([level, other], [other, level]):
        with pytest.raises(BundleError, match=f"miso-convert verify {other.directory}"):
            VerifiedFiles(both, tmp_path / "out").check()


def test_an_encoder_need_not_be_there(level: OpenLevel, tmp_path: Path) -> None:
    level.codec_encoder.unlink()
    assert hashed(level, tmp_path) == 4 * len(CONTENT)


@pytest.mark.usefixtures("much_later")
@pytest.mark.parametrize("content", [b"", b"[]", b'{"version": 0}', b'{"version": 1}', b'{"version": 1, "files": 3}'])
def test_what_is_remembered_may_be_damaged(content: bytes, level: OpenLevel, tmp_path: Path) -> None:
    hashed(level, tmp_path)
    (tmp_path / HASHES_NAME).write_bytes(content)
    assert [hashed(level, tmp_path) for _ in range(2)] == [5 * len(CONTENT), 0]


@pytest.mark.usefixtures("much_later")
def test_what_else_is_remembered_stays(bundle: Path, level: OpenLevel, tmp_path: Path) -> None:
    other = made(bundle, tmp_path / "other", b"few")
    assert [hashed(each, tmp_path) for each in (level, other, level, other)] == [5 * len(CONTENT), 5 * 3, 0, 0]


@pytest.mark.usefixtures("much_later")
def test_what_is_replaced_during_the_work_voids_it(level: OpenLevel, tmp_path: Path) -> None:
    """For good: which of the records are of what, nobody can say."""
    out = tmp_path / "out"
    found = VerifiedFiles([level], out)
    found.check()
    with_its_times(level.embeddings, CONTENT[::-1])
    with pytest.raises(BundleError, match=r"was changed while it was evaluated.* --fresh"):
        found.check_after()
    with_its_times(level.embeddings, CONTENT)
    for _ in range(2):
        with pytest.raises(BundleError, match=r"was changed while it was evaluated.* --fresh"):
            VerifiedFiles([level], out).check()
    (out / HASHES_NAME).unlink()  # as --fresh does
    found.check()
    found.check_after()


def test_a_file_that_grows_under_the_reader(level: OpenLevel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def grow(path: Path) -> None:
        with path.open("ab") as file:
            file.write(b"more")

    while_it_reads(monkeypatch, grow)
    with pytest.raises(BundleError, match="was changed while it was read"):
        hashed(level, tmp_path)


def link(path: Path) -> None:
    """As a second evaluation of the bundle does, for a control."""
    path.with_name(f"{path.name}-linked").hardlink_to(path)


def unlink(path: Path) -> None:
    """As that one does when the control is measured."""
    link(path)
    path.with_name(f"{path.name}-linked").unlink()


def protect(path: Path) -> None:
    path.chmod(0o444)


@pytest.mark.usefixtures("much_later")
@pytest.mark.parametrize("touch", [link, unlink, protect])
def test_what_changes_no_byte_may_happen_under_the_reader(
    touch: Callable[[Path], None], level: OpenLevel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        while_it_reads(patch, touch)
        hashed(level, tmp_path)
    # Something moved the inodes' times: it is looked at again.
    assert [hashed(level, tmp_path) for _ in range(2)] == [5 * len(CONTENT), 0]


@pytest.mark.usefixtures("much_later")
def test_a_change_under_the_reader_that_sets_the_times_back(
    level: OpenLevel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reading that had begun cannot see it; the next one does, of `check` and of `check_after`."""
    files = VerifiedFiles([level], tmp_path / "out")
    with monkeypatch.context() as patch:
        while_it_reads(patch, lambda path: with_its_times(path, CONTENT[::-1]))
        files.check()
    for check in (VerifiedFiles([level], tmp_path / "out").check, files.check_after):
        with pytest.raises(BundleError, match="holds something else"):
            check()


def while_it_reads(patch: pytest.MonkeyPatch, meanwhile: Callable[[Path], None]) -> None:
    def slow(path: Path, _progress: object) -> str:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        meanwhile(path)
        return digest

    patch.setattr(module, "file_sha256", slow)


@pytest.mark.usefixtures("much_later")
def test_nothing_is_remembered_but_files(level: OpenLevel, tmp_path: Path) -> None:
    hashed(level, tmp_path / "out")
    document = json.loads((tmp_path / "out" / HASHES_NAME).read_text())
    entry = document["files"][str(level.backbone.absolute())]
    assert set(entry) == {"size_bytes", "mtime_ns", "ctime_ns", "inode", "sha256"}
    assert len(document["files"]) == 5
