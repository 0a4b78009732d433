"""TensorBoard's files as its dashboards read them."""

import math
import re

import pytest
import yaml
from small_runs import defended, events, fit
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from robusttrain.config.attacks import scenarios
from robusttrain.core.parts import flat
from robusttrain.training.board import ENDS
from robusttrain.training.callbacks import Dashboard, Overfitting, Pace, RobustAccuracy
from robusttrain.training.hyperparameters import named

pytestmark = pytest.mark.filterwarnings("ignore")

RECIPE = {
    "model": {"class_path": "a.b.Net", "init_args": {"widths": [1, 2]}},
    "defense": None,
    "data": {"class_path": "a.Digits", "init_args": {"batch_size": 16, "crop": 1}},
    "training": {
        "objective": {
            "class_path": "a.Adversarial",
            "init_args": {
                "attack": {
                    "class_path": "a.PGD",
                    "init_args": {
                        "steps": 3,
                        "threat": {"class_path": "a.Linf", "init_args": {"epsilon": 0.25}},
                    },
                }
            },
        },
        "optimizer": "sgd",
        **{"learning_rate": 0.1, "schedule": "cosine", "weight_decay": 0.0, "mixing": "none"},
    },
    "run": {"ema": 0.0, "seed": 3},
}


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """Three epochs of two steps, with everything that logs."""
    folder = tmp_path_factory.mktemp("board")
    inner = next(iter(scenarios(["fgsm"]).values()))
    watching = [
        *(RobustAccuracy(scenarios(["fgsm"]), images=4, draws=1), Pace(), Dashboard(RECIPE)),
        Overfitting("robust/fgsm", inner, images=4, draws=1, say=lambda line: None),
    ]
    _, trainer = fit(folder, watching, epochs=3, model=defended(False), num_sanity_val_steps=1)
    return folder, {name: float(value) for name, value in trainer.callback_metrics.items()}


def curve(found, tag):
    return [(event.step, event.value) for event in found.Scalars(tag)]


def test_all_figures_of_an_epoch_stand_at_one_step(board):
    found = events(board[0])
    tags = found.Tags()["scalars"]
    assert {"val/accuracy", "inner/accuracy", "overfitting/fall", "train/loss"} <= {*tags}
    for tag in tags:
        assert [step for step, _ in curve(found, tag)] == [1, 3, 5], tag
    assert "epoch" not in tags
    assert [value for _, value in curve(found, "pace/epoch")] == [1, 2, 3]


def test_clean_robust_and_training_are_runs_of_their_own_in_one_chart(board):
    own = events(board[0])
    for line, tag in (
        ("clean", "val/accuracy"),
        ("robust", "robust/worst_case"),
        ("training", "train/accuracy"),
    ):
        assert curve(events(board[0], line), "accuracy") == curve(own, tag)
    assert curve(events(board[0], "clean"), "loss") == curve(own, "val/loss")
    assert curve(events(board[0], "training"), "loss") == curve(own, "train/loss")


def test_no_chart_of_accuracies_is_cut_off(board):
    """TensorBoard's view ends at the twentieth and the last but a twentieth of a chart's points."""
    lines = [events(board[0], line) for line in ("", "clean", "robust", "training", *ENDS)]
    tags = {tag for line in lines for tag in line.Tags()["scalars"]}
    shares = {tag for tag in tags if "accuracy" in tag or tag.startswith("robust/")}
    assert len(shares) >= 6
    for tag in shares | {"overfitting/robust", "inner/strength"}:
        drawn = [line for line in lines if tag in line.Tags()["scalars"]]
        values = sorted(value for line in drawn for _, value in curve(line, tag))
        last = len(values) - 1
        assert values[math.ceil(0.05 * last)] == 0, tag
        assert values[math.floor(0.95 * last)] >= 1, tag


def test_hyperparameters_begin_with_what_matters_and_figures_are_no_dots(board):
    folder, metrics = board
    found = events(folder)
    assert not [tag for tag in found.Tags()["scalars"] if tag.startswith("final")]

    def content(tag):
        plugin = found.summary_metadata[tag].plugin_data.content
        return HParamsPluginData.FromString(plugin)

    experiment = content("_hparams_/experiment").experiment
    by_name = sorted(experiment.hparam_infos, key=lambda info: info.name)  # as TensorBoard does
    assert [info.display_name for info in by_name][:6] == [
        *("defense", "objective", "attack", "epsilon", "model", "data"),
    ]
    cells = content("_hparams_/session_start_info").session_start_info.hparams
    values = [cells[info.name].string_value or cells[info.name].number_value for info in by_name]
    assert values[:7] == ["none", "Adversarial", "3 steps, Linf, PGD", 0.25, "Net", "Digits", 3]
    assert not [info for info in by_name if "crop" in info.name]
    # Figures are curves that are there: their last value is shown.
    shown = {info.name.tag: info.display_name for info in experiment.metric_infos}
    assert shown == {"val/accuracy": "clean accuracy", "robust/worst_case": "robust accuracy"}
    for tag in shown:
        assert curve(found, tag)[-1][1] == pytest.approx(metrics[tag], abs=1e-6)
    assert content("_hparams_/session_end_info").session_end_info.status == 1  # success


def test_the_text_says_what_was_trained_and_what_came_out(board):
    folder, metrics = board
    found = events(folder)

    def text(tag):
        (event,) = found.Tensors(f"{tag}/text_summary")
        return event.step, event.tensor_proto.string_val[0].decode()

    step, table = text("final")
    assert step == 5
    assert f"| robust/worst_case | {metrics['robust/worst_case']:.3f} |" in table.splitlines()
    _, told = text("configuration")
    assert yaml.safe_load(told.removeprefix("```yaml").removesuffix("```")) == RECIPE
    assert (folder / "run" / "version_0" / "hparams.yaml").is_file()


def test_the_layout_has_one_tag_in_a_chart(board):
    found = events(board[0])
    layout = layout_pb2.Layout.FromString(
        found.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    )
    (category,) = layout.category
    written = {*found.Tags()["scalars"], "accuracy", "loss"}
    for chart in category.chart:
        (pattern,) = chart.multiline.tag
        assert len([tag for tag in written if re.match(pattern, tag)]) == 1, chart.title


@pytest.mark.parametrize(
    ("node", "name"),
    [
        (None, "none"),
        ({"class_path": "a.TRADES", "init_args": {"attack": {}}}, "TRADES"),
        (
            {"class_path": "a.AWP", "init_args": {"objective": {"class_path": "a.MART"}}},
            "AWP(MART)",
        ),
        (
            {
                "class_path": "a.Chain",
                "init_args": {"defenses": [{"class_path": "a.B"}, {"class_path": "a.C"}]},
            },
            "B + C",
        ),
        ({"class_path": "a.Timm", "init_args": {"name": "resnet18"}}, "Timm resnet18"),
    ],
)
def test_parts_have_short_names(node, name):
    assert named(node) == name


def test_a_configuration_as_one_level():
    nested = {
        "defense": {
            "class_path": "robusttrain.defenses.Chain",
            "init_args": {
                "defenses": [{"class_path": "a.B", "init_args": {"low": 3}}, {"class_path": "a.C"}]
            },
        },
        "widths": [4, 8],
        "none": None,
        "flag": True,
    }
    assert flat(nested) == {
        "defense": "Chain",
        "defense.defenses.0": "B",
        "defense.defenses.0.low": 3,
        "defense.defenses.1": "C",
        "widths": "[4, 8]",
        "none": "None",
        "flag": True,
    }
