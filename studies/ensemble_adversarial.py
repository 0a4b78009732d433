"""Ensemble adversarial training at CIFAR scale (Tramer et al. 2018), on which xie-2018's best entry
stands.

No defense, adversarial training by the same single step on the model alone, and ensemble
adversarial training, whose adversarial images come from static models too: under the single step,
under PGD, and under transfer from a model that took part in no training.
"""

from __future__ import annotations

from dataclasses import dataclass

from robusttrain.commands.entry import main
from robusttrain.evaluation.plan import EvaluationPlan
from robusttrain.reporting import bars
from robusttrain.running.jobs import Job
from studies.black_box import crafted_on
from studies.scales import Scale
from studies.study import Study

#: Attacks on the model itself, and attacks that are crafted on the held-out model.
WHITE_BOX = ("fgsm", "pgd")
TRANSFERRED = ("fgsm", "mifgsm")


@dataclass(frozen=True)
class Contenders:
    """What is compared, and who attacks it.

    Args:
        models: by name.
        held_out: trained for the attacker alone.
    """

    models: dict[str, Job]
    held_out: Job


def contenders(scale: Scale) -> Contenders:
    """The models of a scale."""
    epochs = 1 if scale.name == "smoke" else 5
    static = [scale.f_a("standard", 1).checkpoint, scale.f_b(epochs).checkpoint]
    attack = "training.objective.attack"
    single = {f"{attack}.steps": 1, f"{attack}.step_size": 0.031, f"{attack}.random_start": False}
    ensemble = {"training.objective.models": static}
    models = {
        "no defense": scale.f_a("standard"),
        "single-step adversarial training": scale.training(
            "adversarial-one-step", {"training": "adversarial", **single}
        ),
        "ensemble adversarial training": scale.training(
            "ensemble-adversarial", {"training": "ensemble-adversarial", **ensemble}
        ),
    }
    return Contenders(models, scale.f_a("standard", 2))


def run(arguments: list[str]) -> None:
    """Run the study."""
    study = Study("ensemble_adversarial", __doc__, arguments, "digits")
    chosen, scale = contenders(study.scale), study.scale
    points: dict[str, EvaluationPlan] = {}
    for name, model in chosen.models.items():
        points |= {f"{name}, {attack}": scale.attacked(model, attack) for attack in WHITE_BOX}
        points |= {
            f"{name}, {attack} from elsewhere": scale.attacked(
                model, attack, crafted_on(chosen.held_out)
            )
            for attack in TRANSFERRED
        }
    results = study.run(points)

    rows, values = [], {}
    for name in chosen.models:
        measured = [
            *(results[f"{name}, {attack}"] for attack in WHITE_BOX),
            *(results[f"{name}, {attack} from elsewhere"] for attack in TRANSFERRED),
        ]
        rows.append(
            (
                name,
                measured[0].clean,
                *(point.only.robust for point in measured),
                "not at hand",
            )
        )
        names = (
            *(f"{attack}, white box" for attack in WHITE_BOX),
            *(f"{attack}, transfer" for attack in TRANSFERRED),
        )
        for column, point in zip(names, measured, strict=True):
            values[f"{name}: {column}"] = point.only.robust.accuracy or 0
    columns = ("model", "clean", "FGSM", "PGD", "FGSM, transfer", "MI-FGSM, transfer", "paper")

    def accuracy(name: str, attack: str) -> float:
        return results[f"{name}, {attack} from elsewhere"].only.robust.accuracy or 0

    single, ensemble = (
        [accuracy(name, attack) for attack in TRANSFERRED] for name in list(chosen.models)[1:]
    )
    holds = all(more > less for more, less in zip(ensemble, single, strict=True))
    verdict = "holds" if holds else "does not hold"
    notes = (
        (
            "Transfer is crafted on a standard model of seed 2; the static models are a standard"
            " one of seed 1 and a VGG."
        ),
        (
            "Tramer et al.: ensemble adversarial training withstands transfer better than"
            " single-step adversarial training on the model alone, whose gradients hide. Here, by"
            f" accuracies under transfer: {verdict}."
        ),
    )
    study.write(columns, rows, bars(values, study.title), notes)


if __name__ == "__main__":
    main(run)
