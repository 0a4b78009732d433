"""What ``python evaluate.py`` does: parse, build, attack, report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.progress import Progress
from torch import nn

from robusttrain.commands import transfer
from robusttrain.commands.auditing import begin_audit, finish_audit, images_of, kept_audit
from robusttrain.commands.estimate import announce, check_sources
from robusttrain.commands.f_b import provide_f_b
from robusttrain.commands.keeping import fingerprint, keep, open_journal
from robusttrain.commands.precision import Run, choose_precisions
from robusttrain.commands.surrogate_training import train_surrogate
from robusttrain.commands.surrogates import Keeper, surrogates_in, with_paths
from robusttrain.commands.train import PLACES
from robusttrain.config import presets
from robusttrain.config.attacks import attack_nodes, scenario, split_attacks, stem
from robusttrain.config.build import build, build_defended, check_pretrained, check_trust, fit_to_data
from robusttrain.config.checkpoints import load, newest, read_recipe
from robusttrain.config.command_line import (
    add_trainer,
    config_files,
    listed,
    new_parser,
    plain,
    read,
    take,
    trainer_from,
)
from robusttrain.config.suites import left_out, suite, suite_settings
from robusttrain.core.console import console, first_process, say
from robusttrain.core.errors import UserError, at_least
from robusttrain.core.processor import processor
from robusttrain.core.stopping import saying_how_to_go_on
from robusttrain.data import ImageData
from robusttrain.defenses import Defense
from robusttrain.evaluation import LEAST, Audit, Engine, Evaluation, audit_table, one_threat, table
from robusttrain.evaluation.export import check_export, export, told_export
from robusttrain.evaluation.precision import Precision
from robusttrain.models.defended import DefendedClassifier
from robusttrain.storage.files import writable, write_json
from robusttrain.storage.journal import refuse_others
from robusttrain.storage.weights import load_weights

KINDS = ("data", "model", "defense")


def parser() -> ArgumentParser:
    """The options of evaluate.py."""
    options = new_parser(
        prog="evaluate.py",
        description="Attack a classifier and report what is left of it. Without --checkpoint or --model: the newest "
        "checkpoint. --attack NAME and --suite NAME are repeatable; --attack.KEY VALUE overrides a value in every "
        "attack, --attack.NAME.KEY VALUE in one. --list shows all presets. --models A B ... measures transfer between "
        "models instead, with options of its own: --models --help.",
    )
    options.add_argument("--checkpoint", type=str | None, default=None, help="file that train.py left")
    options.add_argument("--checkpoints", type=str, default="checkpoints", help="folder where the newest is looked for")
    options.add_argument("--trust", type=list[str] | str, default=[], help="packages that a checkpoint may name")
    options.add_subclass_arguments(nn.Module, "model", help="a network instead: a preset, YAML file or class path")
    options.add_argument("--weights", type=str | None, default=None, help="its weights: safetensors or state dict")
    options.add_argument("--defense", type=Defense | None, default=None, help="what stands before it; or 'none'")
    options.add_subclass_arguments(ImageData, "data", help="data set; default: the checkpoint's own")
    options.add_argument(
        "--attack", type=list[str] | str | None, default=None, help="attack preset or file, repeatable"
    )
    options.add_argument(
        "--suite", type=list[str] | str | None, default=None, help="several attacks by one name, repeatable"
    )
    options.add_argument("--epsilon", type=float | None, default=None, help="radius of the threat, for every attack")
    options.add_argument("--images", type=int | None, default=None, help="size of a seeded subset of the test images")
    options.add_argument("--draws", type=int, default=10, help="fresh draws of a random defense that score an image")
    options.add_argument(
        "--precision",
        type=Precision,
        default="auto",
        help="in which attacks differentiate; auto: the faster one here, where rounding leaves an attack as strong. "
        "Verdicts are always in float32",
    )
    options.add_argument("--survivors", type=bool, default=False, help="attack only images that no attack before broke")
    options.add_argument(
        "--surrogate_epochs", type=int | None, default=None, help="epochs of models that an attacker trains first"
    )
    options.add_argument("--seed", type=int, default=0, help="of every random number")
    options.add_argument("--output", type=str, default="results/newest", help="folder for results.json and the journal")
    options.add_argument("--fresh", type=bool, default=False, help="drop what an unfinished run left in --output")
    options.add_argument("--audit", type=bool, default=True, help="look for weak attacks and masked gradients")
    options.add_argument(
        "--audit_images", type=int | None, default=None, help="of its sample; default: by cost, 8 to 32"
    )
    options.add_argument("--strict", type=bool, default=False, help="exit code 3 unless the audit's verdict is sound")
    options.add_argument("--save_images", type=bool, default=False, help="keep adversarial images (safetensors)")
    options.add_argument(
        "--export", type=str | None, default=None, help="png: write adversarial images as files, and judge those too"
    )
    options.add_argument("--save_verdicts", type=bool, default=False, help="keep each image's verdicts (safetensors)")
    where = {"accelerator", "strategy", "devices", "num_nodes", "limit_test_batches", "fast_dev_run", "plugins"}
    add_trainer(options, {}, only=where)
    return options


def run(arguments: list[str]) -> None:
    """Attack as the command line says."""
    command = transfer.run if transfer.chosen(arguments) else _attack
    with saying_how_to_go_on(say, lambda: "what was finished is kept; the same command goes on from there"):
        command(arguments)


def _attack(arguments: list[str]) -> None:
    """Attack one target."""
    names, overrides, rest = split_attacks(arguments)
    config, path = configure(rest)
    at_least("--draws", config.draws, 1)
    at_least("--surrogate_epochs", 1 if config.surrogate_epochs is None else config.surrogate_epochs, 1)
    at_least("--audit_images", LEAST if config.audit_images is None else config.audit_images, LEAST)
    if config.strict and not config.audit:
        raise UserError("--strict true needs the audit: leave out --audit false")
    suites = [value for _, value in take(arguments, lambda option: option == "--suite")[0]]
    asked_for = [value for _, value in take(arguments, lambda option: option == "--attack")[0]]
    if not names:  # a configuration file may name them
        suites, asked_for = listed(config.suite), listed(config.attack)
        names = [*asked_for, *(name for preset in suites for name in suite(preset))]
        named = {option.partition("=")[0] for option in rest}
        settings = {key: value for preset in suites for key, value in suite_settings(preset).items()}
        if "--survivors" not in named:
            config.survivors = settings.get("survivors", config.survivors)
        config.images = settings.get("images") if config.images is None else config.images
    nodes = attack_nodes(names or ["pgd"], overrides, config.epsilon)
    attacks = {name: scenario(node, name) for name, node in nodes.items()}
    output = writable(Path(config.output), "--output")
    data: ImageData = build(plain(config.data), "data", kind=ImageData)
    if config.images is not None:
        data.limit_test(config.images, config.seed)
    target, told = build_target(config, data, path)
    target.eval()
    check_export(config.export, data.facts().channels)
    data.prepare_data()
    data.setup("test")

    unfit = {stem(name): why for name, why in left_out(suites, asked_for, target, data).items()}
    for name, why in unfit.items():
        console.print(f"left out: {name}, because {why}", soft_wrap=True, highlight=False)
    nodes = {name: node for name, node in nodes.items() if name not in unfit}
    attacks = {name: each for name, each in attacks.items() if name not in unfit}
    trainer = trainer_from(
        {**plain(config.trainer), "enable_model_summary": False, "enable_progress_bar": False},
        logger=False,
        enable_checkpointing=False,
    )
    device = trainer.strategy.root_device
    known = fingerprint(config, target, nodes)
    this = Run(output, known, config.fresh and first_process())
    precisions = choose_precisions(config.precision, target, attacks, data, config.seed, this, device)
    known |= {"precision": precisions}
    if needed := surrogates_in(nodes):
        # What does not fit is found before the attacker's models are trained.
        if not config.fresh:
            refuse_others(output / "journal", known)
        one_threat(attacks)
        at_hand = {name: attacks[name] for name, node in nodes.items() if not surrogates_in(node)}
        check_sources(Engine(target, at_hand), data)
        folder, defense = Path(config.checkpoints) / "surrogates", plain(config.defense)
        keeper = Keeper(folder, target, training_data(config, path), plain(config.trainer), defense)
        paths = keeper.provide(needed, train_surrogate, config.surrogate_epochs)
        attacks = {name: scenario(with_paths(node, paths), name) for name, node in nodes.items()}
    precision = {name: getattr(torch, chosen) for name, chosen in precisions.items()}
    keep_images = config.save_images or config.export is not None
    engine = Engine(target, attacks, config.seed, config.draws, precision, config.survivors, keep_images)
    engine.kept = journal = open_journal(output / "journal", known, engine, config.fresh)

    def wait(count: int) -> None:
        console.print(f"waiting for {count} batches that other processes work on", soft_wrap=True)

    evaluation = Evaluation(engine, journal, wait)
    audited = kept_audit(journal, config.audit_images) if config.audit else {}
    audit = Audit(engine, images_of(data), config.audit_images) if config.audit and not audited else None
    total = announce(engine, data, audit)
    if audit is not None and first_process():
        begin_audit(audit, evaluation, data, config.seed, device)
    with Progress(console=console, disable=not sys.stderr.isatty() or total is None) as progress:
        task = progress.add_task("attacking", total=(total or 0) / trainer.world_size)
        engine.advance = lambda count: progress.advance(task, count)
        trainer.test(evaluation, datamodule=data, verbose=False)
    if not trainer.is_global_zero:
        return
    found = {"target": told, "data": data_name(config), **evaluation.found}
    found["precision"] = {"asked": config.precision, "attacks": precisions}
    found["processor"] = processor(device)
    found["left_out"] = unfit
    write_json(found, output / "results.json")
    keep(evaluation, output, config)
    if config.export:
        pictures = output / "png"
        found["export"] = export(engine, data, evaluation.records, pictures, data.batch_size)
        write_json(found, output / "results.json")
        console.print(told_export(found["export"], pictures), soft_wrap=True)
    if audit is not None:
        audited = finish_audit(audit, evaluation, device, journal)
    if audited:
        found |= audited
        write_json(found, output / "results.json")
    journal.finish()
    console.print(table(found))
    if audited:
        console.print(audit_table(found))
    console.print(f"written: {output / 'results.json'}", soft_wrap=True)
    if config.strict and found["verdict"] != "sound":
        sys.exit(3)


def configure(arguments: list[str]) -> tuple[Namespace, Path | None]:
    """The configuration, and the checkpoint that it started from, if any."""
    options = parser()
    files, _ = config_files(arguments)
    nodes = [presets.read_yaml(path, "--config") for path in files]
    named = [argument.partition("=")[0] for argument in arguments]
    named += [f"--{key}" for node in nodes for key in node]
    if "--model" in named or any(option.startswith("--model.") for option in named):
        if "--checkpoint" in named:
            raise UserError("--checkpoint and --model exclude each other: a checkpoint names its own model")
        config = read(options, arguments, KINDS, {"data": "digits"})
        return config, None
    if "--weights" in named:
        raise UserError("--weights: name the network that they belong to with --model NAME")
    if "--defense" in named:
        raise UserError("--defense: a checkpoint has its own; change its values (--defense.radius 0.1) or use --model")
    # A first look for these two alone; the full check follows once the checkpoint's own options are known.
    if "--help" in named or "-h" in named:
        options.parse_args(["--help"])
    if "--defense.weights" in named:
        raise UserError("--defense.weights: a checkpoint holds its own f_b; to exchange it, use --model and --weights")
    look = new_parser()
    look.add_argument("--checkpoint", type=str | None, default=None)
    look.add_argument("--checkpoints", type=str, default="checkpoints")
    look.add_argument("--trust", type=list[str] | str, default=[])
    in_files: dict[str, Any] = {
        key: node[key] for node in nodes for key in ("checkpoint", "checkpoints", "trust") if key in node
    }
    look.set_defaults(in_files)
    wanted = ("--checkpoint", "--checkpoints", "--trust")
    given, _ = take(arguments, lambda option: option in wanted)
    early = read(look, [f"{option}={value}" for option, value in given], (), {})
    path = Path(early.checkpoint) if early.checkpoint else newest(early.checkpoints)
    recipe = read_recipe(path)
    # Before jsonargparse imports a class that the file names.
    check_trust([recipe["model"], recipe["defense"], recipe["data"]], ["robusttrain", *listed(early.trust)])
    first: dict[str, Any] = {key: recipe[key] for key in ("model", "defense", "data") if recipe.get(key)}
    return read(options, arguments, KINDS, first), path


def build_target(config: Namespace, data: ImageData, path: Path | None) -> tuple[DefendedClassifier, str]:
    """The target, and how the report names it."""
    model, defense = plain(config.model), plain(config.defense)
    facts = data.facts()
    if path is not None:
        recipe = {**read_recipe(path), "model": model, "defense": defense}
        classes = (model.get("init_args") or {}).get("num_classes", facts.num_classes)
        if classes != facts.num_classes:
            raise UserError(f"{path} has {classes} classes, the data set {facts.num_classes}: change --data")
        return load(path, listed(config.trust), recipe), str(path)
    fit_to_data(model, facts, "model")
    fit_to_data(defense, facts, "defense")
    if defense is not None:
        provide_f_b(
            defense, data, "f_b", Path(config.checkpoints) / "f_b", plain(config.trainer), config.seed, train=False
        )
    target = build_defended(model, defense)
    name = model["class_path"].rpartition(".")[2]
    if config.weights is None:
        check_pretrained(target.classifier, facts.num_classes)
        return target, f"{name} {getattr(target.classifier, 'name', '')}".rstrip()
    load_weights(target.classifier, config.weights)
    return target, f"{name} {config.weights}"


def training_data(config: Namespace, path: Path | None) -> dict[str, Any]:
    """The configuration of the data that the target was trained on, from where they lie now.

    Batches are those of that training: what an attacker trains must not depend on the batches of an evaluation.
    """
    now = plain(config.data)
    if path is None:
        return now
    then = read_recipe(path)["data"]
    if then["class_path"] != now["class_path"]:
        return now
    places = {key: value for key, value in (now.get("init_args") or {}).items() if key in PLACES}
    return {**then, "init_args": {**(then.get("init_args") or {}), **places}}


def data_name(config: Namespace) -> str:
    """The data set's name in the report: its class, and its folder where it has one."""
    node = plain(config.data)
    root = (node.get("init_args") or {}).get("root")
    return node["class_path"].rpartition(".")[2] + (f" {root}" if root else "")
