"""Records: a table of one row an image and attack, the same after a file, each image once."""

import dataclasses

import pytest
import torch

from robusttrain.core.errors import UserError
from robusttrain.evaluation import Records, Rows
from robusttrain.storage.weights import save_tensors


def part(*indices: int, attacks=("clean", "pgd")) -> Records:
    """Records of these images; everything about an image follows from its index."""
    index = torch.tensor(indices, dtype=torch.long)
    score = torch.stack([index % 2, index % 3], dim=1).bool()
    rows = {}
    for number, name in enumerate(attacks):
        numbers = index.float() + number
        images = index.view(-1, 1, 1, 1).float().expand(-1, 1, 2, 2)
        rows[name] = Rows(
            index,
            index % 10,
            score,
            ~score,
            index > number,
            numbers,
            2 * numbers,
            3 * numbers,
            images,
        )
    return Records(rows)


def same(one: Records, other: Records) -> bool:
    return list(one.rows) == list(other.rows) and all(
        (left is None) == (right is None) and (left is None or torch.equal(left, right))
        for name in one.rows
        for left, right in zip(
            one.of(name).columns().values(), other.of(name).columns().values(), strict=True
        )
    )


def test_each_image_counts_once_whoever_attacked_it():
    merged = Records.merged([part(5, 0, 2), part(), part(2, 1), part(0, 7)])
    assert same(merged, part(0, 1, 2, 5, 7))
    assert (len(merged), merged.attacks) == (5, ["pgd"])
    assert merged.of("pgd").right.tolist() == [0.0, 1.0, 0.5, 1.0, 1.0]
    assert merged.of("pgd").chosen_by.tolist() == [1.0, 0.0, 0.5, 0.0, 0.0]
    assert len(Records.merged([part(), part()])) == 0


def test_the_table_survives_a_file_without_its_images(tmp_path):
    records = part(3, 4, 9, attacks=("clean", "bpda-eot", "a/b"))
    records.save(tmp_path / "table.safetensors")
    found = Records.read(tmp_path / "table.safetensors")
    assert found.of("a/b").images is None
    assert same(found, records.without_images())
    part().save(tmp_path / "none.safetensors")
    assert len(Records.read(tmp_path / "none.safetensors")) == 0


def test_other_files_are_told(tmp_path):
    save_tensors({"index": torch.arange(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="holds no records of an evaluation"):
        Records.read(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="there is no such file"):
        Records.read(tmp_path / "none.safetensors")


def test_rows_are_chosen_by_a_mask_and_stay_frozen():
    rows = part(3, 4, 9).of("pgd")
    assert rows[torch.tensor([True, False, True])].index.tolist() == [3, 9]
    assert rows[1:].images.shape == (2, 1, 2, 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        rows.index = torch.arange(3)


def test_the_worst_case_of_several_evaluations_is_per_image():
    """Two attacks that each fool another image leave nothing between them."""
    parts = {}
    for key, right in (("first", [0, 1]), ("second", [1, 0])):
        verdicts = torch.tensor(right, dtype=torch.bool)[:, None].expand(2, 3)
        clean = torch.ones(2, 3, dtype=torch.bool)
        index, nothing = torch.arange(2), torch.zeros(2)
        parts[key] = Records(
            {
                name: Rows(index, index, values, values, index > 0, nothing, nothing, nothing)
                for name, values in (("clean", clean), ("pgd", verdicts))
            }
        )
    assert Records.together({"first": parts["first"]}).worst.tolist() == [0, 1]
    assert Records.together(parts).worst.tolist() == [0, 0]
    assert len(Records.together(parts)) == 2
