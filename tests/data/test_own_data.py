"""What a data set of somebody's own reads is looked at before anything rests on it."""

import numpy as np
import pytest
import torch

from robusttrain import evaluate
from robusttrain.core.errors import UserError
from robusttrain.data import Facts, ImageData
from robusttrain.data.checking import first_moved

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
    "a name": ((IMAGES, LABELS, "abc"), "names of the classes are a str: return a list of 3"),
    "None for names": ((IMAGES, LABELS, None), "names of the classes are a NoneType"),
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


class Splits(Own):
    """The test split names its classes as it is told."""

    def __init__(self, names) -> None:
        super().__init__((IMAGES, LABELS, NAMES))
        self.names = names

    def _read(self, split):
        return (IMAGES, LABELS, self.names) if split == "test" else self.read


def test_splits_that_number_their_classes_differently_are_refused():
    with pytest.raises(UserError, match="classes b, a, c, and the other split a, b, c"):
        Splits(["b", "a", "c"]).setup()
    Splits(NAMES).setup()


def test_an_order_of_classes_that_is_not_the_checkpoints_is_refused():
    data = Splits(["b", "a", "c"])
    data.number_as(NAMES)
    with pytest.raises(UserError, match=r"class 0 is 'b', and in the checkpoint 'a'.*\(a, b, c\)"):
        data.setup("test")


@pytest.mark.parametrize(
    ("names", "theirs", "number"),
    [
        (["cat", "dog", "zebra"], ["ant", "cat", "dog"], 0),  # cat is class 1 there
        (["ant", "cat", "Dog"], ["Cat", "Dog", "ant"], 0),
        (["ant", "cat", "dog"], ["Ant", "Cat", "Dog"], None),
        (["a", "A", "b"], ["A", "a", "b"], 0),
        (["a", "A", "b"], ["A", "c", "b"], 1),
        (["0", "1", "2"], ["1", "2", "3"], None),  # counted from 0, and from 1
        (["0", "1", "2"], ["1", "2", "a"], None),
        (["0", "1", "2"], ["0", "2", "1"], 1),
        (["a", "b"], ["b", "a", "c"], None),  # refused with the model
    ],
)
def test_a_class_that_stands_elsewhere_in_the_checkpoint_moved(names, theirs, number):
    assert first_moved(names, theirs) == number


@pytest.mark.parametrize(
    ("names", "notes"), [(NAMES, 0), (["x", "b", "c"], 1), (["a", "b", "c", "d"], 0)]
)
def test_other_names_than_the_checkpoints_are_told(names, notes):
    """Another number of classes is refused with the model."""
    data = Own((IMAGES, LABELS, NAMES))
    data.number_as(names)
    data.setup("test")
    assert len(data.notes) == notes
    assert all("the checkpoint x, b, c: taken as the same by their" in note for note in data.notes)


class Raising(Own):
    """Fails where it is told to."""

    def __init__(self, fails) -> None:
        super().__init__((IMAGES, LABELS, NAMES))
        self.fails = fails

    def facts(self):
        return {}["height"] if self.fails == "facts" else super().facts()

    def _read(self, split):
        raise FileNotFoundError(2, "No such file or directory", "gone.npy")


def test_what_it_raises_is_told_in_one_line():
    with pytest.raises(UserError, match=r"_read\('train'\) raised .*gone") as error:
        Raising("read").setup("fit")
    assert "test_own_data.py, line" in str(error.value)
    with pytest.raises(UserError, match=r"Raising\.facts\(\) raised KeyError: 'height' \("):
        Raising("facts").setup("fit")


@pytest.mark.parametrize("given", [None, (3, 1), (3.0, 1, 4), (3, 1, 0), "314", Facts(3, 1, "4")])
def test_facts_that_are_none_are_refused(given):
    class Wrong(Own):
        def facts(self):
            return given

    with pytest.raises(UserError, match=r"Wrong\.facts\(\) must return Facts\(.*it returned"):
        Wrong(()).facts()


def test_plain_whole_numbers_are_facts():
    class Plain(Own):
        def facts(self):
            return (np.int64(3), 1, 4)

    assert Plain(()).facts() == Facts(3, 1, 4)
    assert type(Plain(()).facts().num_classes) is int


def test_a_constructor_that_forgets_the_base_class_is_refused():
    class Forgetful(Own):
        def __init__(self) -> None:
            self.read = ()

        def facts(self):
            return Facts(3, 1, 4)

    with pytest.raises(UserError, match=r"Forgetful\.__init__ does not call super\(\)\.__init__"):
        Forgetful().facts()
