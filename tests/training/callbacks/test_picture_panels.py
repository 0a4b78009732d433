"""Pictures of an attack: what is shown is what the words say."""

import pytest
import torch
from small_runs import F_A, defended, events, fit

from robusttrain.config.attacks import scenarios
from robusttrain.core.rng import Rng
from robusttrain.defenses import AdversarialTransform, RandomResizePad
from robusttrain.models import CifarResNet, VGGSmall
from robusttrain.models.defended import DefendedClassifier
from robusttrain.reporting.canvas import RIGHT, WRONG
from robusttrain.training.callbacks import Pictures
from robusttrain.training.callbacks.pictures import Column, amplified, row

pytestmark = pytest.mark.filterwarnings("ignore")

BARE = ["image", "attacked", "change \u00d7 2.5"]
DEFENDED = ["image", "g(image)", *BARE[1:]]


@pytest.mark.parametrize(
    ("model", "titles"),
    [
        (lambda: defended(), [*DEFENDED, "mean g \u00d7 "]),
        (lambda: defended(False), BARE),
        # Another size than the image: no difference to show.
        (lambda: DefendedClassifier(RandomResizePad(16, 20), CifarResNet(**F_A)), DEFENDED),
    ],
)
def test_the_pictures_show_what_they_say(tmp_path, model, titles):
    """A change of 0.2 times 2.5 is 0.5, which reaches black from grey; only defenses have a g."""
    (scenario,) = scenarios(["fgsm"], epsilon=0.2).values()
    module, trainer = fit(tmp_path, [], model=model(), logger=False)
    figures = Pictures(scenario, "it", images=3, draws=4).draw(trainer, module.eval())
    batch = trainer.datamodule.validation_images(3)
    assert len(figures) == 3
    for number, figure in enumerate(figures):
        axes = {panel.get_title(): panel for panel in figure.axes}
        for title, expected in zip(axes, titles, strict=True):
            assert title.startswith(expected)
        image, attacked, change = (panel_of(axes, name) for name in ("image", "attacked", "change"))
        torch.testing.assert_close(image, batch.images[number, 0])
        assert (attacked - image).abs().max() == pytest.approx(0.2, abs=1e-5)
        torch.testing.assert_close(change, (0.5 + 2.5 * (attacked - image)).clamp(0, 1))
        assert axes["image"].get_ylabel() == f"is {int(batch.labels[number])}"


def panel_of(axes, name):
    """The grey values of the picture whose title begins so."""
    (panel,) = (panel for title, panel in axes.items() if title.startswith(name))
    return torch.tensor(panel.images[0].get_array()[..., 0])


@pytest.mark.parametrize("defense", [True, False])
def test_an_answer_stands_under_the_picture_that_was_asked_about(tmp_path, defense):
    (scenario,) = scenarios(["fgsm"], epsilon=0.3).values()
    module, trainer = fit(tmp_path, [], model=defended(defense), logger=False)
    callback = Pictures(scenario, "it", images=6, draws=1)
    batch, model = trainer.datamodule.validation_images(6), module.eval().model
    columns = {column.title: column for column in callback.columns(model, batch)}
    asked = {title for title, column in columns.items() if column.answers is not None}
    assert asked == {"image", "attacked"}
    rng = Rng.for_images(0, batch.indices).fold("pictures")
    for title, stream in (("image", "show"), ("attacked", "verdict")):
        column = columns[title]
        answers = model(column.pictures, rng.fold(stream)).argmax(dim=1)
        assert torch.equal(column.answers, answers)
        for number, figure in enumerate(callback.draw(trainer, module)):
            (panel,) = (panel for panel in figure.axes if panel.get_title() == title)
            assert panel.get_xlabel() == f"says {int(answers[number])}"
            right = int(answers[number]) == int(batch.labels[number])
            assert panel.xaxis.label.get_color() == (RIGHT if right else WRONG)
    if defense:
        g = model.defense(batch.images, rng.fold("show"))
        torch.testing.assert_close(columns["g(image)"].pictures, g)


def test_what_a_defense_does_on_average(tmp_path):
    """Without a random start, E[g(x)] is g(x)."""
    f_b = VGGSmall(num_classes=10, in_channels=1, image_size=16)
    g = AdversarialTransform(f_b, steps=2, radius=0.1, random_start=False, clip=True)
    (scenario,) = scenarios(["fgsm"]).values()
    module, trainer = fit(
        tmp_path, [], model=DefendedClassifier(g, CifarResNet(**F_A)), logger=False
    )
    batch = trainer.datamodule.validation_images(2)
    *_, mean = Pictures(scenario, "it", draws=2).columns(module.eval().model, batch)
    change = g(batch.images) - batch.images
    assert change.abs().max() > 0.01
    factor = float(mean.title.removeprefix("mean g \u00d7 "))
    assert 0.47 < factor * change.abs().max() < 0.53
    torch.testing.assert_close(mean.pictures, 0.5 + factor * change)


def test_no_change_has_no_factor():
    column = amplified("change", torch.zeros(2, 1, 4, 4))
    assert column.title == "change: none"
    assert torch.equal(column.pictures, torch.full((2, 1, 4, 4), 0.5))


def test_small_pictures_are_enlarged_pixel_by_pixel_and_words_fit_a_card():
    columns = [Column("a", torch.rand(1, 1, 16, 16)), Column("b", torch.rand(1, 3, 224, 224))]
    figure = row(columns, 0, 0, ["zero"])
    assert figure.axes[0].images[0].get_interpolation() == "nearest"
    assert figure.axes[1].images[0].get_interpolation() != "nearest"
    wide = row([columns[0]] * 5, 0, 0, ["zero"])
    pixels = 370 / wide.get_figwidth() * wide.axes[0].title.get_fontsize() / 72
    assert pixels >= 9


def test_pictures_reach_the_event_file_when_they_are_due(tmp_path):
    (scenario,) = scenarios(["fgsm"]).values()
    fit(
        tmp_path,
        [Pictures(scenario, "fgsm", images=2, every=3, draws=2)],
        epochs=4,
        num_sanity_val_steps=1,
    )
    found = events(tmp_path)
    assert found.Tags()["images"] == ["attack/fgsm/1", "attack/fgsm/2"]
    accuracies = [event.step for event in found.Scalars("val/accuracy")]
    steps = [event.step for event in found.Images("attack/fgsm/1")]
    assert steps == [accuracies[0], accuracies[2], accuracies[3]]  # epochs 1, 3 and the last
    fit(tmp_path / "none", [Pictures(scenario, "fgsm", images=0)])
    assert events(tmp_path / "none").Tags()["images"] == []
