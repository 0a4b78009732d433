"""Presets: found by name, the nearest name suggested, and every one that is shipped can be
built.
"""

from pathlib import Path

import pytest
import yaml
from torch import nn

from robusttrain.config import presets, reading
from robusttrain.config.attacks import scenarios
from robusttrain.config.build import build, fit_to_data
from robusttrain.config.suites import suite
from robusttrain.core.errors import UserError
from robusttrain.data import Facts
from robusttrain.defenses import Defense


def test_keys_that_a_mapping_takes_over_may_be_given_anew():
    text = "base: &base {a: 1, b: 2}\nmine: {<<: *base, a: 3}"
    assert reading.read(text)["mine"] == {"a": 3, "b": 2}


def test_the_presets_that_are_promised():
    assert {
        "digits",
        "cifar10",
        "cifar100",
        "fashion_mnist",
        "tiny_imagenet",
        "imagefolder",
    } <= set(presets.names("data"))
    assert {"vgg_small", "resnet18", "resnet_small", "timm"} <= set(presets.names("model"))
    assert {"advtransform", "randomization", "none"} <= set(presets.names("defense"))
    transformations = "jpeg bit-depth median total-variation crop-rescale vote noise smoothing"
    assert set(transformations.split()) <= set(presets.names("defense"))
    assert {"standard", "adversarial", "trades", "adversarial-through-g"} <= set(
        presets.names("training")
    )
    promised = "fgsm ifgsm pgd mifgsm difgsm mdifgsm nrigsm bpda-i bpda-eot bpda-eot-paper wt"
    assert set(promised.split()) <= set(presets.names("attack"))


@pytest.mark.parametrize("kind", presets.KINDS)
def test_every_preset_says_what_it_is(kind):
    for name, path in presets.names(kind).items():
        assert presets.about(path), name
        assert presets.read(kind, name), name


@pytest.mark.parametrize("kind", presets.KINDS)
def test_no_reader_of_a_preset_sees_what_it_is_like(kind):
    for name, path in presets.names(kind).items():
        whole = presets.read(kind, name)
        assert "like" not in whole, name
        # As a file of any option, and as f_b's training is read.
        assert presets.read_yaml(path, f"--{kind}") == presets.read_yaml(path, "--config") == whole


@pytest.mark.parametrize("name", presets.names("attack"))
def test_every_attack_preset_is_an_attack(name):
    scenario = scenarios([name])[name]
    assert sum(scenario.attack.cost()) > 0
    unusual = {
        "wt-mean-start-unrestricted": 0.3,
        "liu": 1.0,
        "liu-ensemble": 1.0,
        "minimal-norm": 1.0,
        "fmn-linf": 1.0,
        "nearest-linf": 1.0,
    }
    anywhere = (
        "cw",
        "cw-paper",
        "d-cw",
        "ddn",
        "deepfool",
        "fmn-l2",
        "nearest-l2",
        "superdeepfool",
    )
    unusual |= dict.fromkeys(anywhere, 1000.0)
    usual = {"rmsd": 15 / 255, "l2": 0.5}.get(scenario.attack.threat.norm, 0.031)
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


BASE = """
class_path: package.Attack
init_args:
  steps: 5
  threat: {class_path: package.Linf, init_args: {epsilon: 0.1, clip: true}}
  attacks: [one, two]
source: {class_path: package.Target}
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write a preset of attacks into the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "configs" / "attack"
    folder.mkdir(parents=True)

    def write(name, text):
        (folder / f"{name}.yaml").write_text(text)
        return folder / f"{name}.yaml"

    write("base", BASE)
    return write


@pytest.mark.parametrize(
    ("told", "changed"),
    [
        ("knows: labels", {"knows": "labels"}),
        ("init_args: {steps: 6}", {"steps": 6}),
        ("init_args: {steps: null}", {"steps": None}),
        ("init_args: {more: 1}", {"more": 1}),
        ("init_args: {attacks: [three]}", {"attacks": ["three"]}),
        ("init_args: {threat: null}", {"threat": None}),
        (
            "init_args: {threat: {init_args: {epsilon: 0.2}}}",
            {"threat": {"class_path": "package.Linf", "init_args": {"epsilon": 0.2, "clip": True}}},
        ),
        (
            "init_args: {threat: {class_path: package.Linf, init_args: {clip: false}}}",
            {
                "threat": {
                    "class_path": "package.Linf",
                    "init_args": {"epsilon": 0.1, "clip": False},
                }
            },
        ),
        (
            "init_args: {threat: {class_path: package.L2, init_args: {clip: false}}}",
            {"threat": {"class_path": "package.L2", "init_args": {"clip": False}}},
        ),
        ("init_args: {threat: {class_path: package.L2}}", {"threat": {"class_path": "package.L2"}}),
    ],
)
def test_a_preset_like_another_says_what_is_different(told, changed, written):
    written("mine", f"like: base\n{told}\n")
    expected = reading.read(BASE)
    if "knows" in changed:
        expected |= changed
    else:
        expected["init_args"] |= changed
    assert presets.read("attack", "mine") == expected


def test_another_class_keeps_what_stands_beside_its_arguments(written):
    written("mine", "like: base\nclass_path: package.Other\ninit_args: {queries: 3}\n")
    source = {"class_path": "package.Target"}
    expected = {"class_path": "package.Other", "init_args": {"queries": 3}, "source": source}
    assert presets.read("attack", "mine") == expected


def test_chains_and_files(written, tmp_path):
    written("middle", "like: base\ninit_args: {steps: 6}\n")
    own = tmp_path / "elsewhere"
    own.mkdir()
    (own / "first.yaml").write_text("like: middle\ninit_args: {attacks: []}\n")
    (own / "second.yaml").write_text("like: first.yaml\nknows: labels\n")
    (tmp_path / "third.yaml").write_text("like: elsewhere/second.yaml\nsource: null\n")
    expected = reading.read(BASE) | {"knows": "labels", "source": None}
    expected["init_args"] |= {"steps": 6, "attacks": []}
    assert presets.read("attack", "third.yaml") == expected


def test_the_working_directory_does_not_change_shipped_presets(written):
    before = presets.read("attack", "bpda-eot")
    written("bpda-i", "class_path: package.Mine\n")
    assert presets.read("attack", "bpda-eot") == before
    written("mine", "like: bpda-i\n")
    assert presets.read("attack", "mine") == {"class_path": "package.Mine"}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"mine": "like: mine"}, "circle: mine -> mine"),
        ({"mine": "like: a", "a": "like: b", "b": "like: a"}, "circle: a -> b -> a"),
        ({"mine": "like: bsae"}, "like bsae: no such preset; did you mean base"),
        ({"mine": "like: nowhere.yaml"}, "like nowhere.yaml: no such file"),
        ({"mine": "like: [base]"}, "like = ['base']: must be a preset's name"),
        ({"mine": "like: a", "a": "- 1"}, "must be a mapping"),
    ],
)
def test_what_cannot_be_like_another_is_one_line(files, said, written):
    for name, text in files.items():
        written(name, text)
    with pytest.raises(UserError) as caught:
        presets.read("attack", "mine", "--attack")
    told = str(caught.value)
    assert told.startswith("--attack mine: ")
    assert said in told
    assert "\n" not in told


def test_a_file_of_config_is_like_nothing(written, tmp_path):
    (tmp_path / "mine.yaml").write_text("like: base\n")
    with pytest.raises(UserError, match="--config: mine.yaml: like: only a preset"):
        presets.read_yaml(Path("mine.yaml"), "--config")
