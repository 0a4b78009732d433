"""Presets: small YAML files, found by name.

``configs/KIND/NAME.yaml`` is a partial configuration. Names are looked for in ``configs/`` of the
working directory first, then in the repository that this package stands in, then in the installed
package.

A preset may say ``like: NAME`` and then only what is different: the other preset of its kind is
read first, and this one's values are laid over it (`laid_over`). Whoever reads a preset gets the
whole; nobody else sees the key.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import yaml

from robusttrain.config import reading
from robusttrain.core.errors import UserError
from robusttrain.storage import packaged

#: Settings of a training that belong to its optimizer.
OF_OPTIMIZERS = ("learning_rate", "momentum", "nesterov", "weight_decay", "optimizer_options")
KINDS = ("data", "model", "defense", "training", "attack", "suite", "surrogate")


def folders() -> list[Path]:
    """The folders that presets are looked for in, first match first."""
    package = Path(__file__).parents[1]
    candidates = [Path("configs"), package.parent / "configs", package / "configs"]
    unique = {
        candidate.resolve(): candidate for candidate in reversed(candidates) if candidate.is_dir()
    }
    return list(reversed(unique.values()))


def names(kind: str) -> dict[str, Path]:
    """All presets of a kind, by name."""
    paths: dict[str, Path] = {}
    for folder in folders():
        for path in sorted((folder / kind).glob("*.yaml")):
            paths.setdefault(path.stem, path)
    return dict(sorted(paths.items()))


def named(kind: str, name: str) -> Path | None:
    """The file of the preset of this name, if there is one: as in `names`, without listing all."""
    file = f"{name}.yaml"
    if os.path.basename(file) != file:
        return None
    for folder in folders():
        path = folder / kind / file
        # Some file systems find pgd.yaml as PGD.yaml, too.
        if os.path.isfile(path) and file in os.listdir(path.parent):
            return path
    return None


def refuse_key(kind: str, name: str, option: str) -> None:
    """Raise UserError, with the right form, if a name is that of a preset and of a value inside
    it: ``--attack pgd.steps``, which would be taken for a class, and what follows for nothing.

    Args:
        kind: of the preset.
        name: what was given in place of a preset's name.
        option: what the user typed.
    """
    preset, _, key = name.partition(".")
    if (
        kind == "training"  # a value may be its objective's
        or name.endswith((".yaml", ".yml"))
        or not re.fullmatch(r"[a-z]\w*(\.\w+)*", key)
        or named(kind, name)
        or not named(kind, preset)
        or importlib.util.find_spec(preset) is not None  # --model torchvision.models.resnet18
    ):
        return
    meant = {"attack": f"{option}.{name}", "suite": f"--{key}"}.get(kind, f"{option}.{key}")
    raise UserError(
        f"{option} {name}: no such preset; to change {key} of {preset}: {option} {preset} {meant}"
        " VALUE"
    )


def refuse_several(kind: str, name: str, option: str) -> None:
    """Raise UserError, with the right form, if several presets stand where one does:
    ``--attack pgd,fgsm``.

    Args:
        kind: of the presets.
        name: what was given in place of a preset's name.
        option: what the user typed.
    """
    each = [part for part in re.split(r"[,\s]+", name) if part]
    if name in each or not each or not all(named(kind, part) for part in each):
        return
    form = " ".join(f"{option} {part}" for part in each)
    raise UserError(f"{option} {name}: takes one name, and is given again for each: {form}")


def find(kind: str, name: str, option: str | None = None) -> Path:
    """The file of a preset's name, or of a path to a YAML file; ``option`` is what the user typed,
    if not --kind.

    Raises:
        UserError: there is none; the nearest names are suggested.
    """
    option = option or f"--{kind}"
    refuse_key(kind, name, option)
    if kind in ("attack", "suite"):
        refuse_several(kind, name, option)
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UserError(f"{option} {name}: no such file")
        return Path(name)
    if path := named(kind, name):
        return path
    if name.endswith(".py"):
        raise UserError(f"{option} {name}: name the class in it: {name}:NAME")
    paths = names(kind)
    if kind == "model" and (trained := packaged.nearest(name)):
        several = option == "--models"
        instead = (
            f"--models {trained}" if several else f"--checkpoint {trained}, which brings its own"
        )
        raise UserError(f"{option} {name}: no such preset; did you mean {instead}?")
    near = difflib.get_close_matches(name, paths, n=2, cutoff=0.4)
    if kind == "data" and (folder := _nearest_folder(name)):
        near = [f"the folder {folder}", *near[:1]]
    there = [*paths, *packaged.names()] if option == "--models" else [*paths]
    hint = (
        f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(there) or 'none'}"
    )
    raise UserError(
        f"{option} {name}: no such preset; {hint} (--list shows all; a path to a YAML file works"
        " too)"
    )


def _nearest_folder(name: str) -> str | None:
    """The folder whose path is almost ``name``."""
    parent = Path(name).parent
    if not parent.is_dir():
        return None
    folders = {each.name for each in parent.iterdir() if each.is_dir()}
    near = difflib.get_close_matches(Path(name).name, folders, n=1, cutoff=0.7)
    return str(parent / near[0]) if near else None


def read(kind: str, name: str, option: str | None = None) -> dict[str, Any]:
    """The whole content of a preset; arguments as for ``find``.

    Raises:
        UserError: no such preset, a file that is no YAML mapping, or presets that are like each
            other in a circle.
    """
    return _whole(find(kind, name, option), f"{option or '--' + kind} {name}", kind)


def read_yaml(path: Path, option: str) -> dict[str, Any]:
    """The whole content of a YAML file that ``option`` named.

    A preset's kind, where it says ``like``, is that of the option, or of the folder that the file
    lies in.

    Raises:
        UserError: it cannot be read, is no mapping, or is like what is no preset.
    """
    named = (option.removeprefix("--"), path.absolute().parent.name)
    return _whole(path, option, next((kind for kind in named if kind in KINDS), None))


def laid_over(base: Any, value: Any) -> Any:
    """``value`` over ``base``: mappings key by key, whatever else as a whole, null too.

    A part of another class keeps none of the arguments that the base gives its own class, and a
    training by another optimizer none of the figures of the base's.
    """
    if not isinstance(base, dict) or not isinstance(value, dict):
        return value
    if "class_path" in value and value["class_path"] != base.get("class_path"):
        base = {key: item for key, item in base.items() if key != "init_args"}
    if "optimizer" in value and value["optimizer"] != base.get("optimizer", "sgd"):
        base = {key: item for key, item in base.items() if key not in OF_OPTIMIZERS}
    laid = {key: laid_over(base.get(key), item) for key, item in value.items()}
    return {**base, **laid}


def _whole(
    path: Path,
    option: str,
    kind: str | None,
    within: tuple[Path, ...] = (),
) -> dict[str, Any]:
    """The content of a file over that of the preset that it is like, if it is like any.

    Args:
        path: of the file.
        option: what the user typed, for error messages.
        kind: of the preset; None for a file that is none, which cannot be like one.
        within: the files that are like this one.
    """
    content = _mapping(path, option)
    if "like" not in content:
        return content
    name, where = content.pop("like"), f"{option}: {path}: like"
    if kind is None:
        raise UserError(f"{where}: only a preset can be like another, and this file is none")
    if not isinstance(name, str):
        raise UserError(f"{where} = {name!r}: must be a preset's name, or a path to a YAML file")
    within = (*within, path.resolve())
    other = _other(kind, name, path, where)
    if (base := other.resolve()) in within:
        circle = " -> ".join(item.stem for item in (*within[within.index(base) :], base))
        raise UserError(f"{where}: presets are like each other in a circle: {circle}")
    whole: dict[str, Any] = laid_over(_whole(other, option, kind, within), content)
    return whole


def _other(kind: str, name: str, path: Path, where: str) -> Path:
    """The file that the one at ``path`` is like.

    Beside it first: what lies in the working directory does not change what a preset of this
    repository means.
    """
    is_file = name.endswith((".yaml", ".yml"))
    if is_file or path.absolute().parent.name == kind:
        beside = path.parent / (name if is_file else f"{name}.yaml")
        if beside.is_file():
            return beside
    return find(kind, name, where)


def _mapping(path: Path, option: str) -> dict[str, Any]:
    try:
        content = reading.read(path.read_text())
    except reading.Twice as error:
        raise UserError(f"{option}: {path}: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(
            f"{option}: {path} cannot be read as YAML: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{option}: {path} must be a mapping of options to values")
    return content


def about(path: Path) -> str:
    """The first comment of a preset: what it is, in one line."""
    first = path.read_text().splitlines()[:1]
    return first[0].lstrip("# ") if first and first[0].startswith("#") else ""
