"""Classes by their names: importable ones, and those of a file, ``mynet.py:MyNet``.

In plans, checkpoints and results a class of a file is named by the file's full path, so that it can
be found from any folder. jsonargparse only takes what can be imported: `importable` loads the file
as a module and names the class in it, `recorded` is the way back.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser
from torch import nn

from robusttrain.core.errors import UserError, first_line

#: How a class, or a function that makes a module, of a file is named.
IN_FILE = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)")
#: Arguments of networks that follow the data set.
FACTS = ("num_classes", "in_channels", "image_size")
#: What stands for such an argument that has no default, until the data are there: no number of
#: classes, channels or pixels.
UNFILLED = 0
#: Modules whose classes are plain values: a string in their place is one, and names no class.
PLAIN = ("builtins", "collections.abc", "pathlib", "types", "typing")
#: Packages of ours whose classes may be named without their module.
OURS = ("attacks", "data", "defenses", "models", "training")
#: Files that were loaded, by the names of their modules.
_files: dict[str, Path] = {}


def look_in(folder: Path) -> None:
    """Let modules of a folder be found, after all that is installed."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def load_file(path: Path) -> str:
    """Run a file as a module, once; the module's name. Modules beside it are found from then on.

    Raises:
        UserError: no such file, or one that cannot be run.
    """
    said, path = path, path.resolve()
    if not path.is_file():
        beside = sorted(each.name for each in path.parent.glob("*.py"))
        near = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.6)
        hint = f"; did you mean {said.with_name(near[0])}?" if near else ""
        raise UserError(f"{path}: there is no such file{hint}")
    for name, loaded in _files.items():
        if loaded == path:
            return name
    look_in(path.parent)
    name = path.stem
    if not _is_free(name, path):  # another module's, or no name at all
        name = re.sub(r"\W", "_", name)  # "my-net.py", "my.net.py": no part of a class path
        name = f"{name}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # a name that ends in .py has a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"{path} cannot be imported: {_told(error)}") from error
    _files[name] = path
    return name


def _is_free(name: str, path: Path) -> bool:
    """Whether a module may have that name: it is one, and belongs to nobody else."""
    if not name.isidentifier() or name in sys.modules:
        return False
    spec = importlib.util.find_spec(name)
    return spec is None or (spec.origin is not None and Path(spec.origin).resolve() == path)


def importable(class_path: str) -> str:
    """A class path that can be imported: for a class of a file, its name in the loaded module.

    Raises:
        UserError: the file cannot be loaded.
    """
    match = IN_FILE.fullmatch(class_path)
    return f"{load_file(Path(match['file']))}.{match['name']}" if match else class_path


def recorded(class_path: str) -> str:
    """A class path as plans and checkpoints hold it: for a class of a file, the file's full path
    and the name.
    """
    if match := IN_FILE.fullmatch(class_path):
        return f"{Path(match['file']).resolve()}:{match['name']}"
    module, _, name = class_path.rpartition(".")
    return f"{_files[module]}:{name}" if module in _files else class_path


def home(class_path: str) -> str:
    """What a user trusts when he trusts a class: its package, or the name of its file."""
    match = IN_FILE.fullmatch(class_path)
    return Path(match["file"]).name if match else class_path.split(".")[0]


def trusted(class_path: str, trust: Sequence[str]) -> str:
    """The class path, if the user trusts it; of a file, the one that he named himself: where a
    checkpoint says that it lies is the word of a stranger.

    Args:
        class_path: of a file from elsewhere.
        trust: packages, and paths of Python files.

    Raises:
        UserError: not trusted, or a trusted file that is not there; nothing was imported.
    """
    class_path = with_module(class_path)
    own, match = home(class_path), IN_FILE.fullmatch(class_path)
    if match is None:
        if own in trust:
            return class_path
        raise UserError(
            f"class {class_path!r} comes from a package that is not trusted; if you know it, name"
            f" the package: --trust {own} (robusttrain.load(..., trust=[...]))"
        )
    named = next((Path(each) for each in trust if Path(each).name == own), None)
    if named is None:
        raise UserError(
            f"class {class_path!r} comes from a file that is not trusted, and would be run; if you"
            f" know it, name the file: --trust {shlex.quote(match['file'])} (robusttrain.load(...,"
            " trust=[...]))"
        )
    if not named.is_file():
        raise UserError(
            f"--trust {named}: there is no such file here; {match['name']} came from"
            f" {match['file']}: give the path where the file lies now"
        )
    return f"{named.resolve()}:{match['name']}"


def resolve(class_path: str, trust: Sequence[str] | None = None) -> Callable[..., Any]:
    """The class of that name, or the function that makes a module.

    Args:
        class_path: "package.module.Class", "file.py:Class", or a class of ours without its module.
        trust: packages and files from which classes may come; None trusts all.

    Raises:
        UserError: not trusted; no such class, with the nearest name; or neither class nor function.
    """
    if trust is not None:
        class_path = trusted(class_path, trust)
    name = importable(with_module(class_path))
    module_name, _, last = name.rpartition(".")
    module = _import(class_path, module_name) if module_name else None
    named = getattr(module, last, None)
    if named is None or isinstance(named, ModuleType):
        choices = [key for key, item in vars(module).items() if callable(item)] if module else []
        if isinstance(named, ModuleType):
            raise UserError(f"{class_path!r} is not a class: it is a module")
        raise UserError(
            f"class {class_path!r} cannot be imported: there is no {last} in"
            f" {module_name or 'it'}{_near(last, choices, class_path)}"
        )
    if not inspect.isclass(named) and not inspect.isfunction(named):
        raise UserError(f"{class_path!r} is not a class, and no function that makes a module")
    result: Callable[..., Any] = named
    return result


