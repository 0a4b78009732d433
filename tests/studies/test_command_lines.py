"""What studies ask for at the scales that no test can run can be planned, at least."""

import importlib
from pathlib import Path

import pytest

from robusttrain.config import reparameterization, transfer
from robusttrain.config.attacks import checked, split_attacks
from robusttrain.config.checkpoints import read_recipe
from robusttrain.config.command_line import read
from robusttrain.core.errors import UserError
from robusttrain.data import Digits
from robusttrain.evaluation.plan import EvaluationPlan
from robusttrain.running.jobs import Job, needed
from robusttrain.training.plan import TrainingPlan
from studies import converged, does_g_add, test_time_defenses
from studies.does_g_add import Operations
from studies.reparameterization import train_h
from studies.scales import typed
from studies.study import Study
from studies.tiny_imagenet import invented
from studies.transfer_measures import command_line, matrix

FILES = (Path(__file__).parents[2] / "studies").glob("*.py")
STUDIES = sorted(path.stem for path in FILES if "\ndef run(arguments" in path.read_text())


class PlannedError(Exception):
    pass


#: Those that plan most.
LONG = ("converged", "recipes", "test_time_defenses")


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=[pytest.mark.long] * (each in LONG)) for each in STUDIES]
)
def test_small_and_paper(name, folder, monkeypatch):
    planned, models = [], []

    def seen(self, points):
        jobs = [Job(label, work, folder) for label, work in points.items()]
        planned.extend(jobs)
        trainings = [*self.scale.models.values()]
        named = needed(jobs, trainings)
        places = [named.index(model) for model in named]
        for place, model in zip(places, named, strict=True):  # what a model rests on comes first
            assert all(named.index(part) <= place for part in needed([model], trainings))
        models.extend(named)
        raise PlannedError

    def counted(plan):
        """By the width of the network and the steps of g, in place of passes of real networks."""
        g = plan.defense["init_args"].get("steps", 1) if plan.defense else 0
        width = sum(plan.model["init_args"].get("widths") or [64])
        return Operations(training=1e6 * width * (1 + g), inference=1e5 * width * (1 + g))

    monkeypatch.setattr(Study, "run", seen)
    monkeypatch.setattr(does_g_add, "operations", counted)
    module = importlib.import_module(f"studies.{name}")
    if "digits" in getattr(module, "SETTINGS", {}):  # embedded, so that their number is known
        split = Digits(validation=0.2)
        split.setup("test")
        assert module.SETTINGS["digits"].images <= len(split.test_dataloader().dataset)
    root = invented(folder / "tiny") if name == "tiny_imagenet" else folder
    places = ["--root", str(root), "--checkpoints", str(folder), "--output", str(folder)]
    for scale in (["--scale", "small", "--f_b", str(folder / "f_b.pth")], ["--scale", "paper"]):
        with pytest.raises(PlannedError):
            module.run([*scale, *places])
    assert len({job.name for job in planned}) == len(planned)
    for model in models:
        if not isinstance(model.work, TrainingPlan):
            assert model.work.function is train_h
            settings = typed({**model.work.arguments["settings"], "checkpoint": "a.ckpt"})
            kinds = ("data", "training")
            read(reparameterization.parser(), settings, kinds, {"data": "digits"})
    understood = []  # many points of a study differ by their model alone
    for job in planned:
        nodes = {}
        if isinstance(job.work, EvaluationPlan):
            nodes = job.work.attacks
        elif job.work.function is matrix:
            _, _, rest = split_attacks(command_line(**job.work.arguments))
            read(transfer.parser(), rest, ("data",), {"data": "cifar10"})
        for attack, node in nodes.items():
            if node not in understood:
                understood.append(node)
                checked(node, attack)


def test_all_trainings_may_be_longer(folder, monkeypatch):
    epochs = {}

    def seen(self, points):
        for model in self.scale.models.values():
            if model.label.startswith("converged"):
                epochs.setdefault(self.longer, []).append(model.work.trainer["max_epochs"])
        raise PlannedError

    monkeypatch.setattr(Study, "run", seen)
    places = ["--checkpoints", str(folder), "--output", str(folder)]
    for longer in ([], ["--longer", "3"]):
        with pytest.raises(PlannedError):
            converged.run(["--scale", "smoke", *longer, *places])
    assert epochs == {1: [2, 1, 2, 1], 3: [6, 3, 6, 3]}
    with pytest.raises(UserError, match="--longer 0: give 1 or more"):
        converged.run(["--longer", "0", *places])


def test_some_of_the_recipes_may_be_compared():
    names = tuple(converged.RECIPES)
    assert converged.chosen(None, names) == names
    # In the table's order, beside what they are compared with.
    assert converged.chosen(["g", "TRADES"], names) == (converged.YARDSTICK, "TRADES", "g")
    with pytest.raises(UserError, match='--recipes trades: no such recipe here; give .*"g"'):
        converged.run(["--recipes", "trades"])


def test_defenses_stand_before_a_packaged_model(folder, monkeypatch):
    planned = {}

    def seen(self, points):
        planned.update(points)
        assert not self.scale.models or "f_b" in next(iter(self.scale.models))
        raise PlannedError

    monkeypatch.setattr(Study, "run", seen)
    asked = ["--base", "digits-adversarial", "--checkpoints", str(folder), "--output", str(folder)]
    with pytest.raises(PlannedError):
        test_time_defenses.run(["--scale", "smoke", *asked])
    assert [*planned] == [f"digits-adversarial: {name}" for name in test_time_defenses.SMOKE]
    network = read_recipe("digits-adversarial")["model"]
    said = {key: value for key, value in network["init_args"].items() if value is not None}
    for plan in planned.values():
        assert plan.weights == "digits-adversarial"
        assert plan.model["class_path"] == network["class_path"]
        assert said.items() <= plan.model["init_args"].items()
    with pytest.raises(UserError, match="--base"):  # trained behind a defense of its own
        test_time_defenses.run(["--base", "digits-g"])
