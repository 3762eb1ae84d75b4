"""A pickle read as data: dictionaries, lists, numbers and tensors. Nothing that it names is imported, called or run.

A pickle is a program for a small stack machine. This one knows the instructions and none of the classes: what torch
writes for a tensor becomes a `Tensor`, a class of anything else (a trainer's settings, a path, a date) an `Inert` that
takes whatever it is given. A pickle that asks for parts of Python that no checkpoint has a use for is refused by name.
It knows nothing of files around the pickle.
"""

import pickletools
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

MAX_BYTES, _MAX_INSTRUCTIONS = 64 << 20, 2_000_000
"""A checkpoint with its optimiser has a few hundred kB and thousands of instructions per thousand tensors."""

_DATA_MODULES = (
    "_codecs abc argparse array calendar collections configparser contextlib copyreg dataclasses datetime decimal enum "
    "fractions functools heapq inspect ipaddress itertools json logging numbers operator optparse pathlib queue random "
    "re statistics string threading time types typing uuid weakref zoneinfo"
)
"""Of Python's own modules, those that settings saved beside the weights may come from."""
_DATA_BUILTINS = (
    "Ellipsis NotImplemented abs bool bytearray bytes complex dict enumerate filter float frozenset getattr int len "
    "list map max min object print property range reversed round set slice sorted staticmethod str sum tuple type zip "
    "basestring long unicode xrange"
)


class Reader(Protocol):
    """What a pickle is read from."""

    def read(self, size: int, /) -> bytes: ...  # noqa: D102
    def readline(self, size: int, /) -> bytes: ...  # noqa: D102


class UnusablePickleError(ValueError):
    """Why a pickle is refused: it asks for something that no checkpoint needs."""


@dataclass(frozen=True)
class Storage:
    """A run of numbers that a file holds somewhere else; `Tensor`s are views of it."""

    key: str
    dtype: str
    items: int
    first: int = 0
    """Where this part of it begins."""


@dataclass(frozen=True)
class Tensor:
    """A view of a storage, in elements. `dtype` says so if there is no data, or none that can be read."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] = ()
    offset: int = 0
    storage: Storage | None = None


class Inert:
    """Stands for an object of an unknown class: keeps what it is given, does nothing."""

    __slots__ = ("parts",)

    def __init__(self) -> None:
        self.parts: dict[Any, Any] = {}


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names."""

    module: str
    name: str


class _Limited:
    """A stream of which no more than a pickle may have is read."""

    def __init__(self, stream: Reader) -> None:
        self._stream = stream
        self._left = MAX_BYTES

    def read(self, size: int) -> bytes:
        if size > self._left:
            raise ValueError(f"a pickle of more than {MAX_BYTES} bytes, or one that is cut off")
        self._left -= size
        data = self._stream.read(size)
        if len(data) < size:
            raise ValueError("it is cut off: download it again")
        return data

    def readline(self) -> bytes:
        line = self._stream.readline(self._left)
        self._left -= len(line)
        return line


