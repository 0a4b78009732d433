"""Checkpoints: what loads, what is refused, and that nothing in a hostile one runs."""

import os
import pickle
import zipfile

import pytest
import torch
from torch import nn

from robusttrain import load
from robusttrain.config.build import build_defended
from robusttrain.config.checkpoints import newest, read_recipe, recipe_of, self_contained
from robusttrain.core.errors import UserError


def node(class_path, **arguments):
    return {"class_path": class_path, "init_args": arguments}


MODEL = node("robusttrain.models.CifarResNet", widths=[4], blocks=1, in_channels=1)
DEFENSE = node(
    "robusttrain.defenses.AdversarialTransform",
    model=node("robusttrain.models.VGGSmall", in_channels=1, image_size=16),
    radius=0.1,
    steps=1,
)
DATA = node("robusttrain.data.Digits")


def written(path, recipe=None, state=None, **more):
    """A checkpoint as train.py leaves it, or one that differs from it."""
    recipe = recipe_of(MODEL, None, DATA) if recipe is None else recipe
    if state is None:
        torch.manual_seed(0)
        state = {
            f"model.{name}": tensor
            for name, tensor in build_defended(MODEL, None).state_dict().items()
        }
    torch.save({"robusttrain": recipe, "state_dict": state, "epoch": 1, **more}, path)
    return path


def refused(path, pattern, **options):
    with pytest.raises(UserError, match=pattern) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)


def test_what_was_saved_is_loaded_in_evaluation_mode(tmp_path):
    torch.manual_seed(0)
    defended = build_defended(MODEL, DEFENSE).train()
    state = {f"model.{name}": tensor for name, tensor in defended.state_dict().items()}
    loaded = load(
        written(
            tmp_path / "a.ckpt",
            recipe_of(MODEL, DEFENSE, DATA),
            {**state, "train_loss.x": torch.ones(1)},
        )
    )
    assert not any(module.training for module in loaded.modules())
    assert all(
        torch.equal(tensor, state[f"model.{name}"]) for name, tensor in loaded.state_dict().items()
    )
    assert loaded.defense.attack.threat.epsilon == 0.1


def test_a_recipe_needs_no_other_file():
    arguments = {
        "weights": "f_b.safetensors",
        "model": node("x.Y", pretrained=True, name="resnet18"),
    }
    contained = self_contained({"class_path": "a.B", "init_args": arguments})
    assert contained["init_args"] == {
        "weights": None,
        "model": node("x.Y", pretrained=False, name="resnet18"),
    }
    assert arguments["weights"] == "f_b.safetensors", (
        "the configuration of the run itself must stay as it is"
    )


def test_another_radius_may_be_given(tmp_path):
    torch.manual_seed(0)
    state = {
        f"model.{name}": tensor
        for name, tensor in build_defended(MODEL, DEFENSE).state_dict().items()
    }
    path = written(tmp_path / "a.ckpt", recipe_of(MODEL, DEFENSE, DATA), state)
    recipe = read_recipe(path)
    recipe["defense"]["init_args"]["radius"] = 0.3
    assert load(path, recipe=recipe).defense.attack.threat.epsilon == 0.3


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path, legacy):
    path = tmp_path / "a.ckpt"
    torch.save(
        {
            "robusttrain": recipe_of(MODEL, None, DATA),
            "state_dict": {},
            "x": Evil(tmp_path / "ran"),
        },
        path,
        _use_new_zipfile_serialization=not legacy,
    )
    refused(path, r"a.ckpt: needs code to load .*, so it was refused and none of it ran")
    path.write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    refused(path, "needs code to load")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "class_path",
    [
        "os.system",
        "subprocess.Popen",
        "torch.nn.Linear",
        "robusttrain.config.build.build",
        "robusttrain.storage.weights.Path",
        "x",
    ],
)
@pytest.mark.parametrize("where", ["model", "defense", "inner"])
def test_class_paths_that_are_no_business_of_a_checkpoint(tmp_path, class_path, where):
    evil = node(class_path)
    inner = {**DEFENSE, "init_args": {**DEFENSE["init_args"], "model": evil}}
    recipe = recipe_of(
        evil if where == "model" else MODEL,
        {"model": None, "defense": evil, "inner": inner}[where],
        DATA,
    )
    refused(written(tmp_path / "a.ckpt", recipe), class_path)


def test_a_module_of_the_users_own_needs_trust(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\nclass Net(nn.Linear):\n    def __init__(self, num_classes=3):\n"
        "        super().__init__(4, num_classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    state = {
        f"model.classifier.{name}": tensor for name, tensor in nn.Linear(4, 5).state_dict().items()
    }
    path = written(
        tmp_path / "a.ckpt", recipe_of(node("my_networks.Net", num_classes=5), None, DATA), state
    )
    refused(path, r"my_networks.Net.*not trusted.*--trust my_networks")
    loaded = load(path, trust=["my_networks"])
    assert torch.equal(loaded.classifier.weight, state["model.classifier.weight"])


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_truncated_files(tmp_path, keep):
    path = written(tmp_path / "a.ckpt")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else int(keep)])
    refused(path, "a.ckpt")


