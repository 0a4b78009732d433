"""What a model or an attack does that weights and options do not say: numbers in attributes,
tensors outside of a module's state, functions and what they reach, hooks, and the code of classes
that no installed package brings.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
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
#: Of these, the ones that hold what changes a forward pass; their keys count through the process.
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
#: Of classes that were met: a network has few of them, and many parts.
_codes: WeakKeyDictionary[type, str] = WeakKeyDictionary()
_PLAIN = (str, int, float, complex, bool, bytes, type(None))


def made_of(module: nn.Module) -> str:
    """Sixteen hexadecimal digits that differ where two modules of equal weights may answer
    differently, as far as that can be read off them.

    Objects of libraries that are neither plain values, arrays nor functions are passed over.
    """
    return _short("".join(_lines(module, set())))


def code_in(value: Any) -> str:
    """Sixteen hexadecimal digits that differ where the user's own code and objects in a value do;
    "" where it holds none.

    Args:
        value: an attack with its source: dataclasses of this package, and what they hold.
    """
    found = "".join(_own_in(value, set()))
    return _short(found) if found else ""


def modules_in(value: Any) -> list[nn.Module]:
    """The modules that a dataclass holds, and the dataclasses and sequences in it."""
    if isinstance(value, nn.Module):
        return [value]
    if isinstance(value, list | tuple):
        return [each for item in value for each in modules_in(item)]
    if is_dataclass(value) and not isinstance(value, type):
        held = [getattr(value, each.name, None) for each in fields(value)]
        return [each for item in held for each in modules_in(item)]
    return []


def _own_in(value: Any, seen: set[int]) -> Iterator[str]:
    if isinstance(value, FunctionType) or _is_own(type(value)):
        yield _told(value, seen, ())
    elif isinstance(value, MethodType):
        yield from _own_in(value.__self__, seen)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _own_in(item, seen)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _own_in(item, seen)
    elif is_dataclass(value) and not isinstance(value, type):
        for each in fields(value):
            yield from _own_in(getattr(value, each.name, None), seen)


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
        yield f"{name}: {cls.__module__}.{cls.__qualname__} {_class(cls, seen)}\n"
        yield hash_of_tensors({each: buffers[each] for each in part._non_persistent_buffers_set})
        for attribute, value in sorted(vars(part).items()):
            if attribute not in _OF_MODULES:
                yield f"{attribute}: {_told(value, seen, ())}\n"
        hooks = [hook for each in _HOOKS for hook in (vars(part).get(each) or {}).values()]
        if hooks:
            yield f"hooks: {_told(hooks, seen, ())}\n"


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
        return _told([value.__func__, value.__self__], seen, inner)
    if isinstance(value, partial):
        return _told([value.func, value.args, value.keywords], seen, inner)
    if isinstance(value, staticmethod | classmethod):
        return _told(value.__func__, seen, inner)
    if isinstance(value, property):
        return _told([value.fget], seen, inner)
    if isinstance(value, FunctionType):
        own = _is_module_of_theirs(value.__module__)
        if own:  # each once: they may call each other
            seen.add(id(value))
        held = [_content(cell) for cell in value.__closure__ or ()]
        around = _around(value) if own else {}
        return f"{_code(value.__code__)} {_told([value.__defaults__, held, around], seen, inner)}"
    if isinstance(value, type):
        return _class(value, seen)
    if isinstance(value, ModuleType):
        return _text_with_imports(value)
    if _is_own(type(value)):
        seen.add(id(value))
        content = _told(getattr(value, "__dict__", {}), seen, inner)
        return f"{type(value).__qualname__} {_class(type(value), seen)} {content}"
    if is_dataclass(value):
        parts = {each.name: getattr(value, each.name, None) for each in fields(value)}
        return f"{type(value).__qualname__} {_told(parts, seen, inner)}"
    cached = getattr(value, "__wrapped__", None)
    return _told(cached, seen, inner) if isinstance(cached, FunctionType) else ""


def _around(function: FunctionType) -> dict[str, Any]:
    """What a function takes from its module, by name: other functions, networks, numbers."""
    return {
        name: function.__globals__[name]
        for name in dict.fromkeys(_names(function.__code__))
        if name in function.__globals__
    }


def _names(code: CodeType) -> list[str]:
    """The names that a function looks up, those of functions inside it among them."""
    inner = [each for each in code.co_consts if isinstance(each, CodeType)]
    return [*code.co_names, *(name for each in inner for name in _names(each))]


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _code(code: CodeType) -> str:
    """What a function does, whatever file it stands in."""
    inner = [_code(each) if isinstance(each, CodeType) else told(each) for each in code.co_consts]
    return f"{code.co_code.hex()} {inner} {code.co_names}"


def _class(cls: type, seen: set[int]) -> str:
    """The fingerprint of a class (`_code_of`), and what its methods reach outside of its text."""
    own = [base for base in cls.__mro__ if _is_own(base)]
    if not own or id(cls) in seen:
        return _code_of(cls)
    seen.add(id(cls))
    held = [item for base in own for name, item in vars(base).items() if _is_content(name, item)]
    return f"{_code_of(cls)} {_told(held, seen, ())}"


def _is_content(name: str, item: Any) -> bool:
    """Whether an item of a class is the user's, and not one that Python puts there."""
    return isinstance(item, FunctionType) or not name.startswith("__")


def _code_of(cls: type) -> str:
    """A fingerprint of the text of a class and its bases; nothing of libraries.

    It is that of the whole file, whose functions the class may call, and of the user's files that
    this one imports; of the script that runs, the class alone, since a script is edited between two
    runs.
    """
    if cls not in _codes:
        _codes[cls] = _short("".join(_text_of(base) for base in cls.__mro__ if _is_own(base)))
    return _codes[cls]


def _is_own(cls: type) -> bool:
    """Whether a class is the user's: from a file of theirs, a script, or a notebook."""
    return _is_module_of_theirs(cls.__module__)


def _is_module_of_theirs(name: str | None) -> bool:
    file = getattr(sys.modules.get(name or ""), "__file__", None)
    return name == "__main__" or (file is not None and not is_library(file))


def _text_of(cls: type) -> str:
    try:
        if cls.__module__ == "__main__":
            return inspect.getsource(cls)
    except (OSError, TypeError):  # typed in, or made by code: its methods are known all the same
        return ""
    return _text_with_imports(sys.modules[cls.__module__])


def _text_with_imports(module: ModuleType) -> str:
    """The text of a module, and of those of the user's that it imports; nothing of libraries."""
    texts: dict[str, str] = {}
    waiting = [module]
    while waiting:
        each = waiting.pop()
        name, file = each.__name__, getattr(each, "__file__", None)
        if name in texts or name == "__main__" or file is None or is_library(file):
            continue
        try:
            texts[name] = Path(file).read_text()
        except (OSError, ValueError):  # compiled, or gone
            texts[name] = ""
        for value in vars(each).values():
            if isinstance(value, ModuleType):
                waiting.append(value)
            elif isinstance(value, FunctionType | type) and value.__module__ in sys.modules:
                waiting.append(sys.modules[value.__module__])
    return "".join(texts[name] for name in sorted(texts))
