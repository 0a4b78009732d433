"""The front desk: what can be answered at once, before torch is loaded, which takes seconds."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from textwrap import fill

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from robusttrain.config import presets
from robusttrain.core.errors import UserError
from robusttrain.core.typed import command
from robusttrain.storage import packaged

#: What each command is for.
COMMANDS = {
    "train": "train a classifier, behind a defense or adversarially",
    "evaluate": "attack a classifier, and report what is left of it",
    "report": "write the report of an evaluation again, and say its verdict",
    "compare": "compare evaluations of the same images, image by image",
    "list": "list presets (attacks, defenses, networks, data, ...) and trained models",
}
#: Examples, by command; {} stands for how it is typed.
EXAMPLES = {
    "train": (
        "{} --defense advtransform",
        "{} --training adversarial --data cifar10",
        "{} --training trades --model resnet_small --trainer.max_epochs 30",
        "{} --defense advtransform --defense.radius 0.1",
        "{} --config mine.yaml",
    ),
    "evaluate": (
        "{} --attack bpda-eot",
        "{} --suite worst-case --epsilon 8/255 --images 1000",
        "{} --model mynet.py:MyNet --weights w.pth --data myfolder --suite quick",
        "{} --attack pgd --attack.steps 200 --output results/pgd-200",
        "{} --again results/pgd-200",
    ),
    "report": ("{} results/newest", "{} results/one results/two"),
    "compare": ("{} results/one results/two", "{} results/one results/two --output page.html"),
    "list": ("{}", "{} attack suite", "{} models"),
}
#: Options in users' words: what they are for, and which presets' names they take.
OPTIONS = {
    "train": (
        (
            "what is trained",
            "--model NAME, --defense NAME, --data NAME",
            ("model", "defense", "data"),
        ),
        (
            "how",
            "--training NAME, --optimizer adamw, --schedule cosine, --trainer.max_epochs N",
            ("training",),
        ),
        ("attacked as it trains", "--robust.attacks NAME, --robust.every N", ()),
        ("where it goes", "--checkpoints DIR, --logs DIR, --name NAME, --ckpt_path last", ()),
        ("its curves", "--logger tensorboard, csv, wandb, mlflow; several with commas", ()),
        ("what it would cost", "--estimate", ()),
    ),
    "evaluate": (
        (
            "what is attacked",
            "--checkpoint FILE|NAME or --model NAME --weights FILE, --defense NAME; --data NAME",
            ("model", "defense", "data"),
        ),
        ("by what", "--suite NAME, --attack NAME (repeatable)", ("suite", "attack")),
        (
            "how hard",
            "--epsilon E, --attack.threat L2, --images N, --draws N, --attack.KEY VALUE,"
            " --curve 0,E,E",
            (),
        ),
        ("what is kept", "--output DIR, --save_images true, --export png", ()),
        ("how it is checked", "--audit_images N, --audit false, --strict true", ()),
        ("what it would cost", "--estimate", ()),
    ),
    "report": (("what is written", "report.html beside the results.json of each folder", ()),),
    "compare": (
        ("what is compared", "each folder with the first one: the same images and attacks", ()),
        ("where it goes", "--output FILE; else comparison.html in the last folder", ()),
    ),
    "list": (
        ("kinds", ", ".join(presets.KINDS), ()),
        ("besides", "models: trained ones, which come with the package", ()),
    ),
}
#: What `list` calls the models that come with the package, beside the kinds of presets.
TRAINED = "models"
#: Commands whose options are too many for one screen.
LONG = ("train", "evaluate")
#: Options whose values are files that have to be there, and options beside which another line says
#: more than that they are not.
FILES = {"--config": (), "--checkpoint": ("--model",), "--weights": ("--checkpoint", "--defense")}

#: Options that take a preset's name.
NAMED = ("attack", "suite", "training", "model", "data", "defense")


def help_for(name: str | None) -> str:
    """Help that fits on one screen: of a command, or of all."""
    width = min(100, shutil.get_terminal_size().columns)
    if name is None:
        rows = [f"  {each:<10}{about}" for each, about in COMMANDS.items()]
        return "\n".join(
            [
                "robusttrain trains robust image classifiers and attacks them honestly.",
                "",
                *rows,
                "",
                "  robusttrain COMMAND --help says more of each.",
            ]
        )
    lines = [f"{command(name)}: {COMMANDS[name]}", ""]
    lines += [f"  {example.format(command(name))}" for example in EXAMPLES[name]]
    for what, options, kinds in OPTIONS[name]:
        lines += ["", f"{what}: {options}"]
        lines += [_names(kind, width) for kind in kinds]
    if name in LONG:
        every = f"{command(name)} --help all lists every option; --list says what presets are."
        lines += ["", every]
    return "\n".join(lines)


def _names(kind: str, width: int) -> str:
    """The names of a kind's presets; of the many attacks those that are asked for most."""
    names = [*presets.names(kind)]
    if kind == "attack":
        first = ("pgd", "apgd-ce", "autoattack", "square", "bpda-i", "bpda-eot", "eot")
        names = [*(name for name in first if name in names), f"and {len(names) - len(first)} more"]
    return fill(
        f"{kind}: {', '.join(names)}",
        width,
        initial_indent="  ",
        subsequent_indent="    ",
        break_on_hyphens=False,
    )


