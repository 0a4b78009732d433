"""What a data set of somebody's own reads is looked at before anything rests on it."""

import numpy as np
import pytest
import torch

from robusttrain import evaluate
from robusttrain.core.errors import UserError
from robusttrain.data import Facts, ImageData

IMAGES = torch.arange(12 * 16).view(12, 1, 4, 4).remainder(256).to(torch.uint8)
LABELS = torch.arange(12) % 3
NAMES = ["a", "b", "c"]


class Own(ImageData):
    """Three classes of 4 x 4 grey images; reads what it is given."""

    name = "own"

    def __init__(self, read) -> None:
        super().__init__("", 4, 0.25, crop=0, flip=False, seed=0, workers=0)
        self.read = read

    def facts(self) -> Facts:
        return Facts(3, 1, 4)

    def _read(self, split):
        return self.read


REFUSED = {
    "fewer labels": ((IMAGES, LABELS[:-1], NAMES), "12 images, and 11 labels"),
    "fewer names": ((IMAGES, LABELS, NAMES[:2]), "2 names, and facts.* says 3 classes"),
    "labels from 1": ((IMAGES, LABELS + 1, NAMES), r"0\.\.2.*got 1\.\.3: subtract 1"),
    "negative labels": ((IMAGES, LABELS - 1, NAMES), "must not be negative"),
    "fractions": ((IMAGES, LABELS + 0.5, NAMES), "got fractions"),
    "one-hot": ((IMAGES, torch.eye(3)[LABELS], NAMES), r"argmax\(dim=1\)"),
    "no image": ((IMAGES[:0], LABELS[:0], NAMES), "there is no image"),
    "no names": ((IMAGES, LABELS), "not a tuple of 2"),
    "a list of images": (([*IMAGES], LABELS, NAMES), "images are a list"),
    "no channels": ((IMAGES[:, 0], LABELS, NAMES), r"\(12, 4, 4\), and facts.* 1 x 4 x 4"),
    "channels last": ((IMAGES.permute(0, 2, 3, 1), LABELS, NAMES), r"\(12, 4, 4, 1\).*come first"),
    "colour": ((IMAGES.repeat(1, 3, 1, 1), LABELS, NAMES), r"\(12, 3, 4, 4\)"),
    "another size": ((IMAGES[..., :3, :3], LABELS, NAMES), r"\(12, 1, 3, 3\)"),
    "floats to 255": ((IMAGES.float(), LABELS, NAMES), r"float32 in \[0, 191\].* in \[0, 1\]"),
    "normalised": ((IMAGES / 255 - 0.5, LABELS, NAMES), "normalise inside the model"),
    "NaN": ((IMAGES * torch.nan, LABELS, NAMES), "nan"),
    "signed bytes": ((IMAGES.to(torch.int8), LABELS, NAMES), "int8 in"),
}


@pytest.mark.parametrize("stage", ["fit", "test"])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_go_together_is_refused_where_it_is_read(kind, stage):
    read, said = REFUSED[kind]
    with pytest.raises(UserError, match=said) as error:
        Own(read).setup(stage)
    assert "Own._read" in str(error.value)
    assert "\n" not in str(error.value)


TAKEN = {
    "bytes": (IMAGES, LABELS, NAMES),
    "floats": (IMAGES / 255, LABELS, NAMES),
    "rounded floats": (IMAGES / IMAGES.max() * (1 + 5e-7), LABELS, NAMES),
    "numpy": (IMAGES.numpy(), LABELS.numpy(), np.array(NAMES)),
    "whole numbers": (IMAGES.long(), LABELS.to(torch.uint8), NAMES),
    "labels as floats": (IMAGES, LABELS.double(), NAMES),
    "labels in a list": (IMAGES, LABELS.tolist(), tuple(NAMES)),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_what_leaves_no_doubt_is_taken(kind):
    data = Own(TAKEN[kind])
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    assert batch.labels.dtype == torch.int64
    assert batch.labels.tolist() == LABELS[:4].tolist()
    assert data.class_names == NAMES


@pytest.mark.filterwarnings("ignore")
def test_labels_as_floats_are_evaluated_to_the_end():
    """What is kept of images and labels is found again."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    results = evaluate(model, Own(TAKEN["labels as floats"]), attacks="fgsm", progress=False)
    plain = evaluate(model, Own(TAKEN["bytes"]), attacks="fgsm", progress=False)
    assert results.worst_case == plain.worst_case
