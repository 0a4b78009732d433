"""Folders as people have them: what lies there beside images, and how classes get their numbers."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from robusttrain.core.errors import OptionError, UserError
from robusttrain.data import ImageFolder, ImageNet


def save(path, value=0):
    """A PNG of one colour, whatever its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path, "PNG")


def loaded(root, **options):
    data = ImageFolder(root=str(root), **options)
    data.setup("test")
    return data


def firsts(data):
    """The first pixel of each image, and its label."""
    pixels = (255 * data.test_images(data._test.subset).images[:, 0, 0, 0]).round().int().tolist()
    return list(zip(pixels, data._test.labels.tolist(), strict=True))


@pytest.fixture
def root(tmp_path):
    """Two classes of two images each in test/."""
    for number, name in enumerate(("ant", "bee")):
        for each in range(2):
            save(tmp_path / "test" / name / f"{each}.png", 10 * number + each)
    return tmp_path


PLAIN = [(0, 0), (1, 0), (10, 1), (11, 1)]


def test_what_nobody_means_as_an_image_is_passed_over_in_silence(root):
    for name in ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini", "README.md", "labels.csv"):
        (root / "test" / "ant" / name).write_bytes(b"no image")
    for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
        save(root / "test" / name / "a.png")
        save(root / "test" / "ant" / name / "a.png")
    data = loaded(root)
    assert data.class_names == ["ant", "bee"]
    assert firsts(data) == PLAIN
    assert data.notes == []


def test_other_files_are_counted_and_named(root):
    for name in ("a.heic", "b.HEIC", "c.svg", "photo"):
        (root / "test" / "bee" / name).write_bytes(b"something")
    data = loaded(root)
    assert firsts(data) == PLAIN
    (note,) = data.notes
    assert note.startswith(
        "passed over as no images that can be read here: 4 (.heic: 2, .svg: 1, no ending: 1);"
    )
    assert note.endswith(str(root / "test" / "bee" / "a.heic"))


def test_endings_in_capitals(root):
    (root / "test" / "ant" / "0.png").rename(root / "test" / "ant" / "0.PNG")
    assert firsts(loaded(root)) == PLAIN


def test_images_inside_inner_folders_count_and_are_told_of(root):
    save(root / "test" / "bee" / "2019" / "may" / "a.png", 20)
    data = loaded(root)
    assert sorted(firsts(data)) == [*PLAIN, (20, 1)]
    assert data.notes[0].startswith("images in folders inside class folders, which count as")


def test_links_are_followed_and_loops_end(root):
    (root / "test" / "ant" / "up").symlink_to(root / "test" / "ant", target_is_directory=True)
    (root / "test" / "ant" / "top").symlink_to(root, target_is_directory=True)
    (root / "test" / "ant" / "9.png").symlink_to(root / "test" / "ant" / "1.png")
    (root / "test" / "bee" / "gone.png").symlink_to(root / "nowhere.png")
    os.mkfifo(root / "test" / "bee" / "pipe.png")
    data = loaded(root)
    assert firsts(data) == [*PLAIN[:2], (1, 0), *PLAIN[2:]]
    assert data.notes[0].startswith(
        "passed over as links that lead nowhere or back, or as no plain files: 4;"
    )


def test_a_folder_with_the_name_of_an_image(root):
    save(root / "test" / "bee" / "x.png" / "a.png", 20)
    assert (20, 1) in firsts(loaded(root))


def test_images_in_no_class_folder_are_told_of(root):
    save(root / "test" / "loose.png")
    assert loaded(root).notes == [
        f"passed over as images in no class folder: 1; the first: {root}/test/loose.png"
    ]


def test_classes_without_images_are_told_of(root):
    (root / "test" / "cat").mkdir()
    assert loaded(root).notes == [f"classes without an image in {root}/test: 1 (cat)"]


@pytest.mark.parametrize("folder", ["", "test", "train"])
def test_images_without_class_folders_are_refused(tmp_path, folder):
    save(tmp_path / folder / "a.png")
    with pytest.raises(
        UserError, match=r"no class folders in .*sort the images there \(1\) into one folder"
    ):
        loaded(tmp_path)


def test_class_folders_without_a_split_are_test_images(root):
    bare = root / "test"
    data = loaded(bare)
    assert firsts(data) == PLAIN
    assert data.notes == [
        f"{bare} has no train/, test/ or val/: its class folders are the test split"
    ]
    with pytest.raises(
        UserError, match=r"no train images in .*class folders without a split are test"
    ):
        ImageFolder(root=str(bare)).setup("fit")


def test_a_folder_around_the_folder_is_named(root):
    with pytest.raises(UserError, match=rf"no class folders in .*: give --data\.root {root}$"):
        loaded(root.parent)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Test"])
def test_names_of_the_test_split(root, name):
    (root / "test").rename(root / name)
    assert firsts(loaded(root)) == PLAIN


