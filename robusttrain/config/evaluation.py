"""From a command line of evaluate.py to its plan."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from torch import nn

from robusttrain.config import presets
from robusttrain.config.attacks import attack_nodes, checked, split_attacks
from robusttrain.config.build import check_trust
from robusttrain.config.checkpoints import newest, read_recipe
from robusttrain.config.command_line import (
    add_trainer,
    config_files,
    listed,
    new_parser,
    plain,
    read,
    take,
)
from robusttrain.config.suites import suite, suite_settings
from robusttrain.core.errors import UserError, naming
from robusttrain.data import ImageData
from robusttrain.defenses import Defense
from robusttrain.evaluation.plan import EvaluationPlan

KINDS = ("data", "model", "defense")
#: Fields of the plan that the command line says in words of its own.
OTHERWISE = {
    *("model", "defense", "data", "attacks", "suites", "asked", "trainer", "trust"),
    "at_most",
    "weights_which",
}
#: Of Lightning's Trainer: where an evaluation runs.
WHERE = {
    *("accelerator", "strategy", "devices", "num_nodes"),
    *("limit_test_batches", "fast_dev_run", "plugins"),
}


def parser() -> ArgumentParser:
    """The options of evaluate.py: the fields of its plan, and presets by name."""
    options = new_parser(
        prog="evaluate.py",
        description=(
            "Attack a classifier and report what is left of it. Without --checkpoint or --model:"
            " the newest checkpoint. --attack NAME and --suite NAME are repeatable; --attack.KEY"
            " VALUE overrides a value in every attack, --attack.NAME.KEY VALUE in one. --list shows"
            " all presets. --again RESULTS repeats an evaluation and says whether it came out the"
            " same. --models A B ... measures transfer between models instead, with options of its"
            " own: --models --help."
        ),
    )
    options.add_subclass_arguments(
        nn.Module, "model", help="a network instead: a preset, YAML file or class path"
    )
    options.add_argument(
        "--defense", type=Defense | None, default=None, help="what stands before it; or 'none'"
    )
    options.add_subclass_arguments(
        ImageData, "data", help="data set; default: the checkpoint's own"
    )
    for name, help in (
        ("attack", "attack preset or file, repeatable"),
        ("suite", "several attacks by one name"),
    ):
        options.add_argument(f"--{name}", type=list[str] | str | None, default=None, help=help)
    options.add_argument(
        "--trust", type=list[str] | str, default=[], help="packages that a checkpoint may name"
    )
    options.add_argument(
        "--weights_which",
        "--weights.which",
        type=str | None,
        default=None,
        help=(
            "of several weights in the file: averaged, raw, or the path of one in it; default:"
            " averaged ones if there are any"
        ),
    )
    options.add_class_arguments(EvaluationPlan, skip={*OTHERWISE})
    add_trainer(options, {}, only=WHERE)
    return options


def read_plan(arguments: list[str]) -> EvaluationPlan:
    """The plan that a command line describes.

    Raises:
        UserError: in one line, the option, its value and the fix.
    """
    names, overrides, rest = split_attacks(arguments)
    config, path = configure(rest)
    suites = [value for _, value in take(arguments, lambda option: option == "--suite")[0]]
    asked = [value for _, value in take(arguments, lambda option: option == "--attack")[0]]
    if not names:  # a configuration file may name them
        suites, asked = listed(config.suite), listed(config.attack)
        names = [*asked, *(name for preset in suites for name in suite(preset))]
        named = {option.partition("=")[0] for option in rest}
        settings = {
            key: value for preset in suites for key, value in suite_settings(preset).items()
        }
        if "--survivors" not in named:
            config.survivors = settings.get("survivors", config.survivors)
        config.images = settings.get("images") if config.images is None else config.images
    nodes = attack_nodes(names or ["pgd"], overrides, config.epsilon)
    for name, node in nodes.items():
        checked(node, name)  # says what is wrong with it
    said = {
        key: value
        for key, value in plain(config).items()
        if key in EvaluationPlan.__dataclass_fields__
    }
    said |= {"attacks": nodes, "suites": suites, "asked": asked, "trust": listed(config.trust)}
    # A suite's own number, which nobody gave for these data.
    given = take(arguments, lambda option: option == "--images")[0]
    numbers = [suite_settings(preset).get("images") for preset in suites]
    said["at_most"] = not given and config.images in numbers and config.images is not None
    said["checkpoint"] = None if path is None else str(path)
    said["trainer"] = {key: value for key, value in said["trainer"].items() if value is not None}
    return EvaluationPlan(**said)


def again(plan: EvaluationPlan, output: Path, trust: list[str]) -> EvaluationPlan:
    """The same evaluation, into another folder.

    Args:
        plan: from a file that may come from elsewhere.
        output: the folder.
        trust: packages besides robusttrain whose classes the plan may name.

    Raises:
        UserError: a class of another package; nothing was imported.
    """
    check_trust([plan.model, plan.defense, plan.data, plan.attacks], ["robusttrain", *trust])
    trainer = {key: value for key, value in plan.trainer.items() if key in WHERE}
    return replace(plan, output=str(output), trust=trust, trainer=trainer, fresh=True, strict=False)


def configure(arguments: list[str]) -> tuple[Namespace, Path | None]:
    """The configuration, and the checkpoint that it started from, if any."""
    options = parser()
    files, _ = config_files(arguments)
    nodes = [presets.read_yaml(path, "--config") for path in files]
    named = [argument.partition("=")[0] for argument in arguments]
    named += [f"--{key}" for node in nodes for key in node]
    if "--model" in named or any(option.startswith("--model.") for option in named):
        if "--checkpoint" in named:
            raise UserError(
                "--checkpoint and --model exclude each other: a checkpoint names its own model"
            )
        config = read(options, arguments, KINDS, {"data": "digits"})
        return config, None
    if "--weights" in named:
        raise UserError("--weights: name the network that they belong to with --model NAME")
    if "--defense" in named:
        raise UserError(
            "--defense: a checkpoint has its own; change its values (--defense.radius 0.1) or use"
            " --model"
        )
    # A first look for these two alone; the full check follows once the checkpoint's own options are
    # known.
    if "--help" in named or "-h" in named:
        options.parse_args(["--help"])
    if "--defense.weights" in named:
        raise UserError(
            "--defense.weights: a checkpoint holds its own f_b; to exchange it, use --model and"
            " --weights"
        )
    look = new_parser()
    look.add_argument("--checkpoint", type=str | None, default=None)
    look.add_argument("--checkpoints", type=str, default="checkpoints")
    look.add_argument("--trust", type=list[str] | str, default=[])
    in_files: dict[str, Any] = {
        key: node[key]
        for node in nodes
        for key in ("checkpoint", "checkpoints", "trust")
        if key in node
    }
    look.set_defaults(in_files)
    wanted = ("--checkpoint", "--checkpoints", "--trust")
    given, _ = take(arguments, lambda option: option in wanted)
    early = read(look, [f"{option}={value}" for option, value in given], (), {})
    path = Path(early.checkpoint) if early.checkpoint else newest(early.checkpoints)
    with naming("--checkpoint") if early.checkpoint else nullcontext():
        recipe = read_recipe(path)
    # Before jsonargparse imports a class that the file names.
    check_trust(
        [recipe["model"], recipe["defense"], recipe["data"]], ["robusttrain", *listed(early.trust)]
    )
    first: dict[str, Any] = {
        key: recipe[key] for key in ("model", "defense", "data") if recipe.get(key)
    }
    return read(options, arguments, KINDS, first), path