def with_module(class_path: str) -> str:
    """The class path of a class of ours that is named without its module, as jsonargparse takes
    it: ``L2`` is ``robusttrain.attacks.L2``. Other names are as they were.
    """
    if not class_path.isidentifier():
        return class_path
    places = [f"robusttrain.{place}" for place in OURS]
    found = [
        place
        for place in places
        if inspect.isclass(getattr(importlib.import_module(place), class_path, None))
    ]
    return f"{found[0]}.{class_path}" if len(found) == 1 else class_path


def parts_of(class_path: str) -> set[str]:
    """The arguments of a class that hold objects; none of one that cannot be looked at."""
    try:
        maker = resolve(class_path)
        hints = get_type_hints(maker.__init__ if inspect.isclass(maker) else maker)  # type: ignore[misc]
    except (UserError, NameError, TypeError, AttributeError):
        return set()
    return {name for name, hint in hints.items() if name != "return" and _holds_objects(hint)}


def _holds_objects(hint: Any) -> bool:
    """Whether an annotation names a class that is no plain value's, and no text either."""
    named = [*classes_in(hint)]
    objects = [each for each in named if inspect.isclass(each) and each.__module__ not in PLAIN]
    return bool(objects) and str not in named


def classes_in(hint: Any) -> Iterator[Any]:
    """The classes that an annotation names, inside of unions and lists as well."""
    if get_origin(hint) is None:
        yield hint
    for inner in get_args(hint):
        yield from classes_in(inner)


def _import(class_path: str, name: str) -> ModuleType:
    """A module, package by package, so that what is not there has a name."""
    said = f"class {class_path!r} cannot be imported"
    parts = name.split(".")
    module = None
    for count, part in enumerate(parts, start=1):
        path = ".".join(parts[:count])
        try:
            module = importlib.import_module(path)
        except ModuleNotFoundError as error:
            if error.name != path:
                raise UserError(f"{said}: {path} needs {error.name}, which is not there") from error
            places = getattr(module, "__path__", []) if count > 1 else None
            choices = [each.name for each in pkgutil.iter_modules(places)]
            raise UserError(
                f"{said}: there is no module {path}{_near(part, choices, class_path)}"
            ) from error
        except Exception as error:
            raise UserError(f"{said}: {path}: {_told(error)}") from error
    assert module is not None
    return module


def _near(part: str, choices: Sequence[str], class_path: str) -> str:
    """A hint at the class path with the nearest name in place of the wrong one."""
    near = difflib.get_close_matches(part, choices, n=1, cutoff=0.6)
    if not near:
        return ""
    right = re.sub(rf"(?<!\w){re.escape(part)}(?!\w)", near[0], class_path)
    return f"; did you mean {right}?"


def _told(error: Exception) -> str:
    """An error of somebody's code in one line."""
    return f"{type(error).__name__}: {first_line(error)}"


def makes(maker: Callable[..., Any], kind: type) -> bool:
    """Whether a class is of a kind; for a function, whether it may make such a thing: one without
    an annotation is only asked when it is called.
    """
    if isinstance(maker, type):
        return issubclass(maker, kind)
    result = returned(maker)
    return result is None or (isinstance(result, type) and issubclass(result, kind))


def returned(maker: Callable[..., Any]) -> Any:
    """What a function says that it returns; None where it says nothing that can be read."""
    try:
        return get_type_hints(maker).get("return")
    except Exception:  # noqa: BLE001 - annotations are anybody's code
        return None


def declare(maker: Callable[..., Any]) -> None:
    """Let what its author did not annotate pass jsonargparse, which asks: a function makes a
    module, and an argument is anything.
    """
    asked = maker
    if isinstance(maker, type):
        asked = vars(maker).get("__init__", declare)  # an inherited one is another class's matter
    elif "return" not in maker.__annotations__:
        maker.__annotations__["return"] = nn.Module
    if asked is declare or not inspect.isfunction(asked):
        return
    for name, parameter in inspect.signature(asked).parameters.items():
        required = parameter.default is parameter.empty and name != "self"
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if required and named and parameter.annotation is parameter.empty:
            asked.__annotations__[name] = Any


def to_be_filled(maker: Callable[..., Any]) -> dict[str, int]:
    """The facts of a data set that a class or function wants to be given, each with `UNFILLED`."""
    empty = inspect.Parameter.empty
    return {
        name: UNFILLED
        for name, value in defaults_of(maker).items()
        if name in FACTS and value is empty
    }


def defaults_of(maker: Callable[..., Any]) -> dict[str, Any]:
    """Arguments of a class or function with their defaults, those that ``**kwargs`` hands on to
    others as well; `inspect.Parameter.empty` where there is none.
    """
    parameters = inspect.signature(maker).parameters
    own = {name: each.default for name, each in parameters.items()}
    if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return own
    parser = ArgumentParser(exit_on_error=False)
    if inspect.isclass(maker):
        parser.add_class_arguments(maker, fail_untyped=False)
    else:
        parser.add_function_arguments(maker, fail_untyped=False)
    handed = {key: value for key, value in parser.get_defaults().items() if "." not in key}
    return {**handed, **own}
