"""Real photographs through the shipped configs, where the folder of test data is there."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / 'tools'


def run(*command, cwd, code=0):
    path = os.pathsep.join([str(ROOT / 'tests'), *filter(None, [os.environ.get('PYTHONPATH')])])  # of KillHook
    env = {**os.environ, 'CI': '1', 'PYTHONPATH': path}
    done = subprocess.run([sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True, env=env)
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def on_photographs(data, config, work_dir, *options):
    """Train one epoch of four photographs and test its checkpoint: both logs, and the plan.

    Only ``data_root`` differs from the shipped config, and what keeps it short: ``options``, and no download.
    """
    root = f'{data / "coco_mini"}/'
    options = ['train_cfg.max_epochs=1', 'default_hooks.logger.interval=1', 'custom_hooks.0.shape=None', *options]
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        options += [f'{loader}.dataset.data_root={root}', f'{loader}.dataset.indices=4', f'{loader}.num_workers=0']
        options += [f'{loader}.persistent_workers=False']
    for evaluator in ('val_evaluator', 'test_evaluator'):
        options += [f'{evaluator}.ann_file={root}annotations/instances_val2017.json']
    command = [ROOT / 'configs' / config, '--work-dir', work_dir, '--cfg-options', *options]
    train = run(TOOLS / 'train.py', *command, cwd=work_dir)
    test = run(TOOLS / 'test.py', command[0], work_dir / 'epoch_1.pth', *command[1:], cwd=work_dir)
    plan = json.loads((work_dir / 'repl_plan.json').read_text())['backbone']
    return train, test, [(slot['stage'], slot['index']) for slot in plan['slots']]


@pytest.mark.slow
@pytest.mark.real_data
def test_the_shipped_coco_config_trains_and_evaluates_on_real_photographs(shared_data, tmp_path):
    options = ['model.backbone.init_cfg=None']
    options += ['model.test_cfg.score_thr=0.0']  # two steps from scratch give no score that the config would keep
    train, test, slots = on_photographs(shared_data, 'retinanet_r50_repl_coco.py', tmp_path, *options)
    assert '4 of 16 blocks replaced' in train  # layer1 is frozen in this config
    assert 'coco/bbox_mAP' in train and 'coco/bbox_mAP' in test
    assert slots == [(1, 1), (2, 1), (2, 3), (3, 1)]


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize(
    ('config', 'options'),
    [
        ('retinanet_vit-b_repl_coco.py', ['model.test_cfg.score_thr=0.0']),
        ('mask-rcnn_vit-b_repl_coco.py', ['model.test_cfg.rcnn.score_thr=0.0']),
    ],
)
def test_a_shipped_vit_config_trains_from_real_weights_on_real_photographs(config, options, shared_data, tmp_path):
    """With the weights of DeiT-tiny, converted by mmseg's own tool, at a smaller scale."""
    mmseg = pytest.importorskip('mmseg')
    converter = Path(mmseg.__file__).parent / '.mim' / 'tools' / 'model_converters' / 'vit2mmseg.py'
    weights = tmp_path / 'deit_tiny.pth'
    run(converter, shared_data / 'weights' / 'deit_tiny_patch16_224_from_mat.pth', weights, cwd=tmp_path)
    options = [f'model.backbone.init_cfg.checkpoint={weights}', 'model.backbone.init_cfg.type=Pretrained', *options]
    options += ['model.backbone.embed_dims=192', 'model.backbone.num_heads=3', 'model.neck.0.embed_dim=192']
    options += ['model.neck.1.in_channels=[192,192,192,192]']
    for loader, place in (('train', 2), ('val', 1), ('test', 1)):
        options += [f'{loader}_dataloader.dataset.pipeline.{place}.scale=(256,256)']
    train, test, slots = on_photographs(shared_data, config, tmp_path, *options)
    assert '4 of 12 blocks replaced' in train
    # 12 tensors of each layer, the embedding's 4, the last norm's 2
    assert 'stock weights for VisionTransformer: 102 tensors loaded, 48 dropped (4 replaced blocks)' in train
    assert slots == [(0, 1), (0, 4), (0, 7), (0, 10)]
    for metric in ('bbox', 'segm') if 'mask' in config else ('bbox',):
        assert f'coco/{metric}_mAP' in train and f'coco/{metric}_mAP' in test


KILLED = """
_base_ = {base!r}
custom_imports = dict(imports=['repl_mm', 'kill_hook'])
custom_hooks = [*_base_.custom_hooks, dict(type='KillHook', step=3)]
"""


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize(
    ('config', 'data', 'metric', 'options'),
    [
        ('rtmdet_tiny_repl_coco.py', 'coco_mini', 'coco/bbox_mAP', ['custom_hooks.1.switch_epoch=1']),
        ('yolox_tiny_repl_coco.py', 'coco_mini', 'coco/bbox_mAP', ['custom_hooks.0.num_last_epochs=1']),
        ('fcn_hr18s_repl_camvid.py', 'camvid', 'mIoU', ['model.pretrained=None']),
        ('segnext_mscan-t_repl_camvid.py', 'camvid', 'mIoU', []),
    ],
)
def test_a_shipped_config_is_killed_resumed_and_tested_on_photographs(
    config, data, metric, options, shared_data, tmp_path
):
    """``--data-root`` alone says where they are; the options make it two epochs of four photographs, from scratch."""
    options = ['train_cfg.max_epochs=2', 'train_cfg.val_interval=2', 'model.backbone.init_cfg=None', *options]
    options += ['default_hooks.checkpoint.interval=1', 'default_hooks.logger.interval=1']
    options += ['randomness.seed=0']  # of four photographs and no weights, not every seed leaves a box to evaluate
    if data == 'coco_mini':
        options += ['model.test_cfg.score_thr=0.0']
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        dataset = f'{loader}.dataset.dataset' if 'yolox' in config and loader[:5] == 'train' else f'{loader}.dataset'
        options += [f'{loader}.num_workers=0', f'{loader}.persistent_workers=False', f'{dataset}.indices=4']
        options += [f'{loader}.batch_size={2 if loader[:5] == "train" else 1}']
    options = ['--data-root', shared_data / data, '--work-dir', tmp_path / 'work', '--cfg-options', *options]
    shipped = ROOT / 'configs' / config
    (tmp_path / config).write_text(KILLED.format(base=str(shipped)))
    run(TOOLS / 'train.py', tmp_path / config, *options, cwd=tmp_path, code=-signal.SIGKILL)
    assert (tmp_path / 'work' / 'last_checkpoint').read_text().endswith('epoch_1.pth')
    log = ' '.join(run(TOOLS / 'train.py', shipped, '--resume', *options, cwd=tmp_path).split())
    assert 'Epoch(train) [2][2/2]' in log and 'Epoch(train) [1]' not in log
    assert metric in log, log[-3000:]
    assert metric in run(TOOLS / 'test.py', shipped, tmp_path / 'work' / 'epoch_2.pth', *options, cwd=tmp_path)
