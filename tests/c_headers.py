"""What C headers declare, as far as llama.cpp's go: functions, structs and types of functions, in words to compare."""

import ctypes
import re
from collections.abc import Sequence
from importlib.metadata import files
from pathlib import Path
from typing import Any

Function = tuple[str, list[str]]
"""The words for its result and its arguments."""

_WORDS = {
    "void": "void",
    "bool": "bool",
    "char": "i8",
    "int": "i32",
    "int8_t": "i8",
    "uint8_t": "u8",
    "int32_t": "i32",
    "uint32_t": "u32",
    "int64_t": "i64",
    "uint64_t": "u64",
    "size_t": "u64",
    "float": "f32",
    "double": "f64",
}
_CTYPES = {
    ctypes.c_bool: "bool",
    ctypes.c_int8: "i8",
    ctypes.c_uint8: "u8",
    ctypes.c_int32: "i32",
    ctypes.c_uint32: "u32",
    ctypes.c_int64: "i64",
    ctypes.c_uint64: "u64",
    ctypes.c_float: "f32",
    ctypes.c_double: "f64",
}


class Headers:
    """The headers that llama-cpp-python installs."""

    def __init__(self, *names: str) -> None:
        shipped = {path.name: Path(path.locate()) for path in files("llama-cpp-python") or () if path.suffix == ".h"}
        text = "\n".join(shipped[name].read_text("utf-8") for name in names)
        text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.S)
        text = re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", " ", text, flags=re.M)
        self._text = re.sub(r"\s+", " ", text)
        self._pointers = set(re.findall(r"typedef (?:const )?struct \w+ ?\* ?(\w+) ?;", self._text))
        self._pointers |= set(re.findall(r"typedef [^;(){}]+\( ?\* ?(\w+) ?\)", self._text))
        aliases = re.findall(r"typedef (u?int\d+_t|struct \w+|enum \w+) (\w+) ?;", self._text)
        self._aliases = {name: target for target, name in aliases}

    def function(self, name: str) -> Function:
        found = re.findall(rf"\w+_API ((?:\w+ )+(?:\* ?)*){name} ?\(([^;{{]*?)\) ?[;,]", self._text)
        assert len(found) == 1, (name, found)
        return self._function(*found[0])

    def function_type(self, name: str) -> Function:
        """Of `typedef RESULT (*name)(ARGUMENTS);`."""
        found = re.findall(rf"typedef ((?:\w+ )+(?:\* ?)*)\( ?\* ?{name} ?\) ?\(([^;]*?)\) ?;", self._text)
        assert len(found) == 1, (name, found)
        return self._function(*found[0])

    def struct(self, name: str) -> list[tuple[str, str]]:
        """(field, word) of each field; an array of n is the word n times over."""
        found = re.findall(rf"struct {name} {{(.*?)}} ?(?:{name} ?)?;", self._text)
        assert len(found) == 1, (name, found)
        fields = []
        for line in found[0].split(";"):
            if line.strip():
                declared = re.fullmatch(r"(.*?[ *])(\w+) ?(\[.*\])?", line.strip())
                assert declared, line
                fields.append((declared[2], self.word(declared[1]) + (declared[3] or "")))
        return fields

    def word(self, declared: str) -> str:
        """Of a type: what it is to the machine, "char*" for texts, and a struct's name."""
        words = [word for word in declared.replace("*", " * ").split() if word not in ("const", "extern")]
        if "*" in words or words[-1] in self._pointers:
            return "char*" if words == ["char", "*"] else "pointer"
        if words[0] == "enum":
            return "i32"
        if words[0] == "struct":
            return words[1]
        target = self._aliases.get(words[0])
        return self.word(target) if target else _WORDS.get(words[0], words[0])

    def _function(self, result: str, arguments: str) -> Function:
        listed = [argument.strip() for argument in arguments.split(",")]
        return self.word(result), [self.word(_without_name(one)) for one in listed if one not in ("void", "")]


def _without_name(argument: str) -> str:
    """An argument's type. An array is a pointer."""
    if "[" in argument:
        return "void *"
    declared = re.fullmatch(r"(.*[ *])\w+", argument)
    return declared[1] if declared and not re.fullmatch(r"(const |struct |enum )*", declared[1]) else argument


def ctypes_word(kind: Any) -> str:
    """The same words for ctypes' types."""
    if kind is None:
        return "void"
    if kind is ctypes.c_char_p:
        return "char*"
    if kind in _CTYPES:
        return _CTYPES[kind]
    if kind is ctypes.c_void_p or issubclass(kind, ctypes._Pointer) or hasattr(kind, "_restype_"):
        return "pointer"
    if issubclass(kind, ctypes.Array):
        return f"{ctypes_word(kind._type_)}[{kind._length_}]"
    assert issubclass(kind, ctypes.Structure), kind
    return str(kind.__name__)


def ctypes_function(result: Any, arguments: Sequence[Any]) -> Function:
    return ctypes_word(result), [ctypes_word(argument) for argument in arguments]
