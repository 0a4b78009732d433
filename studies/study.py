"""The harness of a study: options, then models, then points, each kept as soon as it is there."""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from robusttrain.commands import evaluate
from robusttrain.core.console import console, say
from robusttrain.core.errors import UserError
from robusttrain.evaluation import worst_case
from robusttrain.evaluation.records import CLEAN, Records
from robusttrain.storage.files import writable, write_json
from robusttrain.storage.locks import alone
from studies.cost import seconds
from studies.models import Models, configuration, interruptible
from studies.parts import Point, Training, trainings
from studies.scales import Scale
from studies.sizes import SCALES, on_imagenet, placed


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


class Study:
    """A study that is being run.

    Args:
        name: of its module.
        about: its docstring; the first line is the report's title.
        arguments: the command line.
        data: preset of the data set at every scale, None for the scale's own.
        imagenet: whether ImageNet may take the place of the scale's own data.

    Raises:
        UserError: an option is wrong, data are missing, or the output cannot be written to.
    """

    def __init__(
        self,
        name: str,
        about: str | None,
        arguments: Sequence[str],
        data: str | None = None,
        imagenet: bool = False,
    ) -> None:
        parser = _Parser(prog=f"python -m studies.{name}", description=about, allow_abbrev=False)
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.add_argument(
            "--scale", choices=tuple(SCALES), default="smoke", help="how large; default: smoke"
        )
        parser.add_argument("--output", help="folder; default: results/studies/NAME-SCALE")
        parser.add_argument("--root", help="folder with the data, for scales small and paper")
        if imagenet:
            told = (
                "folder with ImageNet's val/<wnid>/, in place of the scale's own data; not for"
                " smoke"
            )
            parser.add_argument("--imagenet", help=told)
        parser.add_argument(
            "--f_b", help="weights of an adversarially trained f_b; default: one is trained"
        )
        parser.add_argument(
            "--checkpoints",
            default="checkpoints/studies",
            help="folder of models that studies share",
        )
        parser.add_argument("--logs", default="logs/studies", help="folder for TensorBoard")
        options = parser.parse_args(list(arguments))
        self.name = name
        self.title = (about or name).strip().splitlines()[0].rstrip(".")
        self.command = shlex.join(["python", "-m", f"studies.{name}", *arguments])
        scale = SCALES[options.scale]
        if getattr(options, "imagenet", None):
            scale = on_imagenet(scale, options.imagenet)
        self.scale: Scale = placed(
            replace(scale, data=("--data", data)) if data else scale, options.root, options.f_b
        )
        self.output = writable(
            Path(options.output or f"results/studies/{name}-{options.scale}"), "--output"
        )
        self.models = Models(
            writable(Path(options.checkpoints), "--checkpoints"), Path(options.logs)
        )

    def run(self, points: Sequence[Point]) -> dict[str, dict[str, Any]]:
        """Measure the points that are not there yet, after training what they need.

        Returns:
            What was found, by the points' labels; points whose attack preset does not exist are
            left out.
        """
        self._check_data()
        # What an interrupted or older run measured counts, if its settings are the same.
        (self.output / "points").mkdir(exist_ok=True)
        possible = [point for point in points if not point.missing]
        for point in points:
            if point.missing:
                console.print(
                    f"{point.label}: not run, preset missing: {', '.join(point.missing)}",
                    soft_wrap=True,
                )
        waiting = [point for point in possible if not self._kept(point).is_file()]
        needed = dict.fromkeys(
            training for point in waiting for training in trainings(point.arguments)
        )
        missing = [training for training in needed if not self.models.found(training)]
        console.print(
            f"{self.name} at scale {self.scale.name}: {len(points)} points, {len(waiting)} of them"
            f" to be measured, {len(missing)} models to be trained"
            f" first{self._estimate(missing, waiting)}",
            soft_wrap=True,
        )
        # Another process with the same command shares the work: first what nobody is at, then wait
        # for the others.
        for models_wait, points_wait in ((False, False), (True, False), (True, True)):
            for number, training in enumerate(missing, 1):
                if not self.models.found(training):
                    console.print(
                        f"model {number} of {len(missing)}: {training.label}, {training.epochs}"
                        " epochs"
                    )
                    self.models.train(training, models_wait)
            for number, point in enumerate(waiting, 1):
                if not self._kept(point).is_file() and all(
                    map(self.models.found, trainings(point.arguments))
                ):
                    console.print(
                        f"point {number} of {len(waiting)}: {point.label}", soft_wrap=True
                    )
                    self._measure(point, points_wait)
        return {point.label: json.loads(self._kept(point).read_text()) for point in possible}

    def worst_case(self, points: Sequence[dict[str, Any]]) -> float:
        """Accuracy under the attack that is worst for each image, over points on the same images of
        one model.
        """
        return float(self.worst_cases(points).mean())

    def worst_cases(self, points: Sequence[dict[str, Any]]) -> Tensor:
        """(n,), each image's share of `worst_case`: draws of the model that are right about it."""
        select, score = [], []
        for point in points:
            records = Records.read(self.output / "points" / point["key"] / "verdicts.safetensors")
            for name in (CLEAN, *point["attacks"]):
                select.append(records.of(name).chosen_by)
                score.append(records.of(name).right)
        return worst_case(torch.stack(select), torch.stack(score))

    def _measure(self, point: Point, wait: bool) -> None:
        with alone(self.output / "points" / point.key, point.label, say, wait) as held:
            if held and not self._kept(point).is_file():
                self._measured(point)

    def _measured(self, point: Point) -> None:
        arguments = self.models.command(point.arguments)
        start = time.monotonic()
        if point.measure:
            found = point.measure(arguments)
            command = f"{point.measure.__module__}.{point.measure.__name__}({arguments})"
        else:
            folder = self.output / "points" / point.key
            arguments += ["--output", str(folder)]
            if "--models" in arguments:  # what one study crafted the others find
                arguments += ["--crafted", str(self.models.folder / "crafted")]
            else:  # tables and figures hold attacks that are weak on purpose
                arguments += ["--audit", "false"]
            interruptible(evaluate.run, arguments)
            found = json.loads((folder / "results.json").read_text())
            command = shlex.join(["python", "evaluate.py", *arguments])
        told = {"label": point.label, "key": point.key, "command": command}
        write_json(
            {**told, **found, "seconds": round(time.monotonic() - start, 1)}, self._kept(point)
        )

    def _kept(self, point: Point) -> Path:
        return self.output / "points" / f"{point.key}.json"

    def _check_data(self) -> None:
        try:
            configuration([str(argument) for argument in self.scale.data])[1].prepare_data()
        except UserError as error:
            raise UserError(str(error).replace("--data.root", "--root")) from error

    def _estimate(self, models: Sequence[Training], points: Sequence[Point]) -> str:
        if not models and not points:
            return ""
        expected = seconds(self.scale, models, points)
        told = f"{expected / 3600:.1f} hours" if expected > 5400 else f"{expected / 60:.0f} minutes"
        return f"; roughly {told if expected > 90 else f'{expected:.0f} s'} here"
