"""What a model or an attack does that weights and options do not say: numbers in attributes,
tensors outside of a module's state, functions and what they reach, hooks, and the code of classes
that no installed package brings.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import _lru_cache_wrapper, partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

from robusttrain.core.counting import Counting
from robusttrain.storage.bytecode import names_of, written
from robusttrain.storage.files import hash_of_tensors, hash_of_weights
from robusttrain.storage.libraries import is_theirs
from robusttrain.storage.own_text import text_of, text_with_imports

#: Attributes that every module has, or that torch.compile numbers its own with.
_OF_MODULES = {*vars(nn.Module()), "training", "_torchdynamo_wrapper_id"}
#: Of these, the ones that hold what changes a forward pass; their keys count through the process.
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
#: Containers and functions around a function, beyond which nothing that it reaches is told: the
#: stack ends somewhere, and the files' text says it, too.
DEEPEST = 100
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


def code_of(makers: Iterable[Callable[..., Any]]) -> str:
    """Sixteen hexadecimal digits that differ where the user's own code of some classes, or of
    functions that make modules, does; "" where all are of libraries.
    """
    seen: set[int] = set()
    own = [each for each in makers if is_theirs(each.__module__)]
    return _short("".join(_told(each, seen, ()) for each in own)) if own else ""


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
    """What a value holds, the same in every process: plain values as they are, of anything else
    sixteen hexadecimal digits, since it may hold secrets; nothing where nothing is known.
    """
    text = _told(value, set(), ())
    return text if isinstance(value, _PLAIN) or not text else _short(text)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def _lines(module: nn.Module, seen: set[int]) -> Iterator[str]:
    """``seen``: modules and objects that were told already; the module holds them, so that no other
    object takes their place in memory meanwhile.
    """
    for name, part in module.named_modules():
        if id(part) in seen:
            continue
        seen.add(id(part))
        cls, buffers = type(part), dict(part.named_buffers(recurse=False))
        passed_over = _OF_MODULES | {*(part.counted if isinstance(part, Counting) else ())}
        yield f"{name}: {cls.__module__}.{cls.__qualname__} {_class(cls, seen)}\n"
        yield hash_of_tensors({each: buffers[each] for each in part._non_persistent_buffers_set})
        for attribute, value in sorted(vars(part).items()):
            if attribute not in passed_over:
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
        if value.dtype.hasobject:  # whose bytes are addresses
            return _told(value.tolist(), seen, holders)
        return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if id(value) in seen or id(value) in holders:
        return ""
    if isinstance(value, nn.Module):  # one that its holder does not know as a part
        return hash_of_weights(value) + "".join(_lines(value, seen))
    inner = (*holders, id(value))
    if isinstance(value, Mapping):
        return "".join(f"{_key(key)}: {_told(item, seen, inner)}, " for key, item in value.items())
    if isinstance(value, list | tuple):
        return "".join(f"{_told(item, seen, inner)}, " for item in value)
    if isinstance(value, set | frozenset):  # whose order is another in every process
        return f"{sorted(_told(item, set(seen), inner) for item in value)}"
    if isinstance(value, MethodType):
        return _told([value.__func__, value.__self__], seen, inner)
    if isinstance(value, partial):
        return _told([value.func, value.args, value.keywords], seen, inner)
    if isinstance(value, staticmethod | classmethod):
        return _told(value.__func__, seen, inner)
    if isinstance(value, property):
        return _told([value.fget], seen, inner)
    if isinstance(value, FunctionType):
        return _function(value, seen, inner)
    if isinstance(value, type):
        return _class(value, seen)
    if isinstance(value, ModuleType):
        return _text_once(value, seen)
    if _is_own(type(value)):
        seen.add(id(value))
        content = _told({**_slots(value), **getattr(value, "__dict__", {})}, seen, inner)
        return f"{type(value).__qualname__} {_class(type(value), seen)} {content}"
    if is_dataclass(value):
        parts = {each.name: getattr(value, each.name, None) for each in fields(value)}
        return f"{type(value).__qualname__} {_told(parts, seen, inner)}"
    if isinstance(value, _lru_cache_wrapper):
        return _told(value.__wrapped__, seen, inner)
    return ""


def _key(key: Any) -> str:
    """A key of a mapping; the representation of others may hold an address."""
    if isinstance(key, FunctionType | type):
        return f"{key.__module__}.{key.__qualname__}"
    if isinstance(key, tuple):
        return f"({', '.join(map(_key, key))})"
    return repr(key) if isinstance(key, _PLAIN) else type(key).__qualname__


def _slots(value: Any) -> dict[str, Any]:
    """What an object holds in slots, by name."""
    named = [vars(base).get("__slots__", ()) for base in type(value).__mro__]
    names = [name for each in named for name in ([each] if isinstance(each, str) else each)]
    return {name: getattr(value, name, None) for name in names if not name.startswith("__")}


def _function(function: FunctionType, seen: set[int], holders: tuple[int, ...]) -> str:
    """What a function does; of the user's also their file, and what it takes from around it."""
    held = [_content(cell) for cell in function.__closure__ or ()]
    parts: list[Any] = [function.__defaults__, function.__kwdefaults__]
    module = function.__module__
    if not is_theirs(module):
        return f"{_code(function.__code__)} {_told([*parts, held], seen, holders)}"
    seen.add(id(function))  # each once: they may call each other
    text = "" if module == "__main__" else _text_once(sys.modules[module], seen)
    parts += map(_lasting, held)
    if len(holders) < DEEPEST:
        parts.append(_around(function))
    return f"{_code(function.__code__)} {_told(parts, seen, holders)} {text}"


