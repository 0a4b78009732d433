"""YAML as all options, presets and configurations are read: numbers are decimal, and no key stands
twice in one mapping.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from robusttrain.core.errors import OptionError

#: What `yaml.safe_load` takes, in C where it was compiled: eight times as fast on presets.
_SAFE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: Numbers of YAML 1.2's core schema, in decimal. YAML 1.1, which PyYAML reads, takes 010 for 8,
#: 1:30 for 90, and 1e-2 for a text.
NUMBERS = {
    "int": r"[-+]?[0-9]+",
    "float": r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
}
_OTHER = re.compile(
    r"[-+]?(?:0[xb][0-9a-fA-F_]+|[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?|[0-9]+_[0-9_.]*)"
)
_TAG = "tag:yaml.org,2002:"


class Twice(yaml.YAMLError):
    """A key that stands twice in one mapping: YAML would take the last and say nothing."""


class LOADER(_SAFE):  # type: ignore[misc]
    """Reads presets and configurations.

    Raises:
        Twice: a key stands twice in one mapping.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        lines: dict[str, int] = {}
        # Before keys that "<<" takes over are among them: those may be given anew.
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise Twice(f"{key.value} stands twice (lines {lines[key.value]} and {line})")
            lines[key.value] = line
        return super().construct_mapping(node, deep)

    def whole(self, node: yaml.ScalarNode) -> int:
        """A whole number, decimal whatever it begins with."""
        return int(self.construct_scalar(node))


LOADER.yaml_implicit_resolvers = {
    first: [
        (tag, form) for tag, form in forms if tag.removeprefix(_TAG) not in (*NUMBERS, "timestamp")
    ]
    for first, forms in _SAFE.yaml_implicit_resolvers.items()
}
for _name, _form in NUMBERS.items():
    LOADER.add_implicit_resolver(f"{_TAG}{_name}", re.compile(f"(?:{_form})$"), [*"-+.0123456789"])
LOADER.add_constructor(f"{_TAG}int", LOADER.whole)


def read(text: str) -> Any:
    """What a text says in YAML.

    Raises:
        yaml.YAMLError: it is none; `Twice`, a kind of it.
    """
    return yaml.load(text, LOADER)


def refuse_other_numbers(value: Any, option: str) -> None:
    """Refuse text that is a number in YAML 1.1 alone, such as 1:30: jsonargparse would still take
    it for one.

    Args:
        value: text, or a list or mapping that may hold some.
        option: what the user typed.

    Raises:
        OptionError: it is such a text, or holds one.
    """
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in pairs:
            refuse_other_numbers(item, f"{option}.{key}")
    elif isinstance(value, str) and _OTHER.fullmatch(value):
        raise OptionError(option, value, "must be a decimal number, such as 90 or 8/255")
