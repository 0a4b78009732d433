"""The format in which networks compute, and the kind of convolution that oneDNN gets wrong."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robusttrain.core.memory_format import EveryNthPixel, exact_convolutions, use_fastest_format
from robusttrain.models import fast_copy


def test_convolutions_are_right_under_every_instruction_set():
    """In processes of their own, which a broken kernel may end."""
    sets = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
    unset = {key: value for key, value in os.environ.items() if key not in sets}
    done = subprocess.run(
        [sys.executable, "-m", "tests.core.convolutions"],
        cwd=Path(__file__).parents[2],
        env=unset,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "wrong" not in done.stdout, done.stdout + done.stderr
    assert "as it is" in done.stdout
    assert "0 convolutions" not in done.stdout


@pytest.mark.parametrize("stride", [2, 3, (1, 2), (3, 1)])
@pytest.mark.parametrize("padding", [0, "valid"])
def test_results_names_hooks_and_copies_stay(stride, padding):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1, stride=stride, padding=padding), nn.ReLU())
    images, seen = torch.rand(2, 3, 10, 11), []
    network[0].register_forward_hook(
        lambda module, inputs, output: seen.append((inputs[0].shape, output.shape))
    )
    before, names, written = network(images), list(network.state_dict()), repr(network)
    use_fastest_format(network)
    assert isinstance(network[0]._conv_forward, EveryNthPixel)
    torch.testing.assert_close(network(images), before)
    assert seen[0] == seen[1]
    assert list(network.state_dict()) == names
    assert repr(network) == written
    copied = copy.deepcopy(network[0])
    copied._forward_hooks.clear()
    for twin in (copied, pickle.loads(pickle.dumps(copied))):
        twin.weight.data.zero_()
        assert (twin(images) == twin.bias.view(-1, 1, 1)).all()
    torch.testing.assert_close(network(images), before)


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(3, 4, 1),
        nn.Conv2d(3, 4, 3, stride=2),
        nn.Conv2d(4, 4, 1, stride=2, groups=4),
        nn.Conv2d(16, 4, 1, stride=2),
        nn.Conv2d(3, 4, 1, stride=2, padding=1),
    ],
)
def test_other_convolutions_are_left_as_they_are(convolution):
    use_fastest_format(convolution)
    assert "_conv_forward" not in vars(convolution)
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)


def test_weights_of_other_dimensions_keep_their_format():
    network = nn.Sequential(nn.Conv1d(3, 4, 3), nn.Conv3d(3, 4, 3), nn.Linear(4, 2))
    use_fastest_format(network)
    assert all(weight.is_contiguous() for weight in network.parameters())


def test_functions_get_the_equivalent_inside_the_block_alone():
    images, weight = torch.rand(2, 3, 8, 8), torch.rand(4, 3, 1, 1, requires_grad=True)

    expected = F.conv2d(images, weight, None, 2)
    with exact_convolutions(torch.device("cpu")):
        found = F.conv2d(input=images, weight=weight, stride=[2, 2])
        sliced = F.conv2d(images.requires_grad_(), weight, stride=2)
    torch.testing.assert_close(found, expected)
    assert "Slice" in str(sliced.grad_fn.next_functions[0][0])
    assert "Slice" not in str(F.conv2d(images, weight, stride=2).grad_fn.next_functions[0][0])


def test_a_fast_copy_has_the_equivalent_with_batch_norm_folded():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1, stride=2), nn.BatchNorm2d(4)).eval()
    images = torch.rand(2, 3, 8, 8)
    fast = fast_copy(model, example=images)
    assert fast.folded == 1
    assert isinstance(fast.network[0]._conv_forward, EveryNthPixel)
    assert "_conv_forward" not in vars(model[0])
    torch.testing.assert_close(fast(images), model(images), rtol=1e-5, atol=1e-5)
