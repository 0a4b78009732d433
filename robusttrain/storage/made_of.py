"""What a model does that its weights do not say: numbers in its attributes, tensors outside of its
state, functions, and the code of classes that no installed package brings.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor, nn

from robusttrain.storage.files import hash_of_tensors, hash_of_weights

#: Folders of Python's own code, of installed packages, and of this one.
LIBRARIES = (
    *(Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib", "platlib")),
    Path(__file__).parents[1],
)
#: Attributes that every module has.
_OF_MODULES = {*vars(nn.Module()), "training"}
#: Of classes that were met: a network has few of them, and many parts.
_codes: WeakKeyDictionary[type, str] = WeakKeyDictionary()
_PLAIN = (str, int, float, complex, bool, bytes, type(None))


def made_of(module: nn.Module) -> str:
    """Sixteen hexadecimal digits that differ where two modules of equal weights may answer
    differently, as far as that can be read off them.

    Objects of libraries that are neither plain values, arrays nor functions are passed over.
    """
    return _short("".join(_lines(module, set())))


def told(value: Any) -> str:
    """A value's content as text that is the same in every process; nothing where none is known."""
    return _told(value, set(), ())


def is_library(path: str | Path) -> bool:
    """Whether a file of code belongs to Python, to an installed package, or to this one."""
    return any(Path(path).is_relative_to(folder) for folder in LIBRARIES)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _lines(module: nn.Module, seen: set[int]) -> Iterator[str]:
    """``seen``: modules and objects that were told already; the module holds them, so that no other
    object takes their place in memory meanwhile.
    """
    for name, part in module.named_modules():
        if id(part) in seen:
            continue
        seen.add(id(part))
        cls, buffers = type(part), dict(part.named_buffers(recurse=False))
        yield f"{name}: {cls.__module__}.{cls.__qualname__} {_code_of(cls)}\n"
        yield hash_of_tensors({each: buffers[each] for each in part._non_persistent_buffers_set})
        for attribute, value in sorted(vars(part).items()):
            if attribute not in _OF_MODULES:
                yield f"{attribute}: {_told(value, seen, ())}\n"


def _told(value: Any, seen: set[int], holders: tuple[int, ...]) -> str:
    """``holders``: the containers and functions that hold the value, the outermost first."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, Tensor):
        return hash_of_tensors({"": value})
    if isinstance(value, np.ndarray | np.generic):
        return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if id(value) in seen or id(value) in holders:
        return ""
    if isinstance(value, nn.Module):  # one that its holder does not know as a part
        return hash_of_weights(value) + "".join(_lines(value, seen))
    inner = (*holders, id(value))
    if isinstance(value, Mapping):
        return "".join(f"{key!r}: {_told(item, seen, inner)}, " for key, item in value.items())
    if isinstance(value, list | tuple):
        return "".join(f"{_told(item, seen, inner)}, " for item in value)
    if isinstance(value, set | frozenset):  # whose order is another in every process
        return f"{sorted(_told(item, seen, inner) for item in value)}"
    if isinstance(value, MethodType):
        return _told(value.__func__, seen, inner)
    if isinstance(value, partial):
        return _told([value.func, value.args, value.keywords], seen, inner)
    if isinstance(value, FunctionType):
        held = [_content(cell) for cell in value.__closure__ or ()]
        return f"{_code(value.__code__)} {_told([value.__defaults__, held], seen, inner)}"
    if hasattr(value, "__dict__") and _is_own(type(value)):
        seen.add(id(value))
        return f"{type(value).__qualname__} {_told(vars(value), seen, inner)}"
    return ""


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _code(code: CodeType) -> str:
    """What a function does, whatever file it stands in."""
    inner = [_code(each) if isinstance(each, CodeType) else told(each) for each in code.co_consts]
    return f"{code.co_code.hex()} {inner} {code.co_names}"


def _code_of(cls: type) -> str:
    """A fingerprint of the code of a class and its bases; nothing of libraries.

    It is that of the whole file, whose functions the class may call; of the script that runs, the
    class alone, since a script is edited between two runs.
    """
    if cls not in _codes:
        _codes[cls] = _short("".join(_text_of(base) for base in cls.__mro__ if _is_own(base)))
    return _codes[cls]


def _is_own(cls: type) -> bool:
    """Whether a class is the user's: from a file of theirs, a script, or a notebook."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return cls.__module__ == "__main__" or (file is not None and not is_library(file))


def _text_of(cls: type) -> str:
    try:
        if cls.__module__ == "__main__":
            return inspect.getsource(cls)
        return Path(inspect.getfile(cls)).read_text()
    except (OSError, TypeError):  # typed in, or made by code: its methods are known all the same
        return "".join(told(value) for value in vars(cls).values())
