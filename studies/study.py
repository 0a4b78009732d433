"""The frame of a study: options, then models, then points, each kept as soon as it is there."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from robusttrain.config.build import build
from robusttrain.core.console import say
from robusttrain.core.errors import UserError
from robusttrain.core.stopping import saying_how_to_go_on
from robusttrain.evaluation.plan import EvaluationPlan
from robusttrain.evaluation.records import Records
from robusttrain.evaluation.report import VERDICTS
from robusttrain.storage.files import writable
from robusttrain.storage.locks import alone
from studies.plans import Call, Job
from studies.scales import SCALES, naming_root, placed, training_plan

#: Options of every study: name, default, help.
OPTIONS = (
    ("output", None, "folder; default: results/studies/NAME-SCALE"),
    ("root", None, "folder with the data, for scales small and paper"),
    ("f_b", None, "weights of an adversarially trained f_b; default: one is trained"),
    ("checkpoints", "checkpoints/studies", "folder of models that studies share"),
    ("logs", "logs/studies", "folder for TensorBoard"),
)
#: One more, of studies that take ImageNet in place of the scale's own data.
IMAGENET = ("imagenet", None, "folder with ImageNet's val/<wnid>/, for the data; not for smoke")


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
        digits: whether the study knows scale digits too, the embedded data at full length.

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
        digits: bool = False,
    ) -> None:
        parser = _Parser(
            prog=f"python -m studies.{name}",
            description=about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        parser.set_defaults(imagenet=None)
        scales = [scale for scale in SCALES if digits or scale != "digits"]
        parser.add_argument("--scale", choices=scales, default="smoke", help="default: smoke")
        for option, default, meaning in (*OPTIONS, IMAGENET) if imagenet else OPTIONS:
            parser.add_argument(f"--{option}", default=default, help=meaning)
        given = parser.parse_args(list(arguments))
        self.name = name
        self.title = (about or name).strip().splitlines()[0].rstrip(".")
        self.command = shlex.join(["python", "-m", f"studies.{name}", *arguments])
        scale = SCALES[given.scale]
        scale = replace(scale, data={"data": data}) if data else scale
        scale = placed(scale, given.root, given.f_b, given.imagenet)
        output = Path(given.output or f"results/studies/{name}-{given.scale}")
        self.output = writable(output, "--output")
        folder = writable(Path(given.checkpoints), "--checkpoints")
        self.scale = replace(scale, folder=folder, models={})
        self.logs = Path(given.logs)
        self.points: dict[str, Job] = {}

    def run(self, points: Mapping[str, EvaluationPlan | Call]) -> dict[str, Any]:
        """Carry out the plans of points that are not there yet, after training what they need.

        Returns:
            What came out, by the points' labels: `Job.result`.
        """
        with naming_root():
            build(training_plan(self.scale.data).data, "data").prepare_data()
        folder = self.output / "points"
        self.points = {label: Job(label, work, folder) for label, work in points.items()}
        waiting = [job for job in self.points.values() if not job.done]
        missing = [job for job in self.scale.needed(waiting) if not job.done]
        say(
            f"{self.name} at scale {self.scale.name}: {len(points)} points, {len(waiting)} of them"
            f" to be measured, {len(missing)} models to be trained first"
        )
        with saying_how_to_go_on(
            say, lambda: "what was finished is kept; the same command goes on from there"
        ):
            # Another process with the same command shares the work: first what nobody is at, then
            # wait for the others.
            for models_wait, points_wait in ((False, False), (True, False), (True, True)):
                self._carry_out("model", missing, models_wait)
                self._carry_out("point", waiting, points_wait)
        return {label: job.result() for label, job in self.points.items()}

    def _carry_out(self, what: str, jobs: Sequence[Job], wait: bool) -> None:
        for number, job in enumerate(jobs, 1):
            if job.done or not all(model.done for model in self.scale.needed([job])):
                continue
            with alone(job.folder, job.label, say, wait) as held:
                if held and not job.done:
                    say(f"{what} {number} of {len(jobs)}: {job.label}")
                    job.carry_out(self.logs)

    def worst_cases(self, *labels: str) -> Tensor:
        """(n,), each image's share of draws of the model that are right about it, under the attack
        that is worst for it, over points on the same images of one model.
        """
        rows = {
            f"{label}: {name}": each
            for label in labels
            for name, each in Records.read(self.points[label].folder / VERDICTS).rows.items()
        }
        return Records(rows).worst

    def worst_case(self, *labels: str) -> float:
        """Accuracy over `worst_cases`."""
        return float(self.worst_cases(*labels).mean())
