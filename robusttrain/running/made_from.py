"""What is found again by a key was made from the images and the code that were there then.

A key holds options and the path of the data. What lies at that path may have changed since, and so
may a file with a network of the user's own. So whatever is kept says what it was made from, and is
not taken for what would be made now.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from robusttrain.config.build import is_node
from robusttrain.config.checkpoints import read_recipe
from robusttrain.config.classes import resolve
from robusttrain.core.errors import UserError
from robusttrain.data import ImageData
from robusttrain.storage.files import hash_of_file, hash_of_json, hash_of_tensors
from robusttrain.storage.made_of import code_of
from robusttrain.storage.weights import read_metadata

#: Name of what a .safetensors file says of this.
MADE_FROM = "made_from"
#: Key of a checkpoint's recipe: `digests` of what it was trained on.
ORIGIN = "trained_on"
LABELS = "their number, or their labels"
#: Key of a checkpoint's recipe: `besides`, and the names in that.
BESIDE = "beside"
CODE, FILES, FURTHER, NETWORK = "code", "named_files", "further", "network"


def digests(data: ImageData) -> dict[str, str]:
    """What a checkpoint keeps of `ImageData.origin`; images are hashed in parts, since a hash takes
    a contiguous copy.
    """
    return _hashed(data.origin())


def _hashed(origin: Mapping[str, Tensor]) -> dict[str, str]:
    return {
        name: hash_of_json([hash_of_tensors({"": part}) for part in values.split(4096)])
        for name, values in origin.items()
    }


def other_images(recipe: Mapping[str, Any], origin: Mapping[str, str]) -> str:
    """What differs between the images that a checkpoint was trained on and these, in words; empty
    where nothing does, or nobody knows.
    """
    before = recipe.get(ORIGIN)
    if not isinstance(before, Mapping):
        return ""
    words = {"labels": LABELS, "files": "names or lengths of files"}
    words |= {"some": "the content of files", "pixels": "their content"}
    known = (key for key in words if key in before and key in origin)
    return next((words[key] for key in known if before[key] != origin[key]), "")


def besides(code: str, network: nn.Module, options: Any, data: ImageData) -> dict[str, Any]:
    """What a run rests on that neither its options nor its own images say.

    Args:
        code: fingerprint of the user's own (`own_code`).
        network: f_a, as it was built.
        options: of its objective. Files that they name are known by their content.
        data: with the images of ``--extra.root``, if there are any.
    """
    return {
        CODE: code,
        NETWORK: code_of_parts(network),
        FILES: _hashes(options),
        FURTHER: _hashed(data.further()),
    }


def _hashes(value: Any) -> dict[str, str]:
    """The hash of each file that a text under a value names, by its path."""
    return {path: hash_of_file(Path(path)) for path in sorted({*_files(value)})}


def code_of_parts(network: nn.Module) -> str:
    """`code_of` the classes of a network and of its parts."""
    kinds = {type(part) for part in network.modules()}
    return code_of(sorted(kinds, key=lambda kind: (kind.__module__, kind.__qualname__)))


def edited(checkpoint: str | Path, network: nn.Module) -> bool:
    """Whether the code of a checkpoint's network was edited since its training; no where the
    checkpoint does not say.
    """
    before = read_recipe(checkpoint).get(BESIDE)
    known = before.get(NETWORK) if isinstance(before, Mapping) else None
    return known is not None and known != code_of_parts(network)


def _files(value: Any) -> Iterator[str]:
    """The texts under a value that name a file."""
    if isinstance(value, str):
        with suppress(OSError, ValueError):  # too long for a name, or with a null in it
            if Path(value).is_file():
                yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _files(item)


def own_code(*nodes: Any) -> str:
    """`code_of` the classes that configuration nodes name, wherever they stand in them."""
    return code_of(resolve(path) for path in sorted({*_named(nodes)}))


def _named(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if is_node(value):
            yield value["class_path"]
        for item in value.values():
            yield from _named(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _named(item)


def made_from(data: ImageData, *nodes: Any) -> dict[str, str]:
    """What a training on these data would rest on besides its options, as its file keeps it.

    Args:
        data: set up or not; left as they are. Nothing is known of images that are not there.
        nodes: of what is trained, and of how. Files that they name are known by their content.
    """
    files = _hashes(nodes)
    named = {FILES: hash_of_json(files)} if files else {}
    return {**_images(data), CODE: own_code(*nodes), **named}


def _images(data: ImageData) -> dict[str, str]:
    if not data.trains:
        return {}
    data = data.alone()
    data.notes = []  # nobody asked for the training images to be looked at
    try:
        data.prepare_data()
        data.setup("fit")
    except UserError:
        return {}
    return digests(data)


def said_by(path: Path) -> dict[str, Any]:
    """What a file says that it was made from; empty where it says nothing."""
    try:
        if path.suffix != ".ckpt":
            said = json.loads(read_metadata(path).get(MADE_FROM, "{}"))
        else:
            said = read_recipe(path).get(ORIGIN, {})
    except (UserError, ValueError):  # whoever reads its weights says what is wrong with it
        return {}
    return said if isinstance(said, dict) else {}


def changed(said: Mapping[str, Any], now: Mapping[str, str]) -> str:
    """What has changed since, in words; empty where nothing has, or nobody knows."""
    if images := other_images({ORIGIN: said}, now):
        return f"the training images have changed since: {images}"
    words = {CODE: "its code has changed since", FILES: "a file that its options name has changed"}
    known = (key for key in words if key in said and key in now)
    return next((words[key] for key in known if said[key] != now[key]), "")


def place(path: Path, now: Callable[[], dict[str, str]]) -> tuple[Path, str]:
    """Where a training of this key is kept, done or not yet, and a line where its usual place is
    taken by one of other images or other code.

    Args:
        path: its usual place.
        now: asked only where a file is there: what it would be made from now.
    """
    if not path.is_file():
        return path, ""
    is_now = now()
    if not (why := changed(said_by(path), is_now)):
        return path, ""
    beside = path.with_stem(f"{path.stem}-{hash_of_json(is_now)[:8]}")
    return beside, f"{path} is not taken ({why})"
