"""Options: every value that makes no sense is one sentence, and what makes sense is stored as plain Python."""

import json
from dataclasses import asdict, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miso_gguf.native import llama as llama_module
from miso_gguf.native.llama import KV_TYPES
from miso_gguf.runtime import options as options_module
from miso_gguf.runtime.codec.onnx import _PROVIDERS
from miso_gguf.runtime.options import CODEC_PROVIDERS, EngineOptions, SpeechOptions

MANY = "a whole number from 1 to 2147483647"
SPEECH = [
    ("temperature", "0.9", "a number from 0 to 10, not '0.9'"),
    ("temperature", -0.1, "a number from 0 to 10, not -0.1"),
    ("temperature", float("nan"), "a number from 0 to 10, not nan"),
    ("temperature", None, "a number from 0 to 10, not None"),
    ("temperature", False, "a number from 0 to 10, not False"),
    ("temperature", 10**400, "a number from 0 to 10, not 1000"),
    ("temperature", 1j, "a number from 0 to 10, not 1j"),
    ("top_k", "5", f"{MANY}, not '5'"),
    ("top_k", 2.5, f"{MANY}, not 2.5"),
    ("top_k", 5.0, f"{MANY}, not 5.0"),
    ("top_k", 0, f"{MANY}, not 0"),
    ("top_k", [5], rf"{MANY}, not \[5\]"),
    ("seed", -1, "a whole number from 0 to 18446744073709551615, not -1"),
    ("seed", 1 << 64, "a whole number from 0 to 18446744073709551615, not 18446744073709551616"),
    ("seed", True, "a whole number from 0 to 18446744073709551615, not True"),
    ("seed", np.True_, "a whole number from 0 to 18446744073709551615, not (np.)?True"),
    ("seed", np.int64(-1), r"a whole number from 0 to 18446744073709551615, not (np.int64\()?-1"),
    ("max_seconds", float("nan"), "a number from 0.08 to 3600, not nan"),
    ("max_seconds", float("inf"), "a number from 0.08 to 3600, not inf"),
    ("max_seconds", 0, "a number from 0.08 to 3600, not 0"),
    ("chunk_frames", None, "a whole number from 1 to 65536, not None"),
    ("chunk_frames", 0, "a whole number from 1 to 65536, not 0"),
    ("split_sentences", "no", "True or False, not 'no'"),
    ("retry", 1, "True or False, not 1"),
    ("loudness_lufs", "loud", "a number from -60 to -5, or None, not 'loud'"),
    ("loudness_lufs", 0.0, "a number from -60 to -5, or None, not 0.0"),
]
ENGINE = [
    ("threads", "2", "a whole number from 1 to 512, not '2'"),
    ("threads", 0, "a whole number from 1 to 512, not 0"),
    ("threads", 513, "a whole number from 1 to 512, not 513"),
    ("threads", None, "a whole number from 1 to 512, not None"),
    ("sequences", 0, "a whole number from 1 to 256, not 0"),
    ("sequences", 300, "a whole number from 1 to 256, not 300"),
    ("context", "100", f"{MANY}, or None, not '100'"),
    ("context", 0, f"{MANY}, or None, not 0"),
    ("gpu_layers", 2.5, "a whole number from -1 to 2147483647, or None, not 2.5"),
    ("gpu_layers", -2, "a whole number from -1 to 2147483647, or None, not -2"),
    ("gpu_layers", True, "a whole number from -1 to 2147483647, or None, not True"),
    ("main_gpu", -1, "a whole number from 0 to 2147483647, not -1"),
    ("kv_type", "q4_0", "one of f32, f16, q8_0, not 'q4_0'"),
    ("kv_type", ["f16"], r"one of f32, f16, q8_0, not \['f16'\]"),
    ("kv_type", None, "one of f32, f16, q8_0, not None"),
    ("voice_cache_bytes", -1, "a whole number from 0 to 9223372036854775807, not -1"),
    ("voice_cache_bytes", None, "a whole number from 0 to 9223372036854775807, not None"),
    ("voice_directory", 5, "a directory, or None, not 5"),
    ("voice_directory", "", "a directory, or None, not ''"),
    ("voice_directory", "a\0b", r"a directory, or None, not 'a\\x00b'"),
    ("codec_provider", "rocm", "one of cpu, cuda, not 'rocm'"),
    ("codec_provider", {}, "one of cpu, cuda, not {}"),
    ("exact", "yes", "True or False, not 'yes'"),
    ("repack", None, "True or False, not None"),
    ("allow_cpu", 0, "True or False, not 0"),
]


