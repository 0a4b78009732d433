"""Eight-bit export: rounded inside the ball, written, read back."""

from types import SimpleNamespace

import numpy
import pytest
import torch
from PIL import Image

from robusttrain.attacks import L2, RMSD, Linf
from robusttrain.core.errors import UserError
from robusttrain.evaluation.export import check_export, eight_bit, export, write_pictures
from robusttrain.storage.locks import alone


def pictures(*shape):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).float() / 255


@pytest.mark.parametrize(
    "threat", [Linf(0.031), Linf(8 / 255), Linf(0.001), L2(0.5), L2(0.01), RMSD(0.02)], ids=str
)
def test_it_stays_inside_the_ball_and_near(threat):
    images = pictures(20, 3, 8, 8)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    # On the boundary, where rounding goes wrong
    adversarial = threat.project(images + noise, images)
    levels = eight_bit(adversarial, images, threat)
    assert levels.dtype == torch.uint8
    found = levels.float() / 255
    assert (threat.distance(found, images) <= threat.epsilon + 1e-6).all()
    assert ((found - adversarial).abs() * 255 < 1.001).all()
    assert ((found - images).abs() <= (adversarial - images).abs() + 0.5 / 255 + 1e-6).all()


def test_what_a_file_can_hold_is_not_changed():
    images = pictures(4, 1, 8, 8)
    adversarial = Linf(8 / 255).project(images + 8 / 255, images)
    assert torch.equal(
        eight_bit(adversarial, images, Linf(8 / 255)).float() / 255,
        (adversarial * 255).round() / 255,
    )
    assert torch.equal(eight_bit(images, images, Linf(0.0)), (images * 255).round().to(torch.uint8))


def test_a_radius_of_0_031_keeps_seven_levels_of_eight():
    # 0.031 * 255 = 7.905: the nearest level, 8, lies outside.
    images = torch.full((1, 1, 2, 2), 100 / 255)
    assert (eight_bit(images + 0.031, images, Linf(0.031)) == 107).all()
    assert (eight_bit(images - 0.031, images, Linf(0.031)) == 93).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_files_hold_the_levels(tmp_path, channels):
    levels = torch.arange(2 * channels * 16, dtype=torch.uint8).view(2, channels, 4, 4)
    read = write_pictures(levels, torch.tensor([7, 123]), tmp_path / "pgd")
    assert torch.equal(read * 255, levels.float())
    assert sorted(path.name for path in (tmp_path / "pgd").iterdir()) == [
        "000007.png",
        "000123.png",
    ]
    picture = numpy.array(Image.open(tmp_path / "pgd" / "000123.png"))
    assert numpy.array_equal(picture.reshape(4, 4, channels), levels[1].permute(1, 2, 0).numpy())


def test_a_place_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "pgd").write_text("")
    with pytest.raises(UserError, match="--export png"):
        write_pictures(
            torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.tensor([0]), tmp_path / "pgd"
        )


@pytest.mark.parametrize(
    ("wanted", "channels", "told"), [("jpg", 3, "must be png"), ("png", 4, "have 4")]
)
def test_what_cannot_be_exported_is_refused(wanted, channels, told):
    with pytest.raises(UserError, match=told):
        check_export(wanted, channels)
    check_export(None, 4)


def test_processes_write_pictures_one_after_another(tmp_path):
    """Or one would read what another has half written."""

    def waits(line):
        raise InterruptedError(line)

    engine = SimpleNamespace(scenarios={})
    arguments = (engine, None, None, tmp_path / "png", 1, torch.device("cpu"), waits)
    with (
        alone(tmp_path / "png", "them", pytest.fail),
        pytest.raises(InterruptedError, match="another process makes the eight-bit images"),
    ):
        export(*arguments)
    assert export(*arguments) == {}
