"""Purifiers on the command line: their networks trained, found, and put before a classifier."""

import json

import pytest

from robusttrain import load

pytestmark = pytest.mark.filterwarnings("ignore")
CPU = ("--trainer.accelerator", "cpu")
SHORT = (*CPU, "--data", "digits", "--trainer.max_epochs", 1, "--trainer.limit_train_batches", 3)
WIDTH = ("--defense.model.width", 8)
STEPS = ("--defense.steps", 3)


def run(command, *arguments):
    done = command(*arguments)
    assert done.code == 0, done.err
    return done


@pytest.fixture(scope="module")
def trained(run_here, tmp_path_factory):
    """A folder with a denoiser, a diffusion model and a classifier; the classifier's options."""
    folder = tmp_path_factory.mktemp("purifiers")
    places = ["--checkpoints", folder]
    for kind in ("denoiser", "diffusion"):
        narrow = ["--purifier.network.width", 8]
        run(run_here, "train.py", "--training", kind, *narrow, *SHORT, *places)
    network = ["--model", "mlp", "--model.width", 16]
    quiet = ["--pictures.images", 0, "--robust.every", 0, "--logs", folder / "l"]
    run(run_here, "train.py", *network, *SHORT, *places, *quiet)
    (last,) = folder.rglob("last.ckpt")
    return folder, [*places, *network, "--data", "digits", "--weights", last]


def attacked(command, out, *arguments):
    done = run(
        command, "evaluate.py", *arguments, "--images", 4, "--draws", 2, *CPU, "--output", out
    )
    return done, json.loads((out / "results.json").read_text())


@pytest.mark.parametrize("name", ["denoiser", "diffusion"])
def test_the_newest_network_is_taken(name, command, trained, tmp_path):
    folder, classifier = trained
    attack = ["--attack", "pgd-quick", "--attack.steps", 2]
    steps = STEPS if name == "diffusion" else ()
    done, found = attacked(
        command, tmp_path, *classifier, "--defense", name, *WIDTH, *steps, *attack
    )
    (path,) = (folder / "purifiers").glob(f"digits-{name}-*.safetensors")
    assert f"{name}: taking the newest network for these data, {path}" in done.out + done.err
    assert found["plan"]["defense"]["init_args"]["model"]["init_args"]["width"] == 8


def test_a_file_is_named_in_a_chain_and_without_a_network_nothing_runs(command, trained, tmp_path):
    folder, classifier = trained
    (path,) = (folder / "purifiers").glob("digits-denoiser-*.safetensors")
    (tmp_path / "two.yaml").write_text(
        f"""
defense:
  class_path: robusttrain.defenses.Chain
  init_args:
    defenses:
      - {{like: denoiser, init_args: {{model: {{class_path: robusttrain.models.Autoencoder,
           init_args: {{width: 8}}}}, weights: {path}}}}}
      - {{like: anti-adversary}}
"""
    )
    attack = ["--attack", "bpda-i-quick", "--attack.steps", 2]
    attacked(command, tmp_path / "o", *classifier, "--defense", tmp_path / "two.yaml", *attack)
    for name in ("denoiser", "diffusion"):
        done = command("evaluate.py", *classifier, "--defense", name, *attack, *CPU)
        assert done.code == 2
        line = done.err.strip().splitlines()[-1]
        assert f"no network for {name} on these data under" in line
        assert f"--training {name})" in line


def test_train_trains_a_network_first_and_the_checkpoint_holds_it(command, tmp_path, monkeypatch):
    """The preset of the training is the one of the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs" / "training").mkdir(parents=True)
    (tmp_path / "configs" / "training" / "diffusion.yaml").write_text(
        """# Short
purifier:
  network: {class_path: robusttrain.models.NoiseNetwork}
  objective: {class_path: robusttrain.training.NoisePrediction}
trainer: {max_epochs: 1}
"""
    )
    narrow = [*WIDTH, "--defense.model.depth", 1, *STEPS]
    brief = [*SHORT, "--pictures.images", 0, "--robust.every", 0]
    done = run(command, "train.py", "--defense", "diffusion", *narrow, "--model", "mlp", *brief)
    assert "diffusion: no network at hand; training one first" in done.out + done.err
    (last,) = (tmp_path / "checkpoints").rglob("last.ckpt")
    (network,) = (tmp_path / "checkpoints" / "purifiers").glob("*.safetensors")
    network.unlink()
    assert load(last).defense.steps == 3
    attack = ["--attack", "eot", "--attack.steps", 1, "--attack.gradient.draws", 2]
    attacked(command, tmp_path / "o", "--checkpoint", last, *attack)


def test_bad_options_are_one_line(command, tmp_path):
    def refused(*arguments):
        done = command("train.py", "--checkpoints", tmp_path, *SHORT, *arguments)
        assert done.code == 2
        return done.err.strip().splitlines()[-1]

    denoiser = ["--training", "denoiser"]
    assert "--purifier.objective.sigma = 0.0: must be greater than 0" in refused(
        *denoiser, "--purifier.objective.sigma", 0
    )
    assert "--output w.pth: must end in .safetensors" in refused(*denoiser, "--output", "w.pth")
    network = ["--purifier.network", "robusttrain.models.Autoencoder"]
    assert "Autoencoder is no NoisePredictor" in refused("--training", "diffusion", *network)
    assert not [*tmp_path.rglob("*.safetensors")]


def test_where_a_network_goes_can_be_said(command, tmp_path):
    file = tmp_path / "mine.safetensors"
    narrow = ["--purifier.network.width", 8, "--output", file]
    done = run(command, "train.py", "--training", "denoiser", *SHORT, *narrow)
    assert file.is_file()
    assert f"--defense.weights {file}" in done.out + done.err
