"""Trains, evaluates and describes the models that come with the package.

    python -m studies.packaged_models                  # all of them
    python -m studies.packaged_models digits-g         # one
    python -m studies.packaged_models cifar10-jpeg-adversarial --trained best.ckpt

Each is trained and evaluated by the commands that its card names. The card's figures are those of
the ``results.json`` that the evaluation of the very file left: nothing is typed by hand. A training
of hours is not repeated where ``--trained`` names what the card's command left.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import robusttrain
from robusttrain.commands import evaluate
from robusttrain.commands.entry import main
from robusttrain.config import evaluation, training
from robusttrain.config.checkpoints import newest, read_recipe
from robusttrain.core.console import ALOUD, say
from robusttrain.core.errors import UserError
from robusttrain.evaluation.report import Results, read_results
from robusttrain.running.training import train
from robusttrain.storage import packaged
from robusttrain.storage.files import write_whole
from robusttrain.storage.weights import save_tensors
from robusttrain.training.plan import TrainingPlan

#: Bytes that a file of weights may have at most.
LARGEST = 3_000_000
#: f_a of those for digits, 0.08 M parameters.
_NETWORK = (
    *("--model", "robusttrain.models.CifarResNet", "--model.widths", "[16,32,64]"),
    *("--model.blocks", "1", "--data.batch_size", "64", "--robust.every", "0"),
)
#: f_b, 0.02 M parameters, which train.py trains first.
_G = (
    *("--defense", "advtransform", "--defense.model", "robusttrain.models.CifarResNet"),
    *("--defense.model.widths", "[8,16,32]", "--defense.model.blocks", "1"),
)
#: Twice the paper's epsilon, as digits are easier than photographs; each image is handed on while
#: it survives.
_ATTACKED = (
    *("--epsilon", "0.062", "--images", "200", "--survivors", "true"),
    *("--precision", "float32", "--audit", "false"),
)
#: What a stated time on a CPU leaves, at the usual radius.
_BUDGET = (
    *("--data", "imagefolder", "--data.root", "data/cifar10-jpeg", "--data.validation", "0.02"),
    *("--model", "resnet_strided", "--training", "budget", "--training.minutes", "180"),
    *("--training.objective.threat.epsilon", "8/255"),
    *("--robust.images", "500", "--pictures.images", "0"),
)
_AROUND_G = ("bpda-i-margin", "bpda-i-momentum", "bpda-i-apgd", "average-logits")


@dataclass(frozen=True)
class Made:
    """How a packaged model is made.

    Args:
        about: what it is, in a few words.
        train: arguments of the training.
        evaluate: arguments of the evaluation, but for the model.
    """

    about: str
    train: tuple[str, ...]
    evaluate: tuple[str, ...]


MODELS = {
    "digits-standard": Made(
        "digits, standard training",
        (*_NETWORK, "--trainer.max_epochs", "15"),
        ("--suite", "autoattack", *_ATTACKED),
    ),
    "digits-adversarial": Made(
        "digits, PGD adversarial training (Linf 0.062)",
        (
            *(*_NETWORK, "--training", "adversarial", "--trainer.max_epochs", "30"),
            *("--training.objective.attack.threat.epsilon", "0.062"),
            *("--training.objective.attack.step_size", "0.014"),
        ),
        ("--suite", "autoattack", *_ATTACKED),
    ),
    "digits-g": Made(
        "digits, standard training behind g on an adversarially trained f_b",
        (*_NETWORK, *_G, "--trainer.max_epochs", "15"),
        (
            *("--suite", "bpda", *(f"--attack={name}" for name in _AROUND_G)),
            *_ATTACKED,
        ),
    ),
    "cifar10-jpeg-adversarial": Made(
        "CIFAR-10 (JPEG), PGD adversarial training for 180 minutes on a CPU (Linf 8/255)",
        _BUDGET,
        (
            *("--suite", "autoattack", "--epsilon", "8/255", "--images", "1000"),
            *("--survivors", "true", "--precision", "float32", "--audit", "false"),
        ),
    ),
}


def make(name: str, made: Made, work: Path, best: Path | None = None) -> Path:
    """Train, store and evaluate one model; the path of its card.

    Args:
        name: of the model.
        made: how.
        work: folder for what training and evaluation leave.
        best: checkpoint of an earlier training by the same command, which is not repeated then.

    Raises:
        UserError: the weights are too large to come with the package, or ``best`` was trained by
            another command.
    """
    checkpoints, output = work / "checkpoints", work / "results"
    places = (f"--checkpoints={checkpoints}", f"--logs={work / 'logs'}")
    plan = training.read_plan([*made.train, *places])
    if best is None:
        trained = train(plan, ALOUD)
        assert trained is not None  # nothing asked for an estimate alone
        best = newest(trained.folder)
    else:
        _same(plan, best)
    recipe = read_recipe(best)
    path = packaged.FOLDER / f"{name}.safetensors"
    state = robusttrain.load(best).state_dict()
    # Half the size; the figures below are those of the rounded weights.
    half = {
        key: value.half() if value.is_floating_point() else value for key, value in state.items()
    }
    save_tensors(half, path, {"name": name})
    if (size := path.stat().st_size) > LARGEST:
        raise UserError(f"{path}: {size:,} bytes, more than {LARGEST:,}: take a smaller network")
    arguments = ["--checkpoint", name, *made.evaluate]
    about: dict[str, Any] = {
        "about": made.about,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": size,
        "parameters": sum(value.numel() for value in state.values()),
        "commands": {
            "train": shlex.join(["robusttrain", "train", *made.train]),
            "evaluate": shlex.join(["robusttrain", "evaluate", *arguments]),
        },
        "recipe": {key: recipe[key] for key in ("format", "model", "defense", "data", "classes")},
        "training": {**recipe["training"], **recipe["run"]},
    }
    card = packaged.FOLDER / f"{name}.yaml"
    _write(card, made.about, about)  # the evaluation reads it
    there = (f"--checkpoints={checkpoints}", f"--output={output}", "--fresh=true")
    evaluate.evaluate(evaluation.read_plan([*arguments, *there]))
    results = read_results(output)
    _write(card, f"{made.about}: {summary_of(results)}", {**about, "figures": figures_of(results)})
    return card


def _same(plan: TrainingPlan, checkpoint: Path) -> None:
    """Refuse a checkpoint that this plan would not leave."""
    then = read_recipe(checkpoint)["plan"]
    for part in ("model", "defense", "data", "training", "seed", "ema"):
        asked, found = getattr(plan, part), then[part]
        if part == "training" and asked.get("minutes"):
            # A stated time chooses the objective itself.
            asked, found = ({**each, "objective": None} for each in (asked, found))
        if asked != found:
            raise UserError(f"{checkpoint}: another command trained it: its {part} is {found}")


def summary_of(results: Results) -> str:
    """What an evaluation measured, in a line."""
    threat = results.json["threat"]
    clean = str(results.clean).partition(" (")[0]
    return (
        f"{clean} clean, {results.worst_case} in the worst case of {len(results.attacks)} attacks,"
        f" {threat['norm'].capitalize()} {threat['epsilon']:.4g}, {results.json['images']} images"
    )


def figures_of(results: Results) -> dict[str, Any]:
    """The figures of a card."""
    content = results.json
    facts = ("threat", "images", "draws", "seed", "weights", "processor", "versions")
    return {
        "clean": content["clean"],
        "worst_case": content["worst_case"],
        "attacks": [*results.attacks],
        **{fact: content[fact] for fact in facts},
    }


def _write(path: Path, line: str, content: Mapping[str, Any]) -> None:
    # As JSON first: YAML would point from one place to another where they hold the same list.
    plain = json.loads(json.dumps(content))
    text = yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, width=100)
    write_whole(path, f"# {line}\n{text}".encode())


def remake(arguments: list[str]) -> None:
    """Make the models that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m studies.packaged_models", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--trained", type=Path, help="checkpoint of the one that is named")
    parser.add_argument("--output", default="results/packaged", help="what is made on the way")
    options = parser.parse_args(arguments)
    if options.trained and len(options.names) != 1:
        raise UserError(f"--trained {options.trained}: name the one model that it is of")
    for name in options.names or MODELS:
        if name not in MODELS:
            raise UserError(f"{name}: is no packaged model; there are {', '.join(MODELS)}")
        card = make(name, MODELS[name], Path(options.output) / name, options.trained)
        say(f"{name}: {card}")


if __name__ == "__main__":
    main(remake)
