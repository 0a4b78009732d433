"""What TensorBoard's table of hyperparameters shows of a training, in the order of its columns.

torch's ``add_hparams`` would write final figures as dots at step 0 and leave the order to the
alphabet, in which a crop comes before a defense. So the three summaries are written here. All runs
have the same columns: TensorBoard takes those of whichever run it finds first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

from robusttrain.core.parts import class_name

#: A value in the table.
Value = str | float
#: Figures of the table: the metric whose last value is shown, and what it is called.
FIGURES = {
    "val/accuracy": "clean accuracy",
    "robust/worst_case": "robust accuracy",
}


def columns(recipe: Mapping[str, Any], epochs: int | None = None) -> dict[str, Value]:
    """The hyperparameters that tell trainings apart, the most important ones first.

    Args:
        recipe: of a checkpoint: nodes of model, defense and data, training and run.
        epochs: of the run; None if only its user ends it.
    """
    training, run = recipe["training"], recipe["run"]
    objective = training["objective"]
    attack = next(_under(objective, "attack"), None)
    threat = next(_under(objective, "threat"), None)
    return {
        "defense": named(recipe["defense"]),
        "objective": named(objective),
        "attack": described(attack, threat),
        # Training without an attack is training within a radius of 0.
        "epsilon": float(threat["init_args"]["epsilon"]) if threat else 0.0,
        "model": named(recipe["model"]),
        "data": named(recipe["data"]),
        "epochs": float(epochs or 0),
        "optimizer": training["optimizer"],
        "learning rate": float(training["learning_rate"]),
        "schedule": training["schedule"],
        "weight decay": float(training["weight_decay"]),
        "mixing": training["mixing"],
        "ema": float(run["ema"]),
        "batch size": float((recipe["data"].get("init_args") or {}).get("batch_size", 0)),
        "seed": float(run["seed"]),
    }


def named(node: Mapping[str, Any] | None) -> str:
    """A part and the parts inside of it that are of its own kind: "AWP(TRADES)", "A + B"."""
    if node is None:
        return "none"
    arguments = node.get("init_args") or {}
    if chained := arguments.get("defenses"):
        return " + ".join(named(each) for each in chained)
    name = class_name(node["class_path"])
    if arguments.get("objective") and "attack" not in arguments:
        return f"{name}({named(arguments['objective'])})"
    return f"{name} {arguments['name']}" if isinstance(arguments.get("name"), str) else name


def described(attack: Mapping[str, Any] | None, threat: Mapping[str, Any] | None) -> str:
    """An inner attack in a few words: "10 steps, Linf, ProjectedGradient"; narrow columns show the
    first ones.
    """
    if attack is None:
        return "none" if threat is None else f"one of its own, {class_name(threat['class_path'])}"
    steps = (attack.get("init_args") or {}).get("steps")
    words = [f"{steps} step{'' if steps == 1 else 's'}"] if steps is not None else []
    words += [class_name(threat["class_path"])] if threat else []
    return ", ".join([*words, class_name(attack["class_path"])])


def _under(value: Any, key: str) -> Iterator[Mapping[str, Any]]:
    """The nodes that are called so, the outermost ones first."""
    if isinstance(value, Mapping):
        if isinstance(node := value.get(key), Mapping) and "class_path" in node:
            yield node
        value = [*value.values()]
    if isinstance(value, list):
        for item in value:
            yield from _under(item, key)


def beginning(values: Mapping[str, Value]) -> list[Summary]:
    """What is written when a run begins: the columns, and its values in them."""
    experiment = api_pb2.Experiment(
        hparam_infos=[
            api_pb2.HParamInfo(
                name=_sorted_name(place, name),
                display_name=name,
                type=api_pb2.DATA_TYPE_STRING
                if isinstance(value, str)
                else api_pb2.DATA_TYPE_FLOAT64,
            )
            for place, (name, value) in enumerate(values.items())
        ],
        metric_infos=[
            api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=name)
            for tag, name in FIGURES.items()
        ],
    )
    started = plugin_data_pb2.SessionStartInfo()
    for place, (name, value) in enumerate(values.items()):
        cell = started.hparams[_sorted_name(place, name)]
        if isinstance(value, str):
            cell.string_value = value
        else:
            cell.number_value = value
    return [
        _summary(metadata.EXPERIMENT_TAG, experiment=experiment),
        _summary(metadata.SESSION_START_INFO_TAG, session_start_info=started),
    ]


def ending() -> Summary:
    """What is written when a run has ended well."""
    ended = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS)
    return _summary(metadata.SESSION_END_INFO_TAG, session_end_info=ended)


def _sorted_name(place: int, name: str) -> str:
    """TensorBoard sorts columns by this name, and shows the other one."""
    return f"{place:02d} {name}"


def _summary(tag: str, **content: Any) -> Summary:
    data = plugin_data_pb2.HParamsPluginData(version=metadata.PLUGIN_DATA_VERSION, **content)
    plugin = SummaryMetadata.PluginData(
        plugin_name=metadata.PLUGIN_NAME, content=data.SerializeToString()
    )
    return Summary(value=[Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))])
