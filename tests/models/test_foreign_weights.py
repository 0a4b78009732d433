"""Weights files of other trainers: each loads as its trainer meant it, or gets one line why not."""

import argparse
import logging
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from robusttrain.config.build import build_defended
from robusttrain.config.checkpoints import load, recipe_of
from robusttrain.core.errors import OptionError
from robusttrain.models import MLP, CifarResNet, Normalize, TimmClassifier
from robusttrain.models.foreign import load_weights

MEAN, STD = 0.3, 0.2


def network(seed: int = 0) -> CifarResNet:
    torch.manual_seed(seed)
    return CifarResNet(4, 1, widths=[4, 8], blocks=1)


def behind(prefix: str, state: dict) -> dict:
    return {prefix + name: value for name, value in state.items()}


RAW, MEANS = network(1).state_dict(), network(2).state_dict()
PARAMETERS = {name for name, _ in network().named_parameters()}
SHADOW = {name: value for name, value in MEANS.items() if name in PARAMETERS}
BUFFERS = {name: value for name, value in RAW.items() if name not in PARAMETERS}


def constants(mean: str, std: str, *shape: int) -> dict:
    return {mean: torch.full(shape, MEAN), std: torch.full(shape, STD)}


def is_loaded(module: nn.Module, state: dict) -> bool:
    own = {name: value for name, value in module.state_dict().items() if "normalize" not in name}
    return own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in own)


def told(caplog) -> str:
    return " | ".join(record.getMessage() for record in caplog.records)


@pytest.fixture
def read(tmp_path, caplog):
    """Writes a file and loads it: the network, and the line that was logged."""

    def run(content, module=None, which=None, name="w.pth"):
        caplog.clear()
        torch.save(content, tmp_path / name)
        module = network() if module is None else module
        with caplog.at_level(logging.WARNING):
            load_weights(module, tmp_path / name, which, "--weights")
        assert len(caplog.records) <= 1
        return module, told(caplog)

    return run


OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
WRAPPED = {
    "model_state_dict": {"epoch": 3, "model_state_dict": RAW, "optimizer_state_dict": OPTIMIZER},
    "state_dict.model.*": {
        "state_dict": {**behind("model.", RAW), "criterion.weight": torch.ones(4)},
        "hyper_parameters": {"lr": 0.1},
    },
    "net.*": {"net": RAW, "acc": 93.1},
    "last.*": {"last": RAW},
    "model.*": {"model": RAW, "opt": {"state": [], "hypers": [{"lr": 0.1}]}},
    "module.*": {"module": RAW, "ds_version": "0.9"},
    "_orig_mod.module.*": behind("_orig_mod.module.", RAW),
    "encoder.net.*": behind("encoder.net.", RAW),
    "0.*": (RAW, 3),
    "without _fsdp_wrapped_module": {
        name.replace("stages.", "stages._fsdp_wrapped_module."): value
        for name, value in RAW.items()
    },
    "without module": {
        name.replace("stages.", "stages.module."): value for name, value in RAW.items()
    },
    "model.module.model.*": {
        "model": behind("module.model.", RAW) | behind("module.attacker.model.", RAW)
    },
}


@pytest.mark.parametrize("said", WRAPPED)
def test_one_place_whose_names_and_shapes_fit_is_taken_and_said(read, said):
    module, line = read(WRAPPED[said])
    assert is_loaded(module, RAW)
    assert said in line
    assert module.normalize.mean.item() == 0.5


def test_what_was_not_used_is_said(read):
    assert read(WRAPPED["state_dict.model.*"])[1].endswith("not used: state_dict.criterion")


def test_a_plain_file_loads_without_a_word(read):
    module, line = read(RAW)
    assert is_loaded(module, RAW)
    assert line == ""


def timm_network() -> nn.Module:
    torch.manual_seed(3)
    return timm.create_model("test_resnet", num_classes=4, in_chans=1)


def test_a_file_of_timm_is_the_child_of_the_preset(read):
    theirs = timm_network()
    ours, line = read(theirs.state_dict(), TimmClassifier("test_resnet", 4, in_channels=1))
    assert "took its names, as network.*" in line
    images = torch.rand(2, 1, 32, 32)
    expected = theirs.eval()((images - 0.5) / 0.5)
    assert torch.equal(ours.eval()(images), expected)