def _around(function: FunctionType) -> dict[str, Any]:
    """What a function takes from its module, by name: other functions, networks, numbers, tables;
    nothing that it assigns itself, such as a count, nor what its module writes to a container.
    """
    looked_up, assigned = names_of(function.__code__)
    around = function.__globals__
    return {
        name: _lasting(around[name]) if written(name, around) else around[name]
        for name in dict.fromkeys(looked_up)
        if name in around and name not in assigned
    }


def _lasting(value: Any) -> Any:
    """A value around a function without what passes may put into it: of a list or mapping, such as
    a cache or a log, the functions, classes and networks alone.
    """
    kinds = (nn.Module, FunctionType, MethodType, partial, type)
    if isinstance(value, Mapping):
        return {key: item for key, item in value.items() if isinstance(item, kinds)}
    if isinstance(value, list | set):
        return [item for item in value if isinstance(item, kinds)]
    return value


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _code(code: CodeType) -> str:
    """What a function does, whatever file it stands in."""
    inner = [
        _code(each) if isinstance(each, CodeType) else _told(each, set(), ())
        for each in code.co_consts
    ]
    return f"{code.co_code.hex()} {inner} {code.co_names}"


def _class(cls: type, seen: set[int]) -> str:
    """A fingerprint of the text of a class and its bases, nothing of libraries; and what its
    methods reach outside of that text.

    The text is that of the whole file, whose functions the class may call, and of the user's files
    that this one imports; of the script that runs, the class alone, since a script is edited
    between two runs.
    """
    own = [base for base in cls.__mro__ if _is_own(base)]
    code = _short("".join(map(text_of, own)))
    if not own or id(cls) in seen:
        return code
    seen.add(id(cls))
    held = [item for base in own for item in _content_of(base)]
    return f"{code} {_told(held, seen, ())}"


def _content_of(cls: type) -> list[Any]:
    """What a class holds that its text does not say: what its methods reach, networks; and where it
    has no text, plain values.
    """
    kinds: tuple[type, ...] = (FunctionType, staticmethod, classmethod, property, nn.Module)
    if not text_of(cls):
        kinds += _PLAIN
    return [
        item
        for name, item in vars(cls).items()
        if isinstance(item, FunctionType) or (isinstance(item, kinds) and name[:2] != "__")
    ]


def _is_own(cls: type) -> bool:
    """Whether a class is the user's: from a file of theirs, a script, or a notebook."""
    return is_theirs(cls.__module__)


def _text_once(module: ModuleType, seen: set[int]) -> str:
    """The fingerprint of `text_with_imports`, once."""
    if id(module) in seen:
        return ""
    seen.add(id(module))
    return _short(text_with_imports(module))
