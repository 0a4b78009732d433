"""Training of denoisers and diffusion models: losses with known values, and progress on digits."""

import json
import math
import os

import pytest
import torch
from torch import nn

from robusttrain.config import purifiers as configuration
from robusttrain.core.errors import UserError
from robusttrain.data import Digits
from robusttrain.models import Autoencoder, NoiseNetwork, NoisePredictor
from robusttrain.running import purifiers
from robusttrain.storage.weights import read_metadata
from robusttrain.training import Denoising, NoisePrediction


class Blind(NoisePredictor):
    def __init__(self):
        super().__init__(NoiseNetwork(width=2, depth=0).signal[1:])

    def forward(self, noisy, level):
        return torch.zeros_like(noisy)


def test_doing_nothing_costs_the_noise(images, streams):
    x = images(64)
    losses = Denoising(sigma=0.3).losses(nn.Identity(), x, streams(64))
    assert losses.shape == (64,)
    assert losses.mean() == pytest.approx(Denoising(sigma=0.3).idle, rel=0.05)
    found = NoisePrediction().losses(Blind(), x, streams(64)).mean()
    assert found == pytest.approx(NoisePrediction().idle, rel=0.05)


def test_a_network_sees_images_of_its_level_in_the_range_of_the_paper(images, streams):
    seen = []

    class Noting(Blind):
        def forward(self, noisy, level):
            seen.append((noisy, level))
            return super().forward(noisy, level)

    network = Noting()
    NoisePrediction().losses(network, torch.ones(4000, 1, 2, 2), streams(4000))
    ((noisy, level),) = seen
    assert (int(level.min()), int(level.max())) == (1, 1000)
    late, early = noisy[level > 990], noisy[level < 10]
    assert late.std() == pytest.approx(1, rel=0.1)  # noise alone
    assert early.mean() == pytest.approx(1, abs=0.02)  # white is 1
    assert early.std() < 0.05


def test_losses_do_not_depend_on_the_batch(images, streams):
    x = images()
    for objective, network in ((Denoising(), Autoencoder(width=8)), (NoisePrediction(), Blind())):
        whole = objective.losses(network, x, streams())
        torch.testing.assert_close(objective.losses(network, x[2:], streams()[2:]), whole[2:])


def test_networks_of_another_kind_are_refused(images, streams):
    with pytest.raises(UserError, match="Autoencoder is no NoisePredictor"):
        NoisePrediction().losses(Autoencoder(), images(), streams())
    with pytest.raises(UserError, match="must keep their shape"):
        Denoising().losses(nn.MaxPool2d(2), images(), streams())


def settings(kind, network):
    """A preset's settings for digits, with a smaller network, two epochs."""
    found = configuration.preset(kind)
    found["purifier"]["network"]["init_args"] = network
    found["trainer"] |= {"max_epochs": 2, "limit_train_batches": 6, "accelerator": "cpu"}
    return found


def node(kind, network):
    defense = {"denoiser": "Denoiser", "diffusion": "Diffusion"}[kind]
    model = {"denoiser": "Autoencoder", "diffusion": "NoiseNetwork"}[kind]
    return {
        "class_path": f"robusttrain.defenses.{defense}",
        "init_args": {
            "model": {"class_path": f"robusttrain.models.{model}", "init_args": dict(network)}
        },
    }


SMALL = {"in_channels": 1, "width": 8, "depth": 1}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["denoiser", "diffusion"])
def test_training_reduces_the_loss_on_digits(kind, tmp_path):
    data, lines = Digits(), []
    path = purifiers.train(settings(kind, SMALL), data, tmp_path, 0, say=lines.append)
    about = json.loads(read_metadata(path)["purifier"])
    assert about["test_loss"] < 0.9 * about["test_loss_untrained"]
    assert SMALL.items() <= about["network"]["init_args"].items()
    assert lines[-1].startswith(f"{kind}: done, mean square")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    # The same seed gives the same network.
    again = purifiers.train(settings(kind, SMALL), data, tmp_path / "again", 0)
    assert again.name == path.name
    assert again.read_bytes() == path.read_bytes()


@pytest.fixture
def files(monkeypatch, tmp_path):
    """Trainings without any: a file for each, one second after the other."""
    made = []

    def fake(network, objective, batch, seed, draws=4):
        return math.nan

    def fit(training, data, trainer, unfinished, say):
        made.append(training)

    monkeypatch.setattr(purifiers, "mean_loss", fake)
    monkeypatch.setattr(purifiers, "fit", fit)
    return made


def test_the_newest_that_fits_is_taken(files, tmp_path):
    data, paths = Digits(), []
    for seed, network in ((0, SMALL), (1, SMALL), (2, {**SMALL, "width": 16})):
        paths.append(purifiers.train(settings("denoiser", network), data, tmp_path, seed))
        os.utime(paths[-1], (seed, seed))
    chain = {
        "class_path": "robusttrain.defenses.Chain",
        "init_args": {
            "defenses": [node("denoiser", SMALL), node("denoiser", {**SMALL, "width": 16})]
        },
    }
    lines = []
    purifiers.provide(chain, data, tmp_path, {}, 0, trains=False, say=lines.append)
    taken = [each["init_args"]["weights"] for each in chain["init_args"]["defenses"]]
    assert taken == [str(paths[1]), str(paths[2])]
    assert f"denoiser: taking the newest network for these data, {paths[1]}" in lines
    assert len(files) == 3
    # What is named stays.
    mine = node("denoiser", SMALL)
    mine["init_args"]["weights"] = "mine.safetensors"
    purifiers.provide(mine, data, tmp_path, {}, 0, trains=False)
    assert mine["init_args"]["weights"] == "mine.safetensors"


@pytest.mark.parametrize(
    ("defense", "data"),
    [
        (node("denoiser", {**SMALL, "depth": 0}), Digits()),
        (node("denoiser", SMALL), Digits(image_size=32)),
        (node("diffusion", SMALL), Digits()),
    ],
)
def test_other_networks_and_data_are_no_match(defense, data, files, tmp_path):
    purifiers.train(settings("denoiser", SMALL), Digits(), tmp_path, 0)
    with pytest.raises(UserError, match="train one .*--training|--defense.weights FILE"):
        purifiers.provide(defense, data, tmp_path, {}, 0, trains=False)
    purifiers.provide(defense, data, tmp_path, {}, 0)
    assert len(files) == 2
    assert defense["init_args"]["weights"]


def test_a_model_that_brings_its_weights_needs_no_file(tmp_path):
    defense = node("diffusion", {})
    defense["init_args"]["model"]["class_path"] = "robusttrain.models.DiffusersUNet"
    purifiers.provide(defense, Digits(), tmp_path, {}, 0, trains=False)
    assert "weights" not in defense["init_args"]
