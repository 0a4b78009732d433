"""The text of the user's own classes, of the files that they stand in, and of those of the user's
that these import.
"""

from __future__ import annotations

import ast
import inspect
import sys
from contextlib import suppress
from importlib.util import resolve_name
from pathlib import Path
from types import FunctionType, ModuleType
from weakref import WeakKeyDictionary

from robusttrain.storage.libraries import is_library

#: Of classes that were met: a network has few of them, and many parts.
_texts: WeakKeyDictionary[type, str] = WeakKeyDictionary()


def text_of(cls: type) -> str:
    """The text of a class, read once; "" where it has none."""
    if cls not in _texts:
        _texts[cls] = _read_text_of(cls)
    return _texts[cls]


def _read_text_of(cls: type) -> str:
    try:
        if cls.__module__ == "__main__":
            return inspect.getsource(cls)
    except (OSError, TypeError):  # typed in, or made by code: its methods are known all the same
        return ""
    return text_with_imports(sys.modules[cls.__module__])


def text_with_imports(module: ModuleType) -> str:
    """The text of a module, and of those of the user's that it imports; nothing of libraries."""
    texts: dict[str, str] = {}
    waiting = [module]
    while waiting:
        each = waiting.pop()
        name, file = each.__name__, getattr(each, "__file__", None)
        # A folder without __init__.py has no file.
        places = [file] if file is not None else [*getattr(each, "__path__", ())]
        if name in texts or name == "__main__" or not places or any(map(is_library, places)):
            continue
        try:
            texts[name] = Path(file).read_text() if file is not None else ""
        except (OSError, ValueError):  # compiled, or gone
            texts[name] = ""
        for value in [*vars(each).values()]:
            if isinstance(value, ModuleType):
                waiting.append(value)
            elif isinstance(value, FunctionType | type) and value.__module__ in sys.modules:
                waiting.append(sys.modules[value.__module__])
        waiting += _imported(texts[name], vars(each).get("__package__") or "")
    return "".join(texts[name] for name in sorted(texts))


def _imported(text: str, package: str) -> list[ModuleType]:
    """The modules that a text imports names from: a table says nothing of where it came from."""
    try:
        steps = [each for each in ast.walk(ast.parse(text)) if isinstance(each, ast.ImportFrom)]
    except (SyntaxError, ValueError):  # edited since it was imported
        return []
    found = []
    for step in steps:
        with suppress(ImportError):  # relative, and in no package
            name = resolve_name("." * step.level + (step.module or ""), package)
            found += [sys.modules[name]] if name in sys.modules else []
    return found
