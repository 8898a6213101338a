"""Fixtures that several test files share."""

import inspect
import os
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # before torch is loaded: the tests' networks are too small for threads

import mini_dataset
import pytest

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def reading_as_before(monkeypatch):
    """Undo what our tools do to a process, to read nothing but weights."""
    from mmengine.runner import CheckpointLoader

    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')
    monkeypatch.delenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD')


@pytest.fixture(autouse=True)
def dropout_as_before():
    """Undo what a head with ``dropout=0.1`` (DETR's) does in mmcv: it becomes the default of every later attention."""
    from mmcv.cnn.bricks.transformer import MultiheadAttention

    default = inspect.signature(MultiheadAttention).parameters['dropout_layer'].default
    before = dict(default)
    yield
    default.clear()
    default.update(before)


@pytest.fixture(scope='session')
def shared_data():
    """Path: Folder of real images and weights, ``$REPL_MM_DATA`` or ``../shared/data`` beside the repository."""
    folder = Path(os.environ.get('REPL_MM_DATA') or REPO.parent / 'shared' / 'data')
    if not folder.is_dir():
        pytest.skip(f'no real data in {folder} (REPL_MM_DATA names another folder)')
    return folder


@pytest.fixture(scope='session')
def mini_coco(tmp_path_factory):
    """Path: COCO folder of 6 training and 4 validation images of 64x64 pixels; read only."""
    folder = tmp_path_factory.mktemp('data') / 'mini'
    mini_dataset.write_coco(folder, num_train=6, num_val=4, size=(64, 64), seed=0)
    return folder


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A folder with a tiny classifier's config and weights, and CIFAR-10 of noise."""
    import torch
    from small import write_cifar
    from test_conversion import build_model, write_config

    monkeypatch.chdir(tmp_path)
    file = write_config(tmp_path, 'resnet')
    torch.save(build_model(file, stock=True).state_dict(), 'stock.pth')
    write_cifar(tmp_path / 'data' / 'cifar-10-batches-py')
    return file
