"""Presets: found by name, the nearest name suggested, and every one that is shipped can be built."""

import pytest
import yaml
from torch import nn

from robusttrain.config import presets
from robusttrain.config.attacks import scenarios
from robusttrain.config.build import build, fit_to_data
from robusttrain.config.suites import suite
from robusttrain.core.errors import UserError
from robusttrain.data import Facts
from robusttrain.defenses import Defense


def test_the_presets_that_are_promised():
    assert {"digits", "cifar10", "cifar100", "fashion_mnist", "tiny_imagenet", "imagefolder"} <= set(
        presets.names("data")
    )
    assert {"vgg_small", "resnet18", "resnet_small", "timm"} <= set(presets.names("model"))
    assert {"advtransform", "randomization", "none"} <= set(presets.names("defense"))
    assert {"standard", "adversarial", "trades", "adversarial-through-g"} <= set(presets.names("training"))
    promised = "fgsm ifgsm pgd mifgsm difgsm mdifgsm nrigsm bpda-i bpda-eot bpda-eot-paper wt"
    assert set(promised.split()) <= set(presets.names("attack"))


@pytest.mark.parametrize("kind", presets.KINDS)
def test_every_preset_says_what_it_is(kind):
    for name, path in presets.names(kind).items():
        assert presets.about(path), name
        assert presets.read(kind, name), name


@pytest.mark.parametrize("name", presets.names("attack"))
def test_every_attack_preset_is_an_attack(name):
    scenario = scenarios([name])[name]
    assert sum(scenario.attack.cost()) > 0
    unusual = {"wt-mean-start-unrestricted": 0.3, "liu": 1.0, "liu-ensemble": 1.0, "minimal-norm": 1.0}
    unusual |= dict.fromkeys(("cw", "cw-paper", "d-cw", "deepfool"), 1000.0)
    usual = 15 / 255 if scenario.attack.threat.norm == "rmsd" else 0.031
    assert scenario.attack.threat.epsilon == pytest.approx(unusual.get(name, usual))
    assert scenario.knowledge


@pytest.mark.parametrize("name", presets.names("suite"))
def test_every_suite_names_presets(name):
    assert set(suite(name)) <= set(presets.names("attack"))


@pytest.mark.parametrize("name", presets.names("defense"))
def test_every_defense_preset_can_be_built(name):
    node = presets.read("defense", name)["defense"]
    if node is None:
        assert name == "none"
        return
    fit_to_data(node, Facts(10, 3, 32), "defense")
    assert isinstance(build(node, "defense", ("robusttrain",), Defense), Defense)


@pytest.mark.parametrize("name", presets.names("model"))
def test_every_model_preset_can_be_built(name):
    node = presets.read("model", name)["model"]
    fit_to_data(node, Facts(10, 3, 32), "model")
    assert isinstance(build(node, "model", ("robusttrain",), nn.Module), nn.Module)


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("defense", "advtransfrom", "did you mean advtransform"),
        ("attack", "pdg", "did you mean pgd"),
        ("model", "resnet-18", "did you mean resnet18"),
        ("data", "zzzzzz", "there are cifar10"),
        ("attack", "nowhere.yaml", "no such file"),
    ],
)
def test_the_nearest_name_is_suggested(kind, name, said):
    with pytest.raises(UserError, match=said) as caught:
        presets.find(kind, name)
    assert f"--{kind} {name}" in str(caught.value)


def test_the_working_directory_comes_first(tmp_path, monkeypatch):
    own = tmp_path / "configs" / "attack"
    own.mkdir(parents=True)
    (own / "pgd.yaml").write_text("# my own\nsteps: 1\n")
    (own / "mine.yaml").write_text("steps: 2\n")
    monkeypatch.chdir(tmp_path)
    assert presets.read("attack", "pgd") == {"steps": 1}
    assert presets.about(presets.find("attack", "pgd")) == "my own"
    assert presets.about(presets.find("attack", "mine")) == ""
    assert "class_path" in presets.read("attack", "fgsm")
    assert presets.read("attack", str(own / "mine.yaml")) == {"steps": 2}


@pytest.mark.parametrize(
    "content", [b"a: [1", b"- 1\n", b"", b"\xff\xfe\x00", b"a: !!python/object/apply:os.getcwd []"]
)
def test_files_that_are_no_mapping_are_one_line(tmp_path, content):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.yaml") as caught:
        presets.read("attack", str(path))
    assert "\n" not in str(caught.value)


def test_a_preset_on_top_of_another_leaves_nothing_behind():
    first, second = (yaml.safe_dump(presets.read("attack", "pgd")) for _ in range(2))
    scenarios(["pgd"], [("steps", "3")], epsilon=0.5)
    assert first == second == yaml.safe_dump(presets.read("attack", "pgd"))
