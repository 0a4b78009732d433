"""Where parts come from besides presets and importable classes.

``mynet.py:MyNet`` is a class, or a function that makes a module, of a file; ``timm:NAME``,
``torchvision:NAME`` and ``robustbench:NAME`` are networks of others' collections; the name of a
folder or of a table is a data set.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from robusttrain.config import presets
from robusttrain.config.classes import IN_FILE, declare, importable, resolve, to_be_filled
from robusttrain.core.errors import UserError
from robusttrain.data.table import SEPARATORS

Node = dict[str, Any]

_log = logging.getLogger(__name__)

#: Collections of networks: the class that wraps them, and arguments besides the name.
ZOOS: dict[str, tuple[str, Node]] = {
    "timm": ("robusttrain.models.TimmClassifier", {}),
    "torchvision": ("robusttrain.models.TorchvisionClassifier", {}),
    "robustbench": ("robusttrain.models.RobustBenchClassifier", {}),
}
#: What makes such a network take trained weights, for those who want them.
TRAINED: dict[str, Node] = {
    "timm": {"pretrained": True},
    "torchvision": {"weights": "DEFAULT"},
    "robustbench": {},
}
_ZOO = re.compile(rf"({'|'.join(ZOOS)}):(.+)")
_CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.\w+)+")
#: A function of a collection that makes one of its networks.
_FUNCTION = re.compile(r"(timm|torchvision)\.models\.(?:\w+\.)*([a-z]\w*)")


def from_elsewhere(kind: str, value: object) -> bool:
    """Whether a value names a part that is neither a preset's nor an importable class's."""
    if not isinstance(value, str):
        return False
    if IN_FILE.fullmatch(value):
        return True
    if kind == "model":
        return _ZOO.fullmatch(value) is not None or _function(value) is not None
    return kind == "data" and (_is_table(value) or _is_folder(value))


def is_class_path(value: str) -> bool:
    """Whether a value can only be the class path of a part: it has dots, and is no YAML file."""
    return _CLASS_PATH.fullmatch(value) is not None and not value.endswith((".yaml", ".yml"))


def node_of(kind: str, value: str) -> Node:
    """The node of a part from elsewhere.

    Raises:
        UserError: a file that cannot be loaded.
    """
    if IN_FILE.fullmatch(value) or value.endswith(".py"):
        return checked_node({"class_path": value})
    if kind == "data":
        kind = "table" if _is_table(value) else "imagefolder"
        node: Node = presets.read("data", kind)["data"]
        return {**node, "init_args": {**node.get("init_args", {}), "root": value}}
    if (match := _ZOO.fullmatch(value)) is not None:
        class_path, arguments = ZOOS[match[1]]
        return {"class_path": class_path, "init_args": {"name": match[2], **arguments}}
    return checked_node({"class_path": value})


def said_by_name(kind: str, value: str) -> tuple[str, str] | None:
    """The argument that the name of a part from elsewhere gives, and its value: the ``root`` of a
    folder or table, the ``name`` of a collection's network. None for other values.
    """
    if kind == "data" and not IN_FILE.fullmatch(value) and not presets.named(kind, value):
        return ("root", value) if _is_table(value) or Path(value).is_dir() else None
    match = _ZOO.fullmatch(value) if kind == "model" else None
    return ("name", match[2]) if match else None


def trained_node(value: str) -> Node | None:
    """The node of a network of a collection, with its trained weights; None for other values."""
    match = _ZOO.fullmatch(value)
    if match is None:
        return None
    node = node_of("model", value)
    return {**node, "init_args": {**node["init_args"], **TRAINED[match[1]]}}


def checked_node(node: Node) -> Node:
    """A node whose class can be imported under its class path.

    A function of a collection's becomes the network of that name with its own normalisation, and
    that is said.

    Raises:
        UserError: it cannot be imported; the nearest name is suggested.
    """
    class_path = node["class_path"]
    if (function := _function(class_path)) is not None:
        zoo, name = function
        _log.info("%s is taken as %s:%s, with its own normalisation inside", class_path, zoo, name)
        given = node.get("init_args") or {}
        return {"class_path": ZOOS[zoo][0], "init_args": {"name": name, **given}}
    if "." not in class_path:  # a short name, which jsonargparse knows
        return node
    if class_path.endswith(".py"):
        raise UserError(f"{class_path}: name the class in it: {class_path}:NAME")
    maker = resolve(class_path)
    if lacks := ", ".join(sorted(getattr(maker, "__abstractmethods__", ()))):
        raise UserError(f"class {class_path!r} cannot be built: it has to define {lacks}")
    declare(maker)
    checked = {**node, "class_path": importable(class_path)}
    if missing := to_be_filled(maker):
        checked["init_args"] = {**missing, **(node.get("init_args") or {})}
    return checked


def checked_nodes(value: Any) -> Any:
    """`checked_node` of all nodes inside of a configuration."""
    if isinstance(value, list):
        return [checked_nodes(item) for item in value]
    if not isinstance(value, dict):
        return value
    value = {key: checked_nodes(item) for key, item in value.items()}
    return checked_node(value) if isinstance(value.get("class_path"), str) else value


def checked_value(value: Any) -> Any:
    """`checked_nodes` of what stands for a part; a class path stays one where it needs no more."""
    if not isinstance(value, str) or not _CLASS_PATH.fullmatch(value):
        return checked_nodes(value)
    node = checked_node({"class_path": value})
    return value if node == {"class_path": value} else node


def _function(value: str) -> tuple[str, str] | None:
    """The collection and the network's name, if a class path is a function that makes one."""
    match = _FUNCTION.fullmatch(value)
    if match is None:
        return None
    zoo, name = match[1], match[2]
    if zoo == "timm":
        import timm

        return (zoo, name) if timm.is_model(name) else None
    import torchvision

    return (zoo, name) if name in torchvision.models.list_models(torchvision.models) else None


def _is_table(value: str) -> bool:
    """Whether a data set's name is that of a table, there or not."""
    return Path(value).suffix.lower() in SEPARATORS and not Path(value).is_dir()


def _is_folder(value: str) -> bool:
    """Whether a data set's name is that of a folder, and not of a preset."""
    if not Path(value).is_dir():
        return False
    if presets.named("data", value):
        _log.info(
            "--data %s: the preset; the folder of that name would be --data ./%s", value, value
        )
        return False
    return True
