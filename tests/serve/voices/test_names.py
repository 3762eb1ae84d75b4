"""What a name means: the operator's voice, a seeded speaker, an uploaded voice, or nothing."""

import unicodedata
from pathlib import Path
from unittest import mock

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from voicing import model, nothing, voice

from miso_gguf.serve.errors import ApiError
from miso_gguf.serve.voices.names import Voices
from miso_gguf.serve.voices.seeded import ALIASES, SeededSpeakers
from miso_gguf.serve.voices.spelling import check_name


def refusal(voices: Voices, name: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        voices.check(name)
    with pytest.raises(ApiError) as resolved:
        voices.resolve(name, model(), nothing)
    assert resolved.value.body == caught.value.body
    return caught.value


def test_without_a_directory_there_are_the_names_that_clients_know() -> None:
    voices = Voices(None, most=9)
    assert voices.names() == ["default", *ALIASES]
    assert voices.listing() == []
    for name in voices.names():
        voices.check(name)
    assert voices.resolve("default", model(), nothing) is None
    error = refusal(voices, "nobody")
    assert (error.status, error.param, error.code) == (400, "voice", "unknown_voice")
    assert error.message == "no voice 'nobody': GET /v1/audio/voices lists those there are"
    for status, use in ((403, lambda: voices.add(voice())), (404, lambda: voices.delete("voice_" + "0" * 24))):
        with pytest.raises(ApiError, match="--voices DIR") as caught:
            use()
        assert caught.value.status == status


def test_uploaded_voices_have_a_name_and_an_id(tmp_path: Path) -> None:
    voices = Voices(tmp_path, most=9)
    kept = voices.add(voice(3, "Anna Maria"))
    assert voices.listing() == [kept] == [voices.get(str(kept["id"]))]
    assert voices.names()[-1] == "Anna Maria"
    for name in ("Anna Maria", str(kept["id"])):
        voices.check(name)
        found = voices.resolve(name, model(), nothing)
        assert found is not None
        assert found.digest == voice(3).digest
    assert refusal(voices, "anna maria").code == "unknown_voice"
    voices.delete(str(kept["id"]))
    assert refusal(voices, str(kept["id"])).code == "unknown_voice"


def test_a_voice_of_another_model_is_told(tmp_path: Path) -> None:
    voices = Voices(tmp_path, most=9)
    voices.add(voice(3, "Anna"))
    with pytest.raises(ApiError, match="has 8 codebooks, the model's codec has 32") as caught:
        voices.resolve("Anna", model(codebooks=32), nothing)
    assert (caught.value.status, caught.value.param) == (400, "voice")


@pytest.mark.parametrize("name", ["alloy", "Alloy", "DEFAULT", "narrator", "voice_" + "0" * 24])
def test_names_that_mean_something_cannot_be_taken(name: str, tmp_path: Path) -> None:
    voice().save(tmp_path / "tom.safetensors")
    (tmp_path / "voices.toml").write_text('[voices]\nnarrator = "tom.safetensors"')
    with pytest.raises(ApiError) as caught:
        Voices(tmp_path, most=9).add(voice(1, name))
    assert (caught.value.status, caught.value.param) == (400, "name")


def test_the_operator_is_stronger_than_an_alias_and_than_an_upload(tmp_path: Path) -> None:
    kept = Voices(tmp_path, most=9).add(voice(2, "narrator"))
    voice(1).save(tmp_path / "tom.safetensors")
    (tmp_path / "voices.toml").write_text(
        '[voices]\nnarrator = "tom.safetensors"\nalloy = { file = "tom.safetensors", speaker = 7 }'
    )
    voices = Voices(tmp_path, most=9)
    assert voices.names() == ["default", *ALIASES, "narrator", kept["id"]]
    narrator, alloy, old = (voices.resolve(name, model(), nothing) for name in ("narrator", "alloy", str(kept["id"])))
    assert narrator is not None
    assert alloy is not None
    assert old is not None
    assert narrator.digest == voice(1).digest
    assert (alloy.speaker, alloy.codes.tolist()) == (7, voice(1).codes.tolist())
    assert old.digest == voice(2).digest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[voices", "no TOML"),
        (b"\xff", "no TOML"),
        (b"[voice]", "unknown entry 'voice'; expected one table"),
        (b"voices = 3", "voices must be a table"),
        (b"[voices]\na = 3", "'a': its file must be a path in quotes, not 3"),
        (b"[voices]\na = {speaker = 3}", "'a': its file must be a path in quotes, not None"),
        (b'[voices]\na = ""', "'a': its file must be a path"),
        (b'[voices]\na = "\\u0000"', "'a': its file must be a path"),
        (b'[voices]\na = "nobody.safetensors"', r"nobody\.safetensors: no such voice file"),
        (b'[voices]\na = "voices.toml"', "not a voice file, or a damaged one"),
        (b'[voices]\na = {file = "tom.safetensors", speed = 3}', "unknown entry 'speed'; known are file and speaker"),
        (b'[voices]\na = {file = "tom.safetensors", speaker = -1}', "a speaker is a number from 0, not -1"),
        (b'[voices]\na = {file = "tom.safetensors", speaker = true}', "a speaker is a number from 0, not True"),
        (b'[voices]\n"" = "tom.safetensors"', "'': the name of a voice is empty"),
        (b'[voices]\n"a\\n" = "tom.safetensors"', "begins or ends with a space"),
        (b'[voices]\na = "' + 5000 * b"a" + b'"', "'a': .*File name too long"),
        (b"a = " + 3000 * b"[", "no TOML"),
        (b'\xef\xbb\xbf[voices]\na = "nobody.safetensors"', r"nobody\.safetensors: no such voice file"),
    ],
)
def test_faults_of_the_operator_are_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    voice().save(tmp_path / "tom.safetensors")
    (tmp_path / "voices.toml").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        Voices(tmp_path, most=9)
    assert str(caught.value).startswith(f"{tmp_path / 'voices.toml'}: ")
    assert "\n" not in str(caught.value)


