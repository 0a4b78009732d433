"""What a checkpoint says of its folder, read in the same folder, a moved one, and another one."""

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from robusttrain.training.callbacks import Kept

pytestmark = pytest.mark.filterwarnings("error")
SETTINGS = {"filename": "best", "monitor": "val/accuracy", "mode": "max"}


@pytest.fixture
def state(tmp_path):
    """Of Lightning's own class, as runs before this one left it."""
    was = ModelCheckpoint(tmp_path / "before", **SETTINGS)
    path, score = str(tmp_path / "before" / "best.ckpt"), torch.tensor(0.5)
    was.best_model_path = was.kth_best_model_path = path
    was.best_model_score = was.kth_value = score
    was.best_k_models = {path: score}
    return was.state_dict()


def test_the_state_is_found_under_the_key_of_lightnings_own_class():
    assert Kept(**SETTINGS).state_key == ModelCheckpoint(**SETTINGS).state_key


@pytest.mark.parametrize("name", ["before", "moved"])
def test_a_folder_that_holds_the_best_epoch_goes_on_with_its_score(state, tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "best.ckpt").touch()
    now = Kept(tmp_path / name, **SETTINGS)
    now.load_state_dict(state)
    path = str(tmp_path / name / "best.ckpt")
    assert now.best_k_models == {path: torch.tensor(0.5)}
    assert now.best_model_path == now.kth_best_model_path == path
    assert now.best_model_score == now.kth_value == 0.5


def test_a_folder_without_it_begins_anew_and_says_where_it_is(state, tmp_path):
    now = Kept(tmp_path / "other", **SETTINGS)
    with pytest.warns(
        UserWarning, match=r"best.ckpt: the best of the epochs from here on; .*before"
    ):
        now.load_state_dict(state)
    assert now.best_k_models == {}
    assert now.best_model_score is None