def test_a_second_test_split_is_told_of(root):
    save(root / "val" / "ant" / "a.png")
    data = loaded(root)
    assert firsts(data) == PLAIN
    assert data.notes == [f"{root}/test is the test split; {root}/val is not read"]


def test_a_class_of_the_name_train(tmp_path):
    """Among class folders, one that holds images and no folders is a class."""
    for number, name in enumerate(("car", "train")):
        save(tmp_path / name / "a.png", number)
    data = loaded(tmp_path)
    assert data.class_names == ["car", "train"]
    assert firsts(data) == [(0, 0), (1, 1)]


def test_class_names_of_other_scripts(tmp_path):
    names = ["Ärger", "кот", "猫", "[bold]", "a b"]
    for number, name in enumerate(sorted(names)):
        save(tmp_path / "test" / name / "a.png", number)
    assert loaded(tmp_path).class_names == sorted(names)


def test_accents_are_the_same_however_they_are_written(tmp_path):
    """macOS writes é as two characters, others as one."""
    save(tmp_path / "train" / "caf\u00e9" / "a.png")
    save(tmp_path / "train" / "tea" / "a.png")
    save(tmp_path / "test" / "cafe\u0301" / "a.png", 5)
    data = loaded(tmp_path)
    assert data.class_names == ["caf\u00e9", "tea"]
    assert firsts(data) == [(5, 0)]


def test_names_that_are_no_text(tmp_path):
    folder = os.fsencode(tmp_path / "test") + b"/b\xff"
    os.makedirs(folder)
    save(tmp_path / "test" / "ant" / "a.png")
    with open(folder + b"/\xfe.png", "wb") as file:
        file.write(b"no image")
    with pytest.raises(UserError) as caught:
        loaded(tmp_path)
    assert "b\\udcff" in str(caught.value).encode().decode()
    assert ImageFolder(root=str(tmp_path))._classes()[0] == ["ant", "b\\udcff"]


def test_folders_that_cannot_be_listed_are_named(root, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(UserError, match=r"cannot list the folder .* \(Permission denied\)"):
        loaded(root)


def numbers(tmp_path, names):
    for name in names:
        save(tmp_path / "test" / name / "a.png", int(name))
    return tmp_path


def test_numbers_sort_as_numbers_and_it_is_said(tmp_path, caplog):
    caplog.set_level("INFO", "robusttrain.data")
    data = loaded(numbers(tmp_path, [str(number) for number in range(12)]))
    assert data.class_names == [str(number) for number in range(12)]
    assert firsts(data) == [(number, number) for number in range(12)]
    assert "as numbers by their folders (torchvision sorts 10 before 2" in caplog.messages[0]
    assert "0 0, 1 1, 2 2" in caplog.messages[0]


def test_numbers_inside_names_are_text_and_it_is_said(tmp_path, caplog):
    caplog.set_level("INFO", "robusttrain.data")
    for name in ("c2", "c10"):
        save(tmp_path / "test" / name / "a.png")
    assert loaded(tmp_path).class_names == ["c10", "c2"]
    assert (
        "2 classes, numbered by the sorted names of their folders, as text (10 before 2"
        in caplog.text
    )
    assert "0 c10, 1 c2" in caplog.text


ORDER = ["10", "2", "no", "01"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "\ufeff10\r\n2\r\n\r\n no \r\n01\r\n"),
        ("a.json", json.dumps(ORDER)),
        ("b.json", json.dumps({"2": 1, "no": 2, "01": 3, "10": 0})),
        ("a.yaml", "- 10\n- 2\n- no\n- 01\n"),
        ("b.yml", "01: 3\n10: 0\n2: 1\nno: 2\n"),
    ],
)
def test_a_file_gives_the_order(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    data = loaded(numbers(tmp_path, ["2", "10"]), classes=str(tmp_path / name))
    assert data.class_names == ORDER
    assert data.facts().num_classes == 4
    assert firsts(data) == [(10, 0), (2, 1)]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.txt", "ant\nbee\nant\n", "names 'ant' twice"),
        ("a.txt", "\n", "names no class"),
        ("a.txt", b"\xff\xfe\x00", "no text in UTF-8"),
        ("a.json", "[1, [2]]", "must hold a list of folder names"),
        ("a.json", '{"ant": 0, "bee": 2}', "must hold a list of folder names"),
        ("a.json", "{", "must hold a list of folder names"),
        ("a.yaml", "a: [", "must hold a list of folder names"),
        ("none.txt", None, "cannot be read"),
    ],
)
def test_files_that_give_no_order(root, name, content, why):
    if content is not None:
        path = root / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(OptionError, match=rf"data\.classes = .*{why}") as caught:
        loaded(root, classes=str(root / name))
    assert "\n" not in str(caught.value)


def test_a_folder_that_the_file_does_not_name(root):
    (root / "a.txt").write_text("bee\ncat\n")
    with pytest.raises(
        UserError, match=r"the folder 'ant' is no class of --data\.classes .*'bee', 'cat'"
    ):
        loaded(root, classes=str(root / "a.txt"))


