"""A small evaluation: a linear model on digits, in a few tenths of a second."""

from functools import cache

import torch
from torch import nn

from robusttrain.config.attacks import attack_nodes, scenario
from robusttrain.config.trainer import trainer_from
from robusttrain.data import Digits
from robusttrain.evaluation.plan import EvaluationPlan
from robusttrain.evaluation.running import Subject, attack
from robusttrain.models.defended import DefendedClassifier
from robusttrain.reporting.report import write_report

DATA = {"class_path": "robusttrain.data.Digits", "init_args": {"image_size": 8}}


class Noisy(nn.Module):
    """Adds noise of each image's own streams to what a model sees."""

    takes_rng = random = True

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images, rng=None):
        return self.model(images + 0.05 * rng.normal(images.shape[1:]))


@cache
def classifier(epochs=40):
    """A linear classifier of digits: about nine in ten are right."""
    data = Digits(image_size=8)
    data.setup("fit")
    images = data._train.images.float().flatten(1) / 255
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(epochs):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model[1](images), data._train.labels).backward()
        optimizer.step()
    return model.eval()


def run_small(
    folder,
    attacks=("pgd-quick", "fgsm"),
    overrides=(),
    epsilon=0.05,
    model=None,
    batch_size=64,
    defense=None,
    **options,
):
    """Evaluate into a folder, with the report; the folder."""
    nodes = attack_nodes(list(attacks), list(overrides), epsilon)
    init = {**DATA["init_args"], "batch_size": batch_size}
    options = {"images": 60, "audit": False, "draws": 4, **options}
    plan = EvaluationPlan(
        {"class_path": "torch.nn.Sequential"},
        nodes,
        {**DATA, "init_args": init},
        output=str(folder),
        **options,
    )
    data = Digits(**init)
    data.limit_test(plan.images, plan.seed)
    data.setup("test")
    target = DefendedClassifier(defense, model or classifier()).eval()
    built = {name: scenario(node, name) for name, node in nodes.items()}
    trainer = trainer_from(
        {"accelerator": "cpu", "enable_model_summary": False, "enable_progress_bar": False},
        logger=False,
        enable_checkpointing=False,
    )
    subject = Subject(target, "a linear model", data)
    precisions = dict.fromkeys(nodes, "float32")
    attack(plan, subject, built, precisions, trainer, written=write_report)
    return folder