@pytest.mark.parametrize(
    ("kind", "name", "value", "message"),
    [
        *((SpeechOptions, *case) for case in SPEECH),
        *((EngineOptions, *case) for case in ENGINE),
    ],
)
def test_a_value_that_makes_no_sense(kind: Any, name: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be {message}") as refused:
        kind(**{name: value})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "rules"),
    [
        (SpeechOptions, options_module._SPEECH),
        (EngineOptions, {**llama_module._OPTIONS, **options_module._ENGINE}),
    ],
)
def test_every_option_has_a_rule(kind: Any, rules: dict[str, object]) -> None:
    assert set(rules) == {field.name for field in fields(kind)}


def test_what_can_be_chosen_is_what_there_is() -> None:
    assert set(CODEC_PROVIDERS) == set(_PROVIDERS)
    assert all(EngineOptions(kv_type=name).kv_type == name for name in KV_TYPES)


@given(
    value=st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(),
        st.binary(),
        st.complex_numbers(),
        st.fractions(),
        st.lists(st.integers()),
        st.dictionaries(st.text(), st.none()),
        st.just(10**5000),
        st.sampled_from(
            [np.float16(0.5), np.uint64(1 << 63), np.str_("f16"), np.array(5), np.array([5]), np.datetime64("2026")]
        ),
    )
)
@pytest.mark.parametrize("kind", [SpeechOptions, EngineOptions])
def test_any_value_is_stored_as_plain_python_or_refused(kind: Any, value: object) -> None:
    given_anyway = {"threads": 1} if kind is EngineOptions else {}  # to look at the machine takes a while
    for field in fields(kind):
        refused = ""
        try:
            options = kind(**{**given_anyway, field.name: value})
        except ValueError as error:
            refused = str(error)
        if refused:
            assert refused.startswith(f"{field.name} must be ")
        else:
            stored = getattr(options, field.name)
            if field.name == "voice_directory":  # the one that is a path
                assert stored is None or (isinstance(stored, Path) and isinstance(hash(options), int))
                continue
            assert type(stored) in {bool, int, float, str, type(None)}
            assert json.loads(json.dumps(asdict(options)))[field.name] == stored
            assert isinstance(hash(options), int)


def test_numbers_of_numpy_are_numbers() -> None:
    asked: dict[str, Any] = {
        "temperature": np.float64(0.5),
        "top_k": np.int64(5),
        "seed": np.uint64(1 << 63),
        "max_seconds": np.float32(2),
        "chunk_frames": np.int8(3),
        "split_sentences": np.False_,
        "loudness_lufs": np.int32(-16),
    }
    found = SpeechOptions(**asked)
    plain = SpeechOptions(0.5, 5, 1 << 63, 2.0, 3, False, loudness_lufs=-16.0)
    assert (found, hash(found), repr(found)) == (plain, hash(plain), repr(plain))
    machine: dict[str, Any] = {"threads": np.int64(2), "kv_type": np.str_("q8_0"), "exact": np.True_}
    assert repr(EngineOptions(**machine)) == repr(EngineOptions(threads=2, kv_type="q8_0", exact=True))
    ratio: Any = Fraction(1, 2)
    assert SpeechOptions(temperature=ratio).temperature == 0.5
