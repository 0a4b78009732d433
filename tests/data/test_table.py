"""Images that a table names: columns, splits, classes, and lines that cannot be right."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from robusttrain.core.errors import OptionError, UserError
from robusttrain.data import Facts, ImageTable


def write(folder, lines, name="labels.csv"):
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def folder(tmp_path):
    """Pictures of one colour: a.png to e.png, with the values 0 to 40."""
    for place, name in enumerate("abcde"):
        pixels = np.full((8, 8, 3), 10 * place, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return tmp_path


def read(path, split="test", **arguments):
    data = ImageTable(root=path, **arguments)
    data.setup(split)
    images = data._test if split == "test" else data._train
    return data, images.images[:, 0, 0, 0].tolist(), images.labels.tolist()


def test_lines_without_splits_are_test_images(folder):
    path = write(folder, ["file,class", "b.png,cat", "a.png,ant", "", "c.png,cat"])
    data, values, labels = read(path)
    assert data.facts() == Facts(2, 3, 8)
    assert data._test.images.dtype == torch.uint8
    assert (data.class_names, values, labels) == (["ant", "cat"], [10, 0, 20], [1, 0, 1])
    assert data.notes == []
    with pytest.raises(UserError, match="no train images in .*split = train.*split_column"):
        data.setup("fit")


def test_other_columns_separators_folders_and_endings(folder):
    (folder / "deep").mkdir()
    lines = ["\ufeffid\tnote\tlabel", "b\tx, y\tcat", "a\t\tant"]
    path = write(folder / "deep", lines, "labels.tsv")
    columns = {"file_column": "id", "class_column": "label"}
    _, values, labels = read(path, folder=str(folder), ending=".png", **columns)
    assert (values, labels) == ([10, 0], [1, 0])
    with pytest.raises(UserError, match=r"line 2: there is no file .*deep/b\.png: give the folder"):
        read(path, ending=".png", **columns)


def test_quotes_after_a_blank(folder):
    path = write(folder, ["file, class", 'a.png, "x, y"', 'b.png,"z"'])
    assert read(path)[0].class_names == ["x, y", "z"]


def test_a_column_of_splits(folder):
    lines = ["file,class,split", "a.png,x,train", "b.png,y,TRAIN", "c.png,y,val", "d.png,x,held"]
    path = write(folder, lines)
    data, values, labels = read(path)
    assert (values, labels) == ([20], [1])
    assert data.notes == [
        "lines that are not read: 1, whose split is 'held'; the first: line 5",
        "classes without a test image: 1 (x)",
    ]
    data, values, labels = read(path, "fit", validation=0.5)
    assert (values, labels) == ([0, 10], [0, 1])
    # Where there are test images, those of val are not read.
    _, values, _ = read(write(folder, [*lines, "e.png,x,test"]))
    assert values == [40]


def test_test_images_alone_are_enough_to_evaluate(folder):
    path = write(folder, ["file,class,split", "gone.png,x,train", "b.png,y,test", "c.png,x,test"])
    assert read(path)[1] == [10, 20]
    with pytest.raises(UserError, match="line 2: there is no file .*gone.png"):
        read(path, "fit")


def test_whole_numbers_are_the_classes_numbers(folder):
    path = write(folder, ["file,class", "a.png,10", "b.png,2", "c.png,02"])
    data, _, labels = read(path)
    assert labels == [10, 2, 2]  # as ranks they would be 1 and 0
    assert data.class_names == [str(number) for number in range(11)]
    assert data.notes == ["classes without a test image: 9 (0, 1, 3, 4, 5 ...)"]
    with pytest.raises(UserError, match="the class 100000 is no class's number"):
        read(write(folder, ["file,class", "a.png,100000"]))


@pytest.mark.parametrize(
    ("names", "wrong"),
    [(["0.0", "1.0", "10.0"], "0.0"), (["-1", "0", "1"], "-1"), (["0", "2", "nan"], "nan")],
)
def test_numbers_that_would_sort_as_text_are_refused(folder, names, wrong):
    rows = [f"{letter}.png,{name}" for letter, name in zip("abc", names, strict=True)]
    path = write(folder, ["file,class", *rows])
    with pytest.raises(UserError, match=f"classes are numbers, and '{wrong}' is no whole number"):
        read(path)
    assert read(path, classes=write(folder, names, "order.txt"))[2] == [0, 1, 2]


@pytest.mark.parametrize("names", ["0.5 1.0 2.5", "0 1 A", "nan null no"])
def test_names_that_look_like_numbers_are_names(folder, names):
    rows = [f"{letter}.png,{name}" for letter, name in zip("abc", names.split(), strict=True)]
    assert read(write(folder, ["file,class", *rows]))[0].class_names == sorted(names.split())


def test_a_column_of_splits_that_is_not_read(folder):
    rows = ["a.png,x,train", "b.png,y,test", "c.png,y,"]
    for column in ("Split", "set"):
        data, values, _ = read(write(folder, [f"file,class,{column}", *rows]))
        assert values == [0, 10, 20]
        assert data.notes == [
            f"all lines are test images, though the column '{column}' seems to name splits:"
            f" --data.split_column {column} reads it"
        ]
    assert read(write(folder, ["file,class,set", *rows]), split_column="set")[1] == [10]
    assert read(write(folder, ["file,class,kind", "a.png,x,train", "b.png,y,bus"]))[0].notes == []
    with pytest.raises(OptionError, match=r"split_column = 'fold': is none of the columns of"):
        read(write(folder, ["file,class,set", *rows]), split_column="fold")


def test_one_image_under_several_paths(folder):
    again = ["a.png,x", "./a.png,x", f"{folder}/b.png,y", "deep/../b.png,y"]
    (folder / "deep").mkdir()
    (note,) = read(write(folder, ["file,class", *again]))[0].notes
    assert note.startswith("lines that name an image once more, which counts as often: 2; the")
    lines = ["file,class,split", "a.png,x,train", "b.png,y,train", "./a.png,x,test"]
    notes = read(write(folder, lines))[0].notes
    assert notes[0].startswith("images of both splits, which no accuracy should rest on: 1; the")
    with pytest.raises(UserError, match=r"line 4: \./a.png is 'y', and 'x' in line 2: an image"):
        read(write(folder, [*lines[:3], "./a.png,y,test"]))


def test_other_names_than_the_checkpoints(folder):
    names = ImageTable(root=write(folder, ["file,class", "a.png,cat", "b.png,dog"]))
    names.number_as(["ant", "cat"])
    with pytest.raises(UserError, match=r"labels.csv: class 0 is 'cat', .* 'ant': rename the"):
        names.setup("test")
    numbers = ImageTable(root=write(folder, ["file,class", "a.png,0", "b.png,1"]))
    numbers.number_as(["ant", "cat", "dog"])
    numbers.setup("test")
    assert "names its classes 0, 1, 2, and the checkpoint ant, cat, dog: taken" in numbers.notes[0]


def test_classes_of_a_checkpoint_and_of_a_file(folder):
    path = write(folder, ["file,class", "a.png,ant", "b.png,cat"])
    data = ImageTable(root=path)
    data.number_as(["cat", "bee", "ant"])
    data.setup("test")
    assert data._test.labels.tolist() == [2, 0]
    assert data.facts().num_classes == 3
    order = write(folder, ["dog", "cat", "ant"], "order.txt")
    assert read(path, classes=order)[2] == [2, 1]
    data = ImageTable(root=path)
    data.number_as(["cat", "bee", "dog"])
    with pytest.raises(UserError, match="the class 'ant' is none of the checkpoint's 3"):
        data.setup("test")
    numbers = ImageTable(root=write(folder, ["file,class", "a.png,3"], "numbers.csv"))
    numbers.number_as(["cat", "bee", "dog"])
    with pytest.raises(UserError, match="the class 3 is none of the checkpoint's 3"):
        numbers.setup("test")
    with pytest.raises(UserError, match="the class 'ant' is no class of --data.classes"):
        read(path, classes=write(folder, ["cat", "dog"], "order.txt"))


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ([], "is none of the columns of .*no line with their names"),
        (["image,class", "a.png,x"], r"file_column = 'file': is none of .*\('image', 'class'\)"),
        (["file,class,class", "a.png,x,y"], "class_column = 'class': is two of the columns"),
        (["file;class", "a.png;x"], r"\('file;class'\)"),
        (["file,class"], "no images in .*lines with a file and its class"),
        (["file,class", "a.png,x,y"], "line 2: has 3 columns, and the first line 2"),
        (["file,class", "a.png,x", "b.png, "], "line 3: names no class"),
        (["file,class", ",x"], "line 2: names no file"),
        (["file,class", "a.png,x", "a.png,y"], "line 3: a.png is 'y', and 'x' in line 2"),
        (["file,class", f"{'a' * 5000},x"], r"line 2: there is no file .*a\.\.\.: give the folder"),
        (["file,class", '"a.png,x'], "cannot read the table .*unexpected end of data"),
    ],
)
def test_what_cannot_be_right_is_refused(folder, lines, error):
    with pytest.raises(UserError, match=error):
        read(write(folder, lines))


def test_what_makes_a_figure_doubtful_is_noted(folder):
    lines = ["file,class,split", "a.png,x,train", "b.png,y,train", "a.png,x,test", "a.png,x,test"]
    data, values, _ = read(write(folder, lines))
    assert values == [0, 0]
    assert data.notes[:2] == [
        "lines that name an image once more, which counts as often: 1; the first: line 5",
        "images of both splits, which no accuracy should rest on: 2; the first: a.png",
    ]


def test_arguments_and_files_that_are_no_table(folder):
    with pytest.raises(OptionError, match=r"channels = 2: must be 1 or 3"):
        ImageTable(channels=2)
    with pytest.raises(UserError, match=r"no table in .*nothing\.csv .*--data FOLDER"):
        ImageTable(root=str(folder / "nothing.csv")).setup("test")
    (folder / "binary.csv").write_bytes(b"file,class\n\xff\xfe,x\n")
    with pytest.raises(UserError, match="it is no text in UTF-8"):
        read(str(folder / "binary.csv"))
    Image.fromarray(np.zeros((4, 8, 3), np.uint8)).save(folder / "wide.png")
    path = write(folder, ["file,class", "wide.png,x", "a.png,y"])
    with pytest.raises(UserError, match="wide.png is 8x4 pixels.*--data.image_size N"):
        read(path)
    assert read(path, image_size=4)[2] == [0, 1]


def test_batches_are_decoded_where_memory_is_short(folder):
    path = write(folder, ["file,class", "a.png,x", "b.png,y", "c.png,x"])
    data = ImageTable(root=path, memory_limit_gib=0, batch_size=2)
    data.setup("test")
    batches = [*data.test_dataloader()]
    assert torch.cat([batch.images for batch in batches])[:, 0, 0, 0].tolist() == [0, 10, 20]


def test_the_command_line_takes_a_table(folder, monkeypatch, command):
    monkeypatch.chdir(folder)
    lines = ["file,class,split"]
    for number in range(24):
        pixels = np.full((8, 8, 3), 200 * (number % 2) + number, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        split = "train" if number < 16 else "test"
        lines.append(f"{number}.png,{('dark', 'bright')[number % 2]},{split}")
    path = write(folder, lines)
    model = ["--model", "mlp", "--data.batch_size", "4"]
    train = ["--trainer.max_epochs", "3", "--data.crop", "0", "--data.flip", "false"]
    command("train.py", "--data", path, *model, *train)
    command("evaluate.py", "--data", path, "--attack", "fgsm", "--audit", "false")
    (found,) = folder.glob("results/**/results.json")
    results = json.loads(found.read_text())
    assert results["classes"] == ["bright", "dark"]
    assert results["plan"]["data"]["class_path"] == "robusttrain.data.ImageTable"
    assert results["images"] == 8