def test_a_checkpoint_numbers_its_classes(root, caplog):
    caplog.set_level("INFO", "robusttrain.data")
    data = ImageFolder(root=str(root))
    data.number_as(["bee", "cat", "ant"])
    data.setup("test")
    assert data.facts().num_classes == 3
    assert firsts(data) == [(10, 0), (11, 0), (0, 2), (1, 2)]
    assert "numbered as in the checkpoint: 0 bee, 1 cat, 2 ant" in caplog.text


def test_a_checkpoint_of_other_classes_is_told_of(root, caplog):
    caplog.set_level("INFO", "robusttrain.data")
    data = ImageFolder(root=str(root))
    data.number_as(["x", "y"])
    data.setup("test")
    assert firsts(data) == PLAIN
    assert "since the checkpoint has other names (x, y" in caplog.text
    assert any("classes ant, bee, and the checkpoint x, y: taken as" in line for line in data.notes)


@pytest.mark.parametrize("theirs", [["Bee", "ant"], ["ape", "ant"]])
def test_other_names_that_would_move_a_class_are_refused(root, theirs):
    """Sorted, ant is class 0 here and class 1 there."""
    data = ImageFolder(root=str(root))
    data.number_as(theirs)
    with pytest.raises(UserError, match=r"test: class 0 is 'ant', .*--data\.classes FILE with"):
        data.setup("test")
    (root / "order.txt").write_text("bee\nant\n")
    data = ImageFolder(root=str(root), classes=str(root / "order.txt"))
    data.number_as(theirs)
    data.setup("test")
    assert firsts(data) == [(10, 0), (11, 0), (0, 1), (1, 1)]


def test_a_folder_too_many_for_a_checkpoint_is_named(root):
    save(root / "test" / "bug" / "0.png")
    data = ImageFolder(root=str(root))
    data.number_as(["ant", "bee"])
    with pytest.raises(UserError, match=r"^the folder 'bug' .* has 2 classes \('ant', 'bee'\)"):
        data.facts()


def test_class_folders_further_inside_are_named(tmp_path):
    """The only folder is no class: its folders are."""
    for name in ("ant", "bee"):
        save(tmp_path / "all of them" / "v1" / "my pictures" / name / "0.png")
        save(tmp_path / "split" / "test" / "images" / name / "0.png")
    inside = "--data.root '[^']*all of them/v1/my pictures'"
    with pytest.raises(UserError, match=f"no class folders in .*: give {inside}$"):
        ImageFolder(root=str(tmp_path / "all of them")).facts()
    with pytest.raises(UserError, match=r"move the folders in .*test/images to .*/test$"):
        ImageFolder(root=str(tmp_path / "split")).facts()
    data = ImageFolder(root=str(tmp_path / "all of them"))
    data.number_as(["v1", "v2"])  # a class of the checkpoint, whose images lie further inside
    data.setup("test")
    assert data._test.labels.tolist() == [0, 0]


def test_a_folder_with_blanks_is_named_so_that_it_can_be_pasted(tmp_path):
    for name in ("ant", "bee"):
        save(tmp_path / "my pictures" / "test" / name / "0.png")
    with pytest.raises(UserError, match=r"give --data\.root '.*my pictures'$"):
        ImageFolder(root=str(tmp_path)).facts()


def test_imagenet_counts_what_it_passes_over(tmp_path):
    folder = tmp_path / "val" / "n01440764"
    save(folder / "a.png")
    (folder / "a.heic").write_bytes(b"")
    data = ImageNet(root=str(tmp_path), image_size=8)
    data.setup("test")
    assert len(data._test) == 1
    assert data.notes[0].startswith("passed over as no images that can be read here: 1 (.heic: 1)")


def test_a_suites_own_number_of_images_takes_what_there_is(root):
    data = loaded(root)
    data.limit_test(200, seed=0, at_most=True)
    assert sorted(i for b in data.test_dataloader() for i in b.indices.tolist()) == [0, 1, 2, 3]
    assert data.notes == [
        "200 images were to be attacked, and the test split has 4: all of them are"
    ]
    with pytest.raises(OptionError, match="images = 200: the test split has 4 images"):
        data.limit_test(200, seed=0)


@pytest.mark.parametrize("memory", [4.0, 0.0])
def test_images_leave_the_data_module_contiguous(root, memory):
    """AutoAttack's own code calls view() on them."""
    save(root / "train" / "ant" / "0.png")
    save(root / "train" / "bee" / "0.png")
    data = ImageFolder(root=str(root), memory_limit_gib=memory, validation=0.5)
    data.setup()
    batches = [next(iter(loader)) for loader in (data.test_dataloader(), data.train_dataloader())]
    batches += [
        data.validation_images(1),
        data.unaugmented("test", 4),
        data.test_images(data._test.subset),
    ]
    for batch in batches:
        assert batch.images.shape[1:] == (3, 8, 8)
        assert batch.images.is_contiguous()
        batch.images.view(len(batch.images), -1)