def test_body_and_head_under_names_of_their_own(read):
    """As MMPretrain saves them, with constants for values up to 255."""
    state = timm_network().state_dict()
    split = {
        f"{'head' if name.startswith('fc.') else 'backbone'}.{name}": state[name] for name in state
    }
    split |= {
        "data_preprocessor.mean": torch.tensor([76.5]),
        "data_preprocessor.std": torch.tensor([51.0]),
    }
    ours, line = read(
        {"state_dict": split, "meta": {}}, TimmClassifier("test_resnet", 4, in_channels=1)
    )
    assert is_loaded(ours.network, state)
    assert "took state_dict.backbone.* and state_dict.head.*, as network.*" in line
    assert "mean 0.3, std 0.2, given there for values up to 255" in line
    assert (ours.normalize.mean.item(), ours.normalize.std.item()) == pytest.approx((MEAN, STD))
    with pytest.raises(OptionError, match="does not fit"):  # a head has more than the network
        read(
            {"state_dict": {**split, "head.neck.weight": torch.ones(1)}},
            TimmClassifier("test_resnet", 4, in_channels=1),
        )


BESIDE = {
    "DeepMind": {**RAW, **constants("mu", "sigma", 1, 1, 1)},
    "beside": {**behind("model.", RAW), **constants("normalize.mean", "normalize.std", 1, 1, 1, 1)},
    "Sequential": {**behind("1.", RAW), **constants("0.mean", "0.std", 1)},
    "RobustBench": {
        "state_dict": {
            **behind("module.1.", RAW),
            **constants("module.0.mean", "module.0.std", 1, 1, 1),
        }
    },
    "robustness": {
        "model": {
            **behind("module.model.", RAW),
            **behind("module.attacker.model.", RAW),
            **constants("module.normalizer.new_mean", "module.normalizer.new_std", 1, 1, 1),
            **constants(
                "module.attacker.normalize.new_mean", "module.attacker.normalize.new_std", 1
            ),
        }
    },
    "lists": {"state_dict": RAW, "mean": [MEAN], "std": [STD]},
}


@pytest.mark.parametrize("kind", BESIDE)
def test_normalisation_beside_the_network_is_used_and_said(read, kind):
    module, line = read(BESIDE[kind])
    assert is_loaded(module, RAW)
    assert "mean 0.3, std 0.2, in place of the model's mean 0.5, std 0.25" in line
    # robustness keeps a copy of network and constants in its attacker
    assert ("not used" in line) == (kind == "robustness")
    plain = CifarResNet(4, 1, widths=[4, 8], blocks=1, mean=[MEAN], std=[STD])
    plain.load_state_dict(RAW)
    images = torch.rand(2, 1, 16, 16)
    assert torch.equal(module.eval()(images), plain.eval()(images))


def test_each_average_has_its_own_normalisation(read):
    file = {
        "model": {**behind("1.", RAW), "0.mean": torch.tensor([0.4]), "0.std": torch.tensor([0.1])},
        "model_ema": {
            **behind("module.1.", MEANS),
            **constants("module.0.mean", "module.0.std", 1),
        },
    }
    assert read(file)[0].normalize.mean.item() == pytest.approx(MEAN)


def test_the_normalisation_of_another_network_in_the_file_is_not_used(read):
    """A checkpoint of ours, whose f_b came with constants, as weights of its f_a alone."""
    f_b = {"model.defense.f_b.weight": torch.ones(3, 2)}
    file = {"state_dict": {**behind("model.classifier.", RAW), **f_b}}
    names = [f"model.defense.f_b.normalize.{name}" for name in ("mean", "std")]
    file["state_dict"] |= constants(*names, 1)
    module, line = read(file)
    assert is_loaded(module, RAW)
    assert module.normalize.mean.item() == 0.5
    assert line.endswith("took state_dict.model.classifier.*; not used: state_dict.model.defense")


def test_a_normalisation_that_cannot_be_used_is_not_dropped(read):
    perceptron = MLP(4, 1, 8, 1, 5)
    state = behind("model.", perceptron.state_dict())
    with pytest.raises(OptionError, match=r"mean 0\.3, std 0\.2, and MLP has no .*Normalize"):
        read({**state, **constants("n.mean", "n.std", 1)}, MLP(4, 1, 8, 1, 5))
    same = {"n.mean": torch.zeros(1), "n.std": torch.ones(1)}
    assert is_loaded(read({**state, **same}, MLP(4, 1, 8, 1, 5))[0], perceptron.state_dict())
    other = {"b.mean": torch.tensor([0.1]), "b.std": torch.tensor([STD])}
    with pytest.raises(OptionError, match="holds different normalisations"):
        read({**behind("model.", RAW), **constants("a.mean", "a.std", 1), **other})
    with pytest.raises(OptionError, match="mean looks like a normalisation"):
        read({**RAW, "mean": torch.ones(7), "std": torch.ones(7)})
    with pytest.raises(OptionError, match="std must be greater than 0"):
        read({**RAW, "mean": torch.ones(1), "std": torch.zeros(1)})


