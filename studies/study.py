"""The frame of a study: its options, its points, and what it leaves."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from matplotlib.figure import Figure
from torch import Tensor

from robusttrain.commands.evaluate import show
from robusttrain.core.console import ALOUD, console, say
from robusttrain.core.errors import UserError
from robusttrain.evaluation.plan import EvaluationPlan
from robusttrain.evaluation.records import Records
from robusttrain.reporting.canvas import png
from robusttrain.running.jobs import Call, Job, carry_out
from robusttrain.storage import packaged
from robusttrain.storage.files import writable, write_json, write_whole
from studies.kept import pack, unpack
from studies.scales import EPSILON, IMAGENET, OPTIONS, SCALES, SETTING

#: Where the paper has only a plot: its values are not invented.
NOT_AVAILABLE = "read off the plot: not available"
#: Of a point: what is to be looked at, and what its own folder says of where and how it ran.
LEFT_OUT = {
    *("pictures", "classes"),
    *("schema", "target", "weights", "data", "indices", "processor", "versions", "plan"),
}


def percent(value: float | None) -> str:
    """An accuracy for the table."""
    return "-" if value is None else f"{100 * value:.1f} %"


def counted(number: int, what: str = "seed") -> str:
    """How many, in words."""
    return f"1 {what}" if number == 1 else f"{number} {what}s"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


class Study:
    """A study that is being run.

    Args:
        name: of its module.
        about: its docstring; the first line is the report's title.
        arguments: the command line.
        offers: "imagenet", in place of the scale's own data; "digits", the scale; "seeds", how
            many in place of the scale's own number; "votes", likewise; "longer", by how many times
            all trainings are; "recipes", some of those that it compares; "base", a packaged model
            in place of those that the study trains.
        changes: values that are other than the scale's.

    Raises:
        UserError: an option is wrong, data are missing, or the output cannot be written to.
    """

    def __init__(
        self, name: str, about: str, arguments: Sequence[str], *offers: str, **changes: Any
    ) -> None:
        program, form = f"python -m studies.{name}", argparse.RawDescriptionHelpFormatter
        parser = _Parser(program, description=about, formatter_class=form, allow_abbrev=False)
        scales = [scale for scale in SCALES if scale in ("smoke", "small", "paper", *offers)]
        parser.add_argument("--scale", choices=scales, default="smoke", help="default: smoke")
        for option, how in OPTIONS.items():
            if option != "imagenet" or option in offers:
                parser.add_argument(f"--{option}", **how)
        if "seeds" in offers:
            what = "of each way to train; default: the scale's"
            parser.add_argument("--seeds", type=int, help=what)
        if "votes" in offers:
            what = "seeds of the vote, which takes most of the time; 0 leaves it out; default: 2"
            parser.add_argument("--votes", type=int, help=what)
        if "longer" in offers:
            what = "all trainings so many times as long; default: 1"
            parser.add_argument("--longer", type=int, help=what)
        if "recipes" in offers:
            what = "some of them, by their names in the table; the yardstick is always among them"
            parser.add_argument("--recipes", nargs="+", metavar="RECIPE", help=what)
        if "base" in offers:
            what = "a packaged model, in place of those that are trained here"
            bare = [name for name in packaged.names() if not packaged.card(name).recipe["defense"]]
            parser.add_argument("--base", choices=bare, help=what)
        parser.set_defaults(
            imagenet=None, seeds=None, votes=None, longer=1, recipes=None, base=None
        )
        given = parser.parse_args(arguments)
        for option, least in (("seeds", 1), ("votes", 0), ("longer", 1)):
            if (value := vars(given)[option]) is not None and value < least:
                raise UserError(f"--{option} {value}: give {least} or more")
        self.seeds: int | None = given.seeds
        self.votes: int | None = given.votes
        self.longer: int = given.longer
        self.recipes: list[str] | None = given.recipes
        self.base: str | None = given.base
        self.name, self.title = name, about.strip().splitlines()[0].rstrip(".")
        self.command = shlex.join([*program.split(), *arguments])
        self.scale = SCALES[given.scale].but(weights=given.f_b, **changes)
        for option in ("imagenet", "root", "f_b", "earlier"):
            if not (path := vars(given)[option]):
                continue
            if given.scale == "smoke" and option != "earlier":
                makes_do = "scale smoke makes do with embedded digits; leave it out"
                raise UserError(f"--{option} {path}: {makes_do}")
            files = option in ("f_b", "earlier")
            what, there = ("file", Path.is_file) if files else ("folder", Path.is_dir)
            if not there(Path(path)):
                fix = f"give the {OPTIONS[option]['help']}"
                raise UserError(f"--{option} {path}: no such {what}; {fix}")
        if given.imagenet and given.root:
            raise UserError(f"--root {given.root}: --imagenet names the data; leave one out")
        if given.imagenet:
            self.scale = self.scale.but(**IMAGENET)
        if root := given.imagenet or given.root:
            self.scale.data = {**self.scale.data, "data.root": root}
        elif self.scale.data["data"] == "imagefolder":
            folders = "DIR/train/<class> and DIR/test/<class>"
            raise UserError(f"--root: scale small needs CIFAR-10 as an image folder, {folders}")
        if self.base:
            inside = f"f_b in {self.scale.precision} inside g"
            self.scale.about = f"the packaged model {self.base}, {inside}"
        other = f"-longer-{given.longer}" if given.longer > 1 else ""
        other += f"-recipes-{len({*given.recipes})}" if given.recipes else ""
        output = Path(given.output or f"results/studies/{name}-{given.scale}{other}")
        self.output, self.logs = writable(output, "--output"), Path(given.logs)
        self.earlier = Path(given.earlier) if given.earlier else None
        self.scale.folder = writable(Path(given.checkpoints), "--checkpoints")
        self.points: dict[str, Job] = {}

    def run(self, points: Mapping[str, EvaluationPlan | Call]) -> dict[str, Any]:
        """Carry out what is not there yet; `Job.result` by the points' labels."""
        self.scale.prepare()
        folder, models = self.output / "points", [*self.scale.models.values()]
        self.points = {label: Job(label, work, folder) for label, work in points.items()}
        if self.earlier:
            count = unpack(self.earlier, self.points.values(), "--earlier")
            say(f"{counted(count, 'point')} of {len(points)} from {self.earlier}")
        carry_out([*self.points.values()], models, self.logs, replace(ALOUD, figures=show))
        return {label: job.result() for label, job in self.points.items()}

    def worst_cases(self, *labels: str) -> Tensor:
        """(n,), `Records.worst` over points on the same images of one model."""
        return Records.together({at: self.points[at].result().records for at in labels}).worst

    def write(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        figure: Figure,
        notes: Sequence[str] = (),
        setting: str | None = None,
        epsilon: float = EPSILON,
    ) -> None:
        """Write study.json, study.md, study.png, and points.zip for `--earlier`.

        Args:
            columns: of the table.
            rows: of the table, one value for each column.
            figure: a picture.
            notes: sentences that a reader of the figures must know.
            setting: under the title, in place of the adversarial transformation's settings.
            epsilon: radius of the threat, Linf.
        """
        scale, plans = self.scale, [job.work for job in self.points.values()]
        counts = {plan.images for plan in plans if isinstance(plan, EvaluationPlan)}
        images = sorted(count for count in counts if count) or [scale.images]
        counted = " or ".join(f"{count:,}" for count in images)
        how = f"preset {scale.trainings['f_b']['training']}, {scale.f_b_epochs} epochs"
        f_b = scale.weights or f"trained here, {how}"
        setting = setting or SETTING.format(counted, f_b, s=scale)
        values = {key: to for key, to in vars(scale).items() if key not in ("folder", "models")}
        content = {
            "study": self.name,
            "title": self.title,
            "command": self.command,
            "scale": scale.name,
            "settings": {**values, "setting": setting},
            "threat": {"norm": "linf", "epsilon": epsilon},
            "images": images,
            "draws": scale.draws,
            "notes": list(notes),
            "table": [dict(zip(columns, map(str, row), strict=True)) for row in rows],
            "points": {label: _described(job) for label, job in self.points.items()},
        }
        table = [f"| {' | '.join(map(str, row))} |" for row in [columns, *rows]]
        table.insert(1, "|" + "---|" * len(columns))
        head = f"Scale {scale.name}: {scale.about}. Linf, epsilon {epsilon:g}; {setting}"
        text = [f"## {self.title}", head, f"    {self.command}", "\n".join(table), "\n".join(notes)]
        write_whole(self.output / "study.png", png(figure))
        write_whole(self.output / "study.md", ("\n\n".join(text).rstrip() + "\n").encode())
        write_json(content, self.output / "study.json")
        pack(self.points.values(), self.output / "points.zip")
        console.print("\n".join(table), soft_wrap=True, highlight=False, markup=False)
        say(f"written: {self.output}/study.json, study.md, study.png, points.zip")


def _described(job: Job) -> dict[str, Any]:
    """The figures of a point, and the command that repeats it."""
    evaluated, found = isinstance(job.work, EvaluationPlan), job.result()
    again = f"python evaluate.py --again {job.folder}" if evaluated else str(job.work.to_json())
    about = {"key": job.folder.name[-12:], "command": again, "seconds": job.account()["seconds"]}
    figures = dict(found.json if evaluated else found)
    return {name: to for name, to in figures.items() if name not in LEFT_OUT} | about
