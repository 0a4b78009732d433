"""What ``python evaluate.py --models A B ...`` does: craft on each model, test on all of them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.progress import Progress

from robusttrain.commands.models import named_models
from robusttrain.commands.surrogates import surrogates_in
from robusttrain.config import presets
from robusttrain.config.attacks import attack_nodes, scenario, split_attacks
from robusttrain.config.build import build
from robusttrain.config.command_line import config_files, listed, new_parser, plain, read
from robusttrain.config.suites import suite
from robusttrain.core.console import console, say
from robusttrain.core.errors import UserError, at_least
from robusttrain.data import Batch, ImageData
from robusttrain.evaluation import one_threat
from robusttrain.reporting import heat_map, perturbations, png
from robusttrain.storage.files import writable, write_json
from robusttrain.transfer import (
    Crafting,
    Estimate,
    Found,
    Matrix,
    Planned,
    every_model_right,
    matching_matrix,
    success_matrix,
)
from robusttrain.transfer.commonly_correct import commonly_correct

#: What a suite may set of these options; the command line overrides it.
SUITE_OPTIONS = ("epsilon", "held_out")


def chosen(arguments: Sequence[str]) -> bool:
    """Whether a command line of evaluate.py asks for transfer between several models."""
    files, rest = config_files(arguments)
    named = any(option.partition("=")[0] == "--models" for option in rest)
    return named or any("models" in presets.read_yaml(path, "--config") for path in files)


def parser() -> ArgumentParser:
    """The options of evaluate.py for several models."""
    options = new_parser(
        prog="evaluate.py --models",
        description=(
            "Craft adversarial images on each of several models, and test them on all. Images that"
            " all models classify correctly count. --attack and --suite as without --models."
        ),
    )
    options.add_argument(
        "--models",
        type=str,
        nargs="+",
        help=(
            "two or more: model presets or YAML files with weights, checkpoints of train.py,"
            " timm:NAME (pretrained)"
        ),
    )
    options.add_argument(
        "--targets", type=str, nargs="+", default=None, help="those that are tested; default: all"
    )
    options.add_argument(
        "--sources",
        type=str,
        nargs="+",
        default=None,
        help="those that are crafted on; default: all",
    )
    options.add_argument(
        "--held_out", type=bool, default=False, help="craft also on all models but one, as one"
    )
    options.add_argument(
        "--fuse", type=str, default="logits", help="how: logits, probabilities or losses"
    )
    options.add_argument(
        "--trust", type=list[str] | str, default=[], help="packages that a checkpoint may name"
    )
    options.add_subclass_arguments(
        ImageData, "data", help="data set: a preset, YAML file or class path"
    )
    options.add_argument(
        "--attack", type=list[str] | str | None, default=None, help="preset or file, repeatable"
    )
    options.add_argument(
        "--suite", type=list[str] | str | None, default=None, help="several attacks by one name"
    )
    options.add_argument(
        "--epsilon", type=float | None, default=None, help="radius of the threat, for every attack"
    )
    options.add_argument(
        "--images", type=int | None, default=None, help="size of a seeded subset of the test images"
    )
    options.add_argument(
        "--draws", type=int, default=10, help="fresh draws of a random target for each image"
    )
    options.add_argument(
        "--precision", type=str, default="float32", help="of attacks: float32 or bfloat16"
    )
    options.add_argument("--seed", type=int, default=0, help="of every random number")
    options.add_argument(
        "--crafted",
        type=str,
        default="results/crafted",
        help="folder where crafted images are kept",
    )
    options.add_argument(
        "--output",
        type=str,
        default="results/transfer",
        help="folder for results.json and pictures",
    )
    return options


def run(arguments: list[str]) -> None:
    """Craft, test and report as the command line says."""
    # Also behind an option that waits for its values
    if "--help" in arguments or "-h" in arguments:
        parser().parse_args(["--help"])
    names, overrides, rest = split_attacks(arguments, SUITE_OPTIONS)
    config = read(parser(), rest, ("data",), {"data": "imagenet"})
    check(config)
    # A configuration file may name them as well.
    names = names or [
        *listed(config.attack),
        *(name for preset in listed(config.suite) for name in suite(preset)),
    ]
    names = names or ["fgsm"]
    nodes = attack_nodes(names, overrides, config.epsilon)
    for name, node in nodes.items():
        if surrogates_in(node):
            raise UserError(
                f"--attack {name}: brings a source model of its own; with --models, the models are"
                " sources"
            )
    attacks = {name: Planned(scenario(node, name), node) for name, node in nodes.items()}
    one_threat({name: planned.scenario for name, planned in attacks.items()})
    output, crafted = (
        writable(Path(config.output), "--output"),
        writable(Path(config.crafted), "--crafted"),
    )
    data: ImageData = build(plain(config.data), "data", kind=ImageData)
    if config.images is not None:
        data.limit_test(config.images, config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = named_models(config.models, data, listed(config.trust), device)
    sources, targets = (
        among(models, config.sources, "--sources"),
        among(models, config.targets, "--targets"),
    )
    data.prepare_data()
    data.setup("test")

    defended = {name: model.defended for name, model in models.items()}
    common = commonly_correct(defended, data.test_dataloader(), data.num_classes, config.seed)
    console.print(
        f"{len(common.indices)} of {common.candidates} images are classified correctly by all of"
        f" {', '.join(models)}",
        soft_wrap=True,
    )
    precision = getattr(torch, config.precision)

    crafting = Crafting(
        models, attacks, crafted, config.seed, precision, config.draws, config.fuse, say
    )
    makers = {name: [name] for name in sources}
    if config.held_out:
        makers |= {f"all but {name}": [each for each in models if each != name] for name in targets}
    for name in attacks:  # what does not fit is found before hours are spent
        for members in makers.values():
            crafting.source(name, members)

    def batches() -> Iterable[Batch]:
        for start in range(0, len(common.indices), data.batch_size):
            batch = data.test_images(common.indices[start : start + data.batch_size])
            yield Batch(*(part.to(device) for part in batch))

    clean = crafting.clean(targets, batches())
    labels = torch.cat([batch.labels.cpu() for batch in batches()])
    announce(attacks, makers, len(labels))
    found: dict[str, dict[str, Found]] = {name: {} for name in attacks}
    with Progress(console=console, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(
            "crafting and testing", total=len(attacks) * len(makers) * len(labels)
        )

        def watched() -> Iterable[Batch]:
            for batch in batches():
                yield batch
                progress.advance(task, len(batch.labels))

        for name in attacks:
            for maker, members in makers.items():
                found[name][maker] = crafting.run(name, members, targets, watched())
    matrices = {name: measure(found[name], labels, clean) for name in attacks}
    about: dict[str, Any] = {
        "models": {name: model.about for name, model in models.items()},
        "data": type(data).__name__,
        "images": len(labels),
        "candidates": common.candidates,
        "threat": threat(attacks),
        "seed": config.seed,
        "draws": config.draws if any(models[name].defended.random for name in targets) else 1,
        "precision": config.precision,
    }
    write_json(
        {**about, "attacks": {name: told(found[name], matrices[name]) for name in attacks}},
        output / "results.json",
    )
    for name, measured in matrices.items():
        console.print(f"[bold]{name}[/bold]")
        for kind in (kind for kind in measured if kind.endswith("top1")):
            (output / f"{name}-{kind}.png").write_bytes(png(heat_map(measured[kind])))
            console.print(measured[kind].table())
    shown = next(iter(batches()))
    (output / "images.png").write_bytes(
        pictured(found, next(iter(makers)), targets[-1], shown, data)
    )
    console.print(
        f"written: {output / 'results.json'}, with a heat map of every matrix and images.png",
        soft_wrap=True,
    )


def told(found: dict[str, Found], measured: dict[str, Matrix]) -> dict[str, Any]:
    """One attack's part of results.json."""
    cost = next(iter(found.values()))
    return {
        **{kind: matrix.json() for kind, matrix in measured.items()},
        "rmsd": {
            maker: Estimate.mean(each.distances["rmsd"]).json() for maker, each in found.items()
        },
        "gradient_evaluations_per_image": cost.gradients,
        "queries_per_image": cost.queries,
        "seconds": {maker: round(each.seconds, 1) for maker, each in found.items()},
        "knows": "the source and the labels, of other targets nothing",
    }