def test_a_normalisation_from_a_file_survives_a_checkpoint(read, tmp_path):
    """The file is not read again then, and the options do not hold its constants."""
    torch.save({**RAW, **constants("mu", "sigma", 1)}, tmp_path / "f_b.pth")
    options = {"num_classes": 4, "in_channels": 1, "widths": [4, 8], "blocks": 1}
    node = {"class_path": "robusttrain.models.CifarResNet", "init_args": options}
    weights = {"model": node, "weights": str(tmp_path / "f_b.pth")}
    defense = {"class_path": "robusttrain.defenses.AdversarialTransform", "init_args": weights}
    data = {"class_path": "robusttrain.data.Digits"}
    defended = build_defended(node, defense)
    state = behind("model.", defended.state_dict())
    torch.save(
        {"robusttrain": recipe_of(node, defense, data), "state_dict": state}, tmp_path / "a.ckpt"
    )
    (tmp_path / "f_b.pth").unlink()
    again = load(tmp_path / "a.ckpt")
    assert again.defense.f_b.module.normalize.mean.item() == pytest.approx(MEAN)
    assert again.classifier.normalize.mean.item() == 0.5
    # What resumes a training loads by torch's own hook
    fresh = build_defended(node, recipe_of(node, defense, data)["defense"])
    fresh.load_state_dict(defended.state_dict(), strict=True)
    assert fresh.defense.f_b.module.normalize.std.item() == pytest.approx(STD)


COUNT = {"n_averaged": torch.tensor(5)}
BOTH = {
    "model_ema.module": {"model": RAW, "model_ema": behind("module.", MEANS) | COUNT},
    "state_dict_ema": {"state_dict": RAW, "state_dict_ema": MEANS},
    "ema_state_dict": {"state_dict": RAW, "ema_state_dict": MEANS},
    "swa_state_dict.module": {"state_dict": RAW, "swa_state_dict": behind("module.", MEANS)},
    "ema.shadow and model": {"model": RAW, "ema": {"decay": 0.99, "shadow": SHADOW}},
    "state_dict.model": {
        "state_dict": behind("model.", MEANS),
        "current_model_state": behind("model.", RAW),
        "averaging_state": COUNT,
    },
    "state_dict": {  # MMEngine: exchanged when saved
        "state_dict": MEANS,
        "ema_state_dict": {**behind("module.", RAW), "steps": torch.tensor(7)},
    },
    "averaged.module": {"averaged": behind("module.", MEANS), "plain": RAW},
}


@pytest.mark.parametrize("label", BOTH)
def test_averaged_weights_come_before_raw_ones(read, caplog, label):
    means = {**BUFFERS, **SHADOW} if "shadow" in label else MEANS
    module, line = read(BOTH[label])
    assert is_loaded(module, means)
    taken = " and ".join(f"{part}.*" for part in label.split(" and "))
    assert f"took averaged weights, {taken}" in line
    assert "would fit too (--weights.which NAME takes another)" in line
    for which, expected in (("averaged", means), ("raw", RAW), (label.partition(" ")[0], means)):
        caplog.clear()
        assert is_loaded(read(BOTH[label], which=which)[0], expected)


def test_an_averaged_model_alone_says_so(read):
    module, line = read(behind("module.", MEANS) | COUNT)
    assert is_loaded(module, MEANS)
    assert line.endswith("took averaged weights, module.*")


def test_averages_without_names_are_spoken_of(read):
    module, line = read({"model": RAW, "ema": {"shadow_params": [*SHADOW.values()]}})
    assert is_loaded(module, RAW)
    assert "the averaged weights in ema.shadow_params have no names: not used" in line


def test_the_best_come_before_the_last(read, caplog):
    module, line = read({"last": RAW, "best": MEANS})
    assert is_loaded(module, MEANS)
    assert "last would fit too" in line
    caplog.clear()
    assert is_loaded(read({"last": RAW, "best": MEANS}, which="last")[0], RAW)