@settings(max_examples=examples(50))
@given(st.text(st.characters(), max_size=120))
def test_a_name_is_refused_or_seen_whole(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    bad = {"Cc", "Cs", "Zl", "Zp"} & {unicodedata.category(char) for char in name}
    fine = 0 < len(name) <= 100 and name == name.strip() and not bad
    try:
        check_name(name)
        assert fine
    except ValueError as error:
        assert not fine
        str(error).encode()
    directory = tmp_path_factory.getbasetemp() / "named"
    voices = Voices(directory, most=1 << 20)
    if fine and name.casefold() not in {each.casefold() for each in voices.names()}:
        kept = voices.add(voice(1, name))
        assert Voices(directory, most=1).get(str(kept["id"]))["name"] == name
        voices.check(name)
        voices.delete(str(kept["id"]))
    elif name not in voices.names():
        refusal(voices, name).message.encode()


def test_names_that_look_the_same_are_the_same(tmp_path: Path) -> None:
    """macOS and some keyboards write an accent as a character of its own."""
    composed, apart = "Zo\u00eb", "Zoe\u0308"
    voice(7).save(tmp_path / "tom.safetensors")
    (tmp_path / "voices.toml").write_text(f'[voices]\n"The {apart}" = "tom.safetensors"', "utf-8")
    voices = Voices(tmp_path, most=9)
    added = voices.add(voice(name=apart))
    assert added["name"] == composed
    for name in (composed, apart):
        for taken in (name, name.upper(), f"the {name}"):
            with pytest.raises(ApiError) as caught:
                voices.check_new(taken)
            assert caught.value.code == "name_taken"
        voices.check(name)
        asked = [voices.resolve(each, model(), nothing) for each in (name, f"The {name}")]
        assert [each is not None and each.speaker for each in asked] == [0, 7]


def test_every_alias_is_asked_of_the_model(tmp_path: Path) -> None:
    with mock.patch.object(SeededSpeakers, "voice", side_effect=lambda name, *_: voice(1, name)) as asked:
        voices, tts = Voices(tmp_path, most=9), model()
        found = [voices.resolve(name, tts, nothing) for name in ALIASES]
    assert [each and each.name for each in found] == [*ALIASES]
    assert asked.call_count == len(ALIASES) == 13
