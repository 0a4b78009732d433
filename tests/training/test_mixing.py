"""CutMix and MixUp: shares that match the pixels, draws that belong to the images, and training on
them.
"""

import pytest
import torch

from robusttrain.training.mixing import mix


def test_none_leaves_everything_as_it_is(images, streams):
    labels = torch.tensor([0, 2, 1, 1])
    x = images()
    assert mix(x, labels, "none", 1.0, 3, streams()) == (x, labels)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_shares_are_those_of_the_pixels(streams, kind):
    """Each image is one grey of its own, so that a mixture tells what it was made of."""
    greys, labels = torch.arange(4) / 4, torch.arange(4)
    x = greys.view(4, 1, 1, 1).expand(4, 3, 8, 8)
    mixed, shares = mix(x, labels, kind, 1.0, 4, streams(seed=3))
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(4))
    own = shares[labels, labels]
    assert 0 < float(own[0]) < 1
    # A weighted mean, or an area: either way the mean grey is the share-weighted one of two
    # neighbours.
    torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), shares @ greys)
    assert {len(image.unique()) for image in mixed} == ({1} if kind == "mixup" else {2})


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_draws_belong_to_the_images(images, streams, kind):
    labels, x = torch.tensor([0, 2, 1, 1]), images()
    torch.manual_seed(1)
    first = mix(x, labels, kind, 1.0, 3, streams())
    state = torch.random.get_rng_state()
    again = mix(x, labels, kind, 1.0, 3, streams())
    assert torch.equal(state, torch.random.get_rng_state()), (
        "torch's global generator is left as it was"
    )
    other = mix(x, labels, kind, 1.0, 3, streams(seed=1))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


def test_accelerators_draw_as_before(images, streams, monkeypatch):
    """All processes share the draw of the mixture, and none of dropout's."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeded"))
    before = torch.random.get_rng_state()
    mix(images(), torch.tensor([0, 1, 2, 0]), "cutmix", 1.0, 3, streams())
    assert torch.equal(torch.random.get_rng_state(), before)
