"""As robust a network as a few minutes of a GPU allow, by the commands that users type.

    python -m benchmarks.trained adversarial --root data --seconds 200 --device cuda \
        --output results/trained/train.json
    python -m benchmarks.trained behind-g --f_b FILE --root data --seconds 200 ...

``adversarial`` is ResNet-18 by ``--training budget``, attacked by AutoAttack at 8/255. ``behind-g``
is ResNet-18 without adversarial examples behind g of the paper, attacked around g (suite ``bpda``)
at 0.031. Training has half of the seconds. The checkpoint lies beside the report, also where time
ends before the attacks do. Without ``--root`` the images are embedded digits.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.timing import keep, machine, report_file, write
from robusttrain.core.errors import UserError

#: Of the time, what training is told that it has; reading data and measuring a step come on top.
TRAINING = 0.5
#: What each recipe adds to the command line that trains, what attacks it, and further options.
RECIPES: dict[str, tuple[list[str], list[str], list[str]]] = {
    "adversarial": (
        ["--training", "budget", "--training.objective.threat.epsilon", "8/255"],
        ["--suite", "autoattack"],
        ["--epsilon", "8/255", "--survivors", "true"],
    ),
    "behind-g": (
        ["--training", "standard", "--defense", "advtransform", "--robust.every", "0"],
        ["--suite", "bpda"],
        ["--epsilon", "0.031"],
    ),
}


def commands(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """What trains, and what attacks ``best.ckpt``; folders are named from where this runs."""
    train, attack, within = RECIPES[arguments.recipe]
    if arguments.attack:
        attack = ["--attack", arguments.attack]
    folder = Path(arguments.output).with_suffix("")
    data = ["--data", "digits"]
    if arguments.root:
        data = ["--data", "imagefolder", "--data.root", arguments.root]
    if arguments.f_b:
        train = [*train, "--defense.weights", arguments.f_b]
    where = ["--trainer.accelerator", "gpu" if arguments.device.startswith("cuda") else "cpu"]
    minutes = f"{TRAINING * arguments.seconds / 60:.2f}"
    train = [
        *("train", *train, "--training.minutes", minutes, "--model", arguments.model, *data),
        *("--data.batch_size", "256", "--training.learning_rate", "0.3"),
        *("--data.validation", "0.02", "--pictures.images", "0", *where, *arguments.more),
        *("--name", folder.name, "--checkpoints", str(folder), "--logs", str(folder / "logs")),
    ]
    kept = folder / folder.name / "version_0" / "best.ckpt"
    attack = [
        *("evaluate", "--checkpoint", str(kept), *attack, *within),
        *("--images", str(arguments.images)),
        *("--precision", "float32", "--audit", "false", *where),
        *("--output", str(folder / "attacked")),
    ]
    return train, attack


def run(command: list[str], until: float) -> None:
    """A command of ours, as a user starts it.

    Raises:
        UserError: it failed, or time ended.
    """
    line = [sys.executable, "-m", "robusttrain", *command]
    try:
        ended = subprocess.run(line, timeout=max(1.0, until - time.monotonic()), check=False)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{command[0]}: did not come to its end in the time that there was") from (
            error
        )
    if ended.returncode:
        raise UserError(f"{command[0]}: exit code {ended.returncode}")


def trained(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, attack, and say what came out."""
    started = time.monotonic()
    until = started + arguments.seconds
    lines = commands(arguments)
    report: dict[str, Any] = {
        "commands": [" ".join(["robusttrain", *line]) for line in lines],
        "machine": machine(arguments.device),
        "recipe": arguments.recipe,
        "model": arguments.model,
        "minutes": round(TRAINING * arguments.seconds / 60, 2),
    }
    run(lines[0], until)
    report["seconds_of_training"] = round(time.monotonic() - started)
    keep(report | {"left_out": {"attacks": "did not come to their end"}}, arguments.output)
    run(lines[1], until)
    found = json.loads((Path(lines[1][-1]) / "results.json").read_text())
    return report | {
        "images": found["images"],
        "clean": found["clean"],
        "attacks": {name: row["robust_accuracy"] for name, row in found["attacks"].items()},
        "worst_case": found["worst_case"],
    }


def main() -> None:
    """Parse, train, attack, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", choices=list(RECIPES))
    parser.add_argument("--root", help="image folder with train/ and test/")
    parser.add_argument("--f_b", help="weights of g's vgg_small; without, one is trained first")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--attack", help="by this one, in place of the recipe's suite")
    parser.add_argument("--images", type=int, default=500, help="test images that are attacked")
    parser.add_argument("--seconds", type=float, default=600, help="in all")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--more", nargs="*", default=[], help="further options of train: NAME=VALUE"
    )
    parser.add_argument("--output", type=report_file, default="results/trained/train.json")
    arguments = parser.parse_args()
    folder = Path(arguments.output).with_suffix("")
    if folder.exists():
        parser.error(
            f"argument --output: {arguments.output}: {folder} holds another run: give a new one"
        )
    arguments.more = [f"--{each}" for each in arguments.more]
    report = trained(arguments)
    write(report, arguments.output)
    shutil.rmtree(folder / "logs", ignore_errors=True)


if __name__ == "__main__":
    main()