def test_files_that_are_no_checkpoint(tmp_path):
    path = tmp_path / "a.ckpt"
    refused(path, "there is no such file")
    refused(tmp_path, "is a folder")
    torch.save(nn.Linear(2, 2).state_dict(), path)
    refused(path, "no checkpoint of robusttrain.*--model NAME --weights")
    torch.save([1, 2], path)
    refused(path, "no checkpoint of robusttrain")
    path.write_text("not a checkpoint at all")
    refused(path, "is text, not weights: it begins with 'not a checkpoint at all'")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a", "b")
    refused(path, "is a zip archive in which no file of weights lies")
    written(path, {**recipe_of(MODEL, None, DATA), "format": 99})
    refused(path, "format 99; this version reads 1")
    written(path, state=[])
    refused(path, "holds no weights")


@pytest.mark.parametrize(
    "broken",
    [
        {"model": node(123)},
        {"model": {"class_path": MODEL["class_path"], "init_args": [1]}},
        {"model": {"class_path": MODEL["class_path"], "init_args": {1: 2}}},
        {"model": node(MODEL["class_path"], widths="abc")},
        {"model": node(MODEL["class_path"], widths=torch.ones(2, 2))},
        {"model": node(MODEL["class_path"], num_classes="many")},
        {"model": node(MODEL["class_path"], num_classes=None)},
        {"model": node(MODEL["class_path"], blocks=-1)},
        {"defense": 3},
        {"defense": []},
        {"defense": {"radius": 0.1}},
    ],
)
def test_recipes_that_make_no_sense_are_one_line(tmp_path, broken):
    refused(written(tmp_path / "a.ckpt", {**recipe_of(MODEL, None, DATA), **broken}), r"\w")


def test_a_recipe_with_a_part_missing_is_one_line(tmp_path):
    for part in ("model", "defense", "format"):
        recipe = recipe_of(MODEL, None, DATA)
        del recipe[part]
        refused(
            written(tmp_path / "a.ckpt", recipe),
            "no checkpoint of robusttrain|checkpoint format None",
        )


def test_tensors_that_do_not_fit_are_named(tmp_path):
    state = torch.load(written(tmp_path / "a.ckpt"), weights_only=True)["state_dict"]
    path = tmp_path / "b.ckpt"
    written(
        path,
        state={name: value for name, value in state.items() if not name.endswith("stem.0.weight")},
    )
    refused(path, r"b\.ckpt: does not fit DefendedClassifier: classifier.stem.0.weight is missing")
    written(
        path,
        {**recipe_of(node(MODEL["class_path"], widths=[8], blocks=1, in_channels=1), None, DATA)},
        state,
    )
    refused(
        path, r"classifier.stem.0.weight is \(4, 1, 3, 3\) in the file, \(8, 1, 3, 3\) in the model"
    )
    state["model.classifier.classifier.bias"] = torch.full((10,), float("nan"))
    refused(written(path, state=state), "classifier.classifier.bias holds NaN")


def test_a_checkpoint_cannot_reach_for_the_network_or_other_files(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "timm.create_model",
        lambda name, pretrained=False, **rest: (
            pytest.fail("asked timm") if pretrained else nn.Flatten()
        ),
    )
    timm = node(
        "robusttrain.models.TimmClassifier", name="resnet18", pretrained=True, in_channels=1
    )
    with pytest.raises(UserError):
        load(written(tmp_path / "a.ckpt", recipe_of(MODEL, None, DATA) | {"model": timm}))
    torch.save(torch.ones(1), tmp_path / "secret")
    defense = {
        **DEFENSE,
        "init_args": {**DEFENSE["init_args"], "weights": str(tmp_path / "secret")},
    }
    with pytest.raises(UserError) as caught:
        load(written(tmp_path / "a.ckpt", recipe_of(MODEL, None, DATA) | {"defense": defense}))
    assert "secret" not in str(caught.value)


def test_the_newest_run_and_its_best_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no checkpoint under"):
        newest(tmp_path)
    for age, name in enumerate(["a/last.ckpt", "b/best.ckpt", "b/last.ckpt"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000 + age, 1000 + age))
    assert newest(tmp_path) == tmp_path / "b" / "best.ckpt"
    os.utime(tmp_path / "a" / "last.ckpt", (2000, 2000))
    assert newest(tmp_path) == tmp_path / "a" / "last.ckpt"