def check(config: Namespace) -> None:
    """Raise UserError for options that cannot work."""
    if len(config.models or ()) < 2:
        raise UserError(
            f"--models {' '.join(config.models or [])}: name two models or more to measure transfer"
        )
    at_least("--draws", config.draws, 1)
    for option, choices in (
        ("precision", ("float32", "bfloat16")),
        ("fuse", ("logits", "probabilities", "losses")),
    ):
        if config[option] not in choices:
            raise UserError(f"--{option} {config[option]}: must be one of {', '.join(choices)}")
    if config.held_out and len(config.models) < 3:
        raise UserError(
            f"--held_out true: needs three models or more, --models names {len(config.models)}"
        )


def among(models: Iterable[str], chosen: list[str] | None, option: str) -> list[str]:
    """Names out of ``--models``; all of them where none is chosen."""
    known = list(models)
    if unknown := [name for name in chosen or () if name not in known]:
        raise UserError(f"{option} {unknown[0]}: is not among the models ({', '.join(known)})")
    return chosen or known


def announce(attacks: dict[str, Planned], makers: dict[str, list[str]], images: int) -> None:
    """Say what crafting costs before it starts."""
    models = sum(map(len, makers.values()))
    for name, planned in attacks.items():
        cost = planned.scenario.attack.cost()
        told = f"{cost.gradients} gradient evaluations" + (
            f" and {cost.queries} queries" if cost.queries else ""
        )
        console.print(
            f"{name}: {told} per image and model, {images} images, {models} models in {len(makers)}"
            f" sources: {cost.gradients * images * models:,} gradient evaluations, less what is"
            " kept from before",
            soft_wrap=True,
            highlight=False,
        )