def test_what_only_the_user_can_know_is_asked(read):
    for names in (("student", "teacher"), ("model_a", "model_b"), ("ema_fast", "ema_slow")):
        file = dict(zip(names, (RAW, MEANS), strict=True))
        with pytest.raises(OptionError, match=rf"{names[0]}, {names[1]}: .*--weights.which NAME"):
            read(file)
        assert is_loaded(read(file, which=names[1])[0], MEANS)
    # Equal ones are no choice
    assert is_loaded(read({"student": RAW, "teacher": RAW})[0], RAW)


@pytest.mark.parametrize("which", ["averaged", "ema"])
def test_a_choice_that_is_not_there(read, which):
    with pytest.raises(OptionError, match=rf"^--weights.which = '{which}': .* there are a, b$"):
        read({"a": RAW, "b": MEANS}, which=which)


@pytest.mark.parametrize("entry", ["optimizer", "exp_avg", "momentum_buffer", "grad"])
def test_what_an_optimizer_keeps_is_never_taken(read, entry):
    assert is_loaded(read({"model": RAW, entry: MEANS})[0], RAW)
    with pytest.raises(OptionError, match="does not fit"):
        read({entry: MEANS})


def test_harmless_things_beside_the_weights(read):
    module = network(5)
    optimizer = torch.optim.SGD(module.parameters(), lr=np.float64(0.1), momentum=0.9)
    beside = {
        "optimizer": optimizer.state_dict(),
        "best": np.float64(91.2),
        "curve": np.ones(3),
        "args": argparse.Namespace(lr=0.1, folder=Path("x")),
    }
    assert is_loaded(read({"model": RAW, **beside})[0], RAW)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_in_another_precision_are_said(read, dtype):
    state = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in RAW.items()
    }
    module, line = read(state)
    assert f"stored as {str(dtype)[6:]}, used as float32" in line
    assert torch.equal(module.stem[0].weight, state["stem.0.weight"].float())


def test_misfits_name_what_is_nearest(read, tmp_path):
    head = {"classifier.weight": torch.ones(1000, 8), "classifier.bias": torch.ones(1000)}
    behind_model = (
        r"classifier.weight is \(1000, 8\) in the file, \(4, 8\) in the model;.*"
        r"\(in the file behind state_dict\.model\.\)$"
    )
    with pytest.raises(OptionError, match=behind_model):
        read({"state_dict": behind("model.", {**RAW, **head})})
    with pytest.raises(OptionError, match="aux.weight is not in the model"):
        read({**behind("model.", RAW), "model.aux.weight": torch.ones(2)})
    side_by_side = (
        r"its names are a, b \(2 in all\), the network's stem\.0\.weight, .* \(\d+ in all\)$"
    )
    with pytest.raises(OptionError, match=side_by_side):
        read({"a": torch.ones(2), "b": torch.ones(3)})
    with pytest.raises(OptionError, match="flat parameters of FSDP"):
        read({"_flat_param": torch.ones(9)})
    with pytest.raises(OptionError, match=r"2 values without names \(Tensor\)"):
        read([torch.ones(2), torch.ones(3)])
    part = tmp_path / "model-00001-of-00003.safetensors"
    safetensors.torch.save_file({"stem.0.weight": RAW["stem.0.weight"]}, part)
    with pytest.raises(OptionError, match="one of 3 files"):
        load_weights(network(), part)


def test_a_tree_without_end_is_refused(read):
    """Dicts that hold each other, and few dicts with a path for each of a billion choices."""
    circle = {"a": torch.ones(1)}
    circle["again"] = circle
    shared = {"a": torch.ones(1)}
    for _ in range(9):
        shared = dict.fromkeys(map(str, range(10)), shared)
    for tree in (circle, shared):
        with pytest.raises(OptionError, match="larger or deeper than weights are"):
            read(tree)


def test_normalize_takes_constants_of_its_own_shape():
    normalize = Normalize([0.5, 0.5], [1.0, 1.0]).double()
    normalize.take(torch.tensor([0.1, 0.2]).view(2, 1, 1), [0.3, 0.4])
    assert normalize.mean.shape == (1, 2, 1, 1)
    assert normalize.mean.dtype == torch.float64
    assert set(normalize.state_dict()) == {"mean", "std"}
