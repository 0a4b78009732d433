"""From a command line of evaluate.py to its plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from torch import nn

from robusttrain.config.attacks import (
    attack_nodes,
    by_name,
    out_of_threat,
    radii,
    spelt_out,
    split_attacks,
)
from robusttrain.config.build import trusted_nodes
from robusttrain.config.checkpoints import newest, read_recipe
from robusttrain.config.command_line import (
    configurations,
    listed,
    names_in,
    new_parser,
    plain,
    read,
    take,
    values_of,
)
from robusttrain.config.first_look import asks_for_others, first_look
from robusttrain.config.numbers import parts_of, several
from robusttrain.config.reading import refuse_other_numbers
from robusttrain.config.suites import suite_settings
from robusttrain.config.trainer import add_trainer
from robusttrain.core.errors import OptionError, UserError, naming, one_of
from robusttrain.data import ImageData
from robusttrain.defenses import Defense
from robusttrain.evaluation.plan import EvaluationPlan
from robusttrain.evaluation.report import Results, read_results
from robusttrain.storage import packaged
from robusttrain.storage.journal import stopped

#: Options of data that say what their images look like.
SHAPES = ("image_size", "channels")
KINDS = ("data", "model", "defense")
#: Where files lie that an evaluation reads, which ``--again`` may be told anew.
LIE = ("--data.root", "--data.folder", "--checkpoint", "--weights")
#: Options that take several numbers, and what they are.
LISTS = {
    "curve": "radii at which the attacks run besides, nested: 0,2/255,4/255,8/255",
    "curve_effort": "shares of their steps or queries, nested: 1/4,1/2",
}
#: Fields of the plan that the command line says in words of its own.
OTHERWISE = {
    *("model", "defense", "data", "attacks", "suites", "asked", "trainer", "trust"),
    "at_most",
    "handed_over",
    "unfit",
    "beside",
    "weights_which",
    *LISTS,
}
#: Of Lightning's Trainer: where an evaluation runs.
WHERE = {
    *("accelerator", "strategy", "devices", "num_nodes"),
    *("limit_test_batches", "fast_dev_run", "plugins"),
}
#: Of these, what the audit and the journal know nothing of, at what leaves nothing out (1 is one
#: batch, 1.0 all).
WHOLE = {"limit_test_batches": 1.0, "fast_dev_run": False}


def parser() -> ArgumentParser:
    """The options of evaluate.py: the fields of its plan, and presets by name."""
    options = new_parser(
        *("attack", "suite", "trust"),
        prog="evaluate.py",
        description=(
            "Attack a classifier and report what is left of it. Without --checkpoint or --model:"
            " the newest checkpoint; before anything is trained, a model that comes with the"
            " package. --attack NAME and --suite NAME are repeatable; --attack.KEY"
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
    options.add_argument(
        "--attacks",
        type=dict[str, Any],
        default={},
        help="further attacks by names of their own: {mine: NAME}, {mine: {like: NAME, ...}}",
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
    for name, help in LISTS.items():
        kind = list[float | str] | float | str
        options.add_argument(f"--{name}", type=kind, default=[], help=help)
    options.add_class_arguments(EvaluationPlan, skip={*OTHERWISE})
    options.add_argument(
        "--estimate", action="store_true", help="say what the evaluation would cost, and stop"
    )
    add_trainer(options, {}, only=WHERE)
    return options


def read_plan(
    arguments: Sequence[str] = (), said: Sequence[Mapping[str, Any]] = ()
) -> EvaluationPlan:
    """The plan that a command line describes, or Python.

    Args:
        arguments: the command line.
        said: configurations as ``--config`` files hold them: presets' names stand for parts.

    Raises:
        UserError: in one line, the option, its value and the fix.
    """
    nodes, arguments = configurations(arguments, said)
    arguments = spelt_out(arguments, nodes)
    names, overrides, rest = split_attacks(arguments, nodes)
    for value in values_of(rest, "--attacks"):
        if not value.startswith("{"):
            raise UserError(
                f"--attacks {value}: gives attacks names of their own, {{mine: {value}}}; did you"
                f" mean --attack {value}?"
            )
    for name in LISTS:
        for text in values_of(rest, f"--{name}"):
            for part in parts_of(text):
                refuse_other_numbers(part, f"--{name}")
    config, path = configure(rest, nodes)
    if any("estimate" in node for node in nodes):
        raise UserError("--config: estimate is asked for on the command line, --estimate")
    for key in ("attack", "attacks", "suite"):
        if any(key in node and node[key] in ([], {}) for node in nodes):
            raise UserError(f"--config: {key} is empty: name one, or leave {key} out for pgd")
    suites = values_of(arguments, "--suite")
    own = plain(config.attacks)
    asked = [*values_of(arguments, "--attack"), *own]
    names = names if names or own else ["pgd"]
    epsilon, of_suite = radii(arguments, nodes, config.epsilon)
    attacks = attack_nodes(by_name(names) | own, overrides, epsilon, of_suite=of_suite)
    unfit = out_of_threat(attacks, asked, overrides)
    values = {
        key: value
        for key, value in plain(config).items()
        if key in EvaluationPlan.__dataclass_fields__
    }
    if of_suite is not None and overrides:
        values["epsilon"] = None  # what the attacks say themselves counts
    attacks = {name: node for name, node in attacks.items() if name not in unfit}
    values |= {"attacks": attacks, "suites": suites, "asked": asked, "trust": listed(config.trust)}
    values["unfit"] = unfit or None
    values |= {name: several(values[name], f"--{name}") for name in LISTS}
    # A suite's own number, which nobody gave for these data.
    given = values_of(arguments, "--images")
    theirs = [suite_settings(preset).get("images") for preset in suites]
    values["at_most"] = not given and config.images in theirs and config.images is not None
    chosen = values_of(rest, "--output") or any("output" in node for node in nodes)
    values["beside"] = not chosen
    values["checkpoint"] = None if path is None else str(path)
    if path is not None and config.checkpoint is None and packaged.is_packaged(path):
        values |= first_look(values)
    trainer = {key: value for key, value in values["trainer"].items() if value is not None}
    for name, everything in WHOLE.items():
        value = trainer.get(name, everything)
        if value != everything or isinstance(value, float) != isinstance(everything, float):
            fix = "its audit would be of images that nobody attacked: take --images"
            raise OptionError(f"--trainer.{name}", value, fix)
    return EvaluationPlan(**{**values, "trainer": trainer})


def read_again(arguments: Sequence[str]) -> tuple[Results, EvaluationPlan] | None:
    """What ``--again RESULTS`` asks for: the results of before, and the plan that repeats them,
    beside them or in ``--output``. None where a command line does not ask.

    What it reads may lie elsewhere by now: `LIE` says where. Figures are compared with the hashes
    of weights and images, so another file is told.

    It goes on with a repetition that was stopped there, unless ``--fresh true`` drops it; one that
    is finished answers for no other.

    The file may come from elsewhere: classes of other packages need ``--trust`` anew, whatever it
    says itself.

    Raises:
        UserError: no such file, or options besides, with which it would not be the same.
    """
    repeated, rest = take(arguments, lambda option: option == "--again", "give a results.json")
    if not repeated:
        return None
    path = Path(repeated[-1][1])
    trusted, rest = take(rest, lambda option: option == "--trust", "give the name of a package")
    outputs, rest = take(rest, lambda option: option == "--output", "give a folder")
    places, rest = take(rest, lambda option: option in LIE, "say where it lies now")
    dropped, rest = take(rest, lambda option: option == "--fresh", "give true or false")
    if rest:
        raise UserError(
            f"--again {path}: repeats an evaluation as it was: leave out {rest[0]}; only where"
            f" files lie may be said anew, by {', '.join(LIE)}"
        )
    # Nothing needs the verdicts of before, which may be damaged: then this is the way to new ones.
    before = read_results(path, records=False)
    if before.plan.handed_over:
        raise UserError(
            f"--again {path}: was evaluated in Python, which handed model and images over: call"
            " robusttrain.evaluate again"
        )
    for option, value in dropped:
        one_of(option, value, ("true", "false"))
    where = path if path.is_dir() else path.parent
    output = Path(outputs[-1][1]) if outputs else where / "again"
    if output.resolve() == where.resolve():
        raise OptionError("--output", output, "holds the results that are repeated: name another")
    names = [name for _, value in trusted for name in names_in(value)]
    fresh = bool(dropped) and dropped[-1][1] == "true"
    plan = _moved(before.plan, places, f"--again {path}")
    return before, again(plan, output, names, fresh or not stopped(output / "journal"))


def _moved(plan: EvaluationPlan, places: Sequence[tuple[str, str]], what: str) -> EvaluationPlan:
    """The plan with files that lie elsewhere.

    Args:
        plan: of before.
        places: options of `LIE`, and their values.
        what: what was asked for, for the error.
    """
    arguments = dict(plan.data.get("init_args") or {})
    files: dict[str, Any] = {}
    for option, value in places:
        name = option.removeprefix("--")
        if name in ("checkpoint", "weights"):
            if getattr(plan, name) is None:
                raise UserError(f"{what}: took no {name}: leave out {option}")
            files[name] = value
        else:
            arguments[name.removeprefix("data.")] = value
    data = {**plan.data, "init_args": arguments} if arguments else plan.data
    return replace(plan, data=data, **files)


def again(plan: EvaluationPlan, output: Path, trust: list[str], fresh: bool) -> EvaluationPlan:
    """The same evaluation, into another folder.

    Args:
        plan: from a file that may come from elsewhere.
        output: the folder.
        trust: packages besides robusttrain whose classes the plan may name.
        fresh: whether to drop what lies there.

    Raises:
        UserError: a class of another package; nothing was imported.
    """
    names = ("model", "defense", "data", "attacks")
    parts = trusted_nodes({name: getattr(plan, name) for name in names}, ["robusttrain", *trust])
    trainer = {key: value for key, value in plan.trainer.items() if key in WHERE}
    plan = replace(plan, output=str(output), beside=False, fresh=fresh, strict=False)
    return replace(plan, trust=trust, trainer=trainer, **parts)


def configure(
    arguments: Sequence[str], nodes: Sequence[Mapping[str, Any]]
) -> tuple[Namespace, Path | None]:
    """The configuration, and the checkpoint that it started from, if any.

    Args:
        arguments: the command line, without its configuration files.
        nodes: contents of these.
    """
    options = parser()
    named = [argument.partition("=")[0] for argument in arguments]
    named += [f"--{key}" for node in nodes for key in node]
    if "--model" in named or any(option.startswith("--model.") for option in named):
        if "--checkpoint" in named:
            raise UserError(
                "--checkpoint and --model exclude each other: a checkpoint names its own model"
            )
        config = read(options, arguments, KINDS, {"data": "digits"}, nodes)
        return config, None
    if "--weights" in named:
        raise UserError("--weights: name the network that they belong to with --model NAME")
    if "--defense" in named:
        path, parts = started_from(arguments, nodes, KINDS, packaged.DEFAULT)
        if "defense" not in parts:
            return read(options, arguments, KINDS, parts, nodes), path
        raise UserError(
            "--defense: a checkpoint has its own; change its values (--defense.radius 0.1) or use"
            " --model"
        )
    if "--help" in named or "-h" in named:
        options.parse_args(["--help"])
    if "--defense.weights" in named:
        raise UserError(
            "--defense.weights: a checkpoint holds its own f_b; to exchange it, use --model and"
            " --weights"
        )
    fallback = None if asks_for_others(arguments, nodes) else packaged.DEFAULT
    path, first = started_from(arguments, nodes, KINDS, fallback)
    values = [option for option in named if option.startswith("--defense.")]
    if values and "defense" not in first and "--defense.class_path" not in values:
        raise UserError(
            f"{values[0]}: {path} has no defense whose values could be changed: put one before its"
            " network with --defense NAME"
        )
    return read(options, arguments, KINDS, first, nodes), path


def started_from(
    arguments: Sequence[str],
    nodes: Sequence[Mapping[str, Any]],
    kinds: Sequence[str],
    fallback: str | None = None,
) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that a command starts from, and the parts of its recipe, by kind.

    A first look at the line for these options alone: the full check follows once the checkpoint's
    own parts are there.

    Args:
        arguments: the command line.
        nodes: contents of its configuration files.
        kinds: of the parts.
        fallback: the packaged model to start from where no checkpoint is named and nothing was
            trained.

    Raises:
        UserError: no such checkpoint, or a class of a package that is not trusted; nothing was
            imported.
    """
    wanted = ("checkpoint", "checkpoints", "trust")
    given, _ = take(arguments, lambda option: option[2:] in wanted)
    said = {key: node[key] for node in nodes for key in wanted if key in node}
    line = [f"{option}={value}" for option, value in given]
    early = read(new_parser(*wanted), line, (), {}, [said])
    given_path = Path(early.checkpoint) if early.checkpoint else None
    path = given_path or newest(early.checkpoints, fallback)
    with naming("--checkpoint") if early.checkpoint else nullcontext():
        recipe = read_recipe(path)
    first = {kind: recipe[kind] for kind in kinds if recipe.get(kind)}
    # Before jsonargparse imports a class that the file names.
    return path, trusted_nodes(first, ["robusttrain", *listed(early.trust)])