def threat(attacks: dict[str, Planned]) -> dict[str, Any]:
    """Norm and radius that all attacks share."""
    shared = next(iter(attacks.values())).scenario.attack.threat
    return {"norm": shared.norm, "epsilon": shared.epsilon}


def measure(
    found: dict[str, Found], labels: torch.Tensor, clean: dict[str, torch.Tensor]
) -> dict[str, Matrix]:
    """The matrices of one attack: success, and for targeted attacks matching, top-1 and top-5."""
    of = every_model_right(clean, labels)
    answers = {maker: each.classes for maker, each in found.items()}
    tops = [top for top in (1, 5) if top <= next(iter(clean.values())).shape[2]]
    measured = {f"success_top{top}": success_matrix(answers, labels, of, top) for top in tops}
    goals = {maker: each.goals for maker, each in found.items() if each.goals is not None}
    for top in tops if goals else ():
        # Sources may strive for classes of their own (the least likely one), so each row has its
        # own goals.
        rows = [
            matching_matrix({maker: answers[maker]}, labels, goals[maker], of, top)
            for maker in goals
        ]
        cells = {maker: row for matrix in rows for maker, row in matrix.cells.items()}
        measured[f"matching_top{top}"] = Matrix(rows[0].title, of.words, cells)
    return measured


def pictured(
    found: dict[str, dict[str, Found]],
    maker: str,
    target: str,
    batch: Batch,
    data: ImageData,
    count: int = 4,
) -> bytes:
    """Some adversarial images of one source beside their amplified perturbations, with what one
    target answers.
    """
    names = data.class_names
    adversarial = {name: makers[maker].examples[:count] for name, makers in found.items()}
    answers = {
        name: makers[maker].classes[target][:count, 0, 0].tolist() for name, makers in found.items()
    }
    said = {
        name: [names[label] if label >= 0 else "nothing" for label in each]
        for name, each in answers.items()
    }
    labels = [names[label] for label in batch.labels[:count].tolist()]
    return png(perturbations(batch.images[:count].cpu(), adversarial, labels, said))