class _Machine:
    """The stack, the marks and the memo of one pickle."""

    def __init__(self, storage_of: Callable[[Any], Storage], rebuild: Mapping[Name, Callable[..., Any]]) -> None:
        self._storage_of = storage_of
        self._rebuild = rebuild
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, stream: Reader) -> Any:
        """The object that the pickle makes. The stream then stands behind it."""
        values = set(_VALUES.split())
        for count, (instruction, argument, _) in enumerate(pickletools.genops(_Limited(stream))):  # type: ignore[arg-type]
            name = instruction.name
            if count > _MAX_INSTRUCTIONS:
                raise ValueError(f"a pickle of more than {_MAX_INSTRUCTIONS} instructions")
            if name in values:
                self._stack.append(argument)
            elif name in _NEW:
                self._stack.append(_NEW[name]())
            elif name not in ("PROTO", "FRAME", "STOP"):
                step = getattr(self, f"_{name.lower()}", None)
                if step is None:
                    raise ValueError(f"instruction {name}, which no checkpoint has")
                step() if instruction.arg is None else step(argument)
        return self._stack.pop()

    def _mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _marked(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _pop_mark(self) -> None:
        self._marked()

    def _pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._marked()

    def _dup(self) -> None:
        self._stack.append(self._stack[-1])

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    _binget = _long_binget = _get

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    _binput = _long_binput = _put

    def _memoize(self) -> None:
        self._put(len(self._memo))

    def _tuple(self) -> None:
        items = tuple(self._marked())
        self._stack.append(items)

    def _last(self, count: int) -> None:
        items = tuple(self._stack[-count:])
        if len(items) < count:
            raise IndexError("the stack is empty")
        self._stack[-count:] = [items]

    def _tuple1(self) -> None:
        self._last(1)

    def _tuple2(self) -> None:
        self._last(2)

    def _tuple3(self) -> None:
        self._last(3)

    def _list(self) -> None:
        items = self._marked()
        self._stack.append(items)

    def _dict(self) -> None:
        items = self._marked()
        self._stack.append({})
        self._set(items)

    def _frozenset(self) -> None:
        self._marked()
        self._stack.append(Inert())

    def _append(self) -> None:
        self._add([self._stack.pop()])

    def _appends(self) -> None:
        self._add(self._marked())

    def _additems(self) -> None:
        self._marked()

    def _add(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Inert):
            target.parts |= enumerate(items, len(target.parts))
        elif isinstance(target, list):
            target += items
        else:
            raise TypeError("something is appended to what is no list")

    def _setitem(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def _setitems(self) -> None:
        self._set(self._marked())

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        parts = target.parts if isinstance(target, Inert) else target
        if not isinstance(parts, dict):
            raise TypeError("something is set in what is no dictionary")
        # The hash of a key of any other type is an attack on the stack: tuples can be nested without end.
        parts |= ((key, value) for key, value in zip(items[::2], items[1::2], strict=True) if type(key) in (str, int))

    def _global(self, argument: str) -> None:
        self._stack.append(_named(*argument.split(" ", 1)))

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(_named(module, name))

    def _reduce(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(self._called(function, arguments))

    def _called(self, function: Any, arguments: Any) -> Any:
        if not isinstance(arguments, tuple):
            raise TypeError("a call without arguments")
        if function in _DICTIONARIES:
            pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []  # as Python 2 wrote them
            return {key: value for key, value in pairs if type(key) is str}
        rebuild = self._rebuild.get(function) if isinstance(function, Name) else None
        return Inert() if rebuild is None else rebuild(*arguments)

    _newobj = _reduce

    def _newobj_ex(self) -> None:
        self._stack.pop()
        self._reduce()

    def _inst(self, argument: str) -> None:
        self._marked()
        _named(*argument.split(" ", 1))
        self._stack.append(Inert())

    def _obj(self) -> None:
        self._marked()
        self._stack.append(Inert())

    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Inert):
            # (__dict__, slots), or __dict__ alone.
            for part in state if isinstance(state, tuple) else (state,):
                if isinstance(part, dict):
                    target.parts |= part

    def _persid(self, argument: str) -> None:
        self._stack.append(self._storage_of(argument))

    def _binpersid(self) -> None:
        self._stack.append(self._storage_of(self._stack.pop()))


_VALUES = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"
)
"""Instructions that push what stands beside them."""
_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": Inert,
}


def unpickle(
    stream: Reader, storage_of: Callable[[Any], Storage], rebuild: Mapping[Name, Callable[..., Any]] | None = None
) -> Any:
    """The next pickle of `stream`, as data.

    `storage_of` says which storage torch's ids for one mean, `rebuild` what comes of calls of these names. Raises
    `UnusablePickleError` if the pickle asks for what no checkpoint needs; a damaged one raises `ValueError`,
    `TypeError`, `LookupError` or `AttributeError`.
    """
    return _Machine(storage_of, rebuild or {}).run(stream)


def _named(module: Any, name: Any) -> Name:
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError("a class whose name is no text")
    top = module.split(".", 1)[0]
    if name not in _DATA_BUILTINS.split() if top in ("builtins", "__builtin__") else top in _PYTHON:
        raise UnusablePickleError(f"it asks for {_printable(f'{module}.{name}')}")
    return Name(module, name)


_PYTHON = sys.stdlib_module_names - set(_DATA_MODULES.split()) | {"commands", "pip", "setuptools", "urllib2"}


def _printable(text: str) -> str:
    return re.sub(r"[^ -~]", "?", text)[:100]


_DICTIONARIES = (Name("collections", "OrderedDict"), Name("builtins", "dict"), Name("__builtin__", "dict"))