def list_presets(kinds: Sequence[str] = ()) -> None:
    """All presets with their first comment, by kind, and the models that come with the package;
    surrogates are named in attacks alone.

    Raises:
        UserError: no such kind.
    """
    for kind in kinds:
        if kind not in (*presets.KINDS, TRAINED):
            raise UserError(f"list {kind}: there are {', '.join((*presets.KINDS, TRAINED))}")
    shown = Table(box=None, pad_edge=False)
    shown.add_column("option")
    shown.add_column("preset", style="bold")
    shown.add_column("what it is")
    options = {"surrogate": "", TRAINED: "--checkpoint"}
    for kind in kinds or (*presets.KINDS, TRAINED):
        listed = packaged.names() if kind == TRAINED else presets.names(kind)
        for name, path in listed.items():
            option = options.get(kind, f"--{kind}")
            shown.add_row(option, name, escape(presets.about(path)))
    # Where nobody looks at a terminal, each row stays one line, for grep and the like.
    Console(width=None if sys.stdout.isatty() else 1000).print(shown)


def refuse_at_once(arguments: Sequence[str], name: str = "") -> None:
    """Raise UserError for a name or a file that does not exist, as far as that can be told so
    early; all else is left to the command.

    Args:
        arguments: of the command.
        name: of the command.
    """
    given = [*_pairs(arguments)]
    options = {option for option, _ in given}
    for option, value in given:
        if not value.strip():
            raise UserError(
                f"{option} = {value!r}: is empty, as of a variable that is not set: give a value,"
                " or leave it out"
            )
        kind = option.removeprefix("--")
        alone = option in FILES and not options & {*FILES[option]}
        if alone and (option != "--weights" or "--model" in options) and not _is_there(value):
            raise UserError(f"{option} = {value!r}: there is no such file{packaged.hint(value)}")
        if kind in NAMED and _is_name(value) and not Path(value).exists():
            if name == "train" and kind == "model" and not presets.named(kind, value):
                refuse_trained(value)
            presets.find(kind, value)


def refuse_trained(value: str) -> None:
    """Raise UserError for a trained model in the place of a network to train."""
    if (trained := packaged.nearest(value)) is not None:
        raise UserError(
            f"--model {value}: no such network; {trained} is a trained model, from which no"
            f" training begins: {command('evaluate')} --checkpoint {trained} attacks it"
        )


#: Options that may stand several times; of all others the last one counts.
REPEATABLE = {*("--attack", "--suite", "--trust", "--robust.attacks", "--config")}


def said_again(arguments: Sequence[str]) -> list[str]:
    """A line for each option that stands several times with different values: which one counts."""
    values: dict[str, list[str]] = {}
    for option, value in _pairs(arguments):
        values.setdefault(option, []).append(value)
    return [
        f"warning: {option} is given {len(each)} times ({', '.join(each)}): {each[-1]} counts"
        for option, each in values.items()
        if option not in REPEATABLE and len({*each}) > 1
    ]


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options with their values, ``--option value`` and ``--option=value`` alike; of several values
    (``--models A B``) all.
    """
    for position, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option.startswith("--") and equals:
            yield option, value
        elif option.startswith("--") and position + 1 < len(arguments):
            following = takewhile(lambda each: not each.startswith("--"), arguments[position + 1 :])
            if values := [*following]:
                yield option, " ".join(values)


def _is_there(value: str) -> bool:
    """Whether a file is there, as far as the value names one and no more."""
    if packaged.is_packaged(value):
        return True
    return Path(value).expanduser().exists() or any(sign in value for sign in "=:{")


def _is_name(value: str) -> bool:
    """Whether a value can be nothing but a preset's name."""
    letters = value.replace("-", "").replace("_", "")
    return letters.isalnum() and value.islower() and value not in ("none", "null")
