"""Segmentors of mmseg with RepL backbones on folders in Cityscapes layout: training, both evaluations, weights.

What IoUMetric and the official evaluation (cityscapesscripts, which CityscapesMetric calls) have in common: the IoU of
a class counts the same pixels. IoUMetric leaves out label 255 of the train ids, the official one all ids with
``ignoreInEval``, and the train ids are made from these ids. Both give 0 to a class that is only predicted, none to a
class that is neither there nor predicted, and average over the others. What differs: CityscapesMetric returns the
averages over the *categories*, within which confusions count as right, and only prints the average over the classes.
"""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import mini_dataset
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import PixelData
from PIL import Image

import repl_mm

pytest.importorskip('mmseg')
official = pytest.importorskip('cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling')

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / 'configs'
needs_in1d = pytest.mark.skipif(
    not hasattr(np, 'in1d'), reason='cityscapesscripts 2.3.0 calls numpy.in1d, which numpy 2.4 does not have'
)
# ids by category, as published with the dataset: the train ids 0 to 18 in their order
CATEGORIES = dict(
    flat=[7, 8],
    construction=[11, 12, 13],
    object=[17, 19, 20],
    nature=[21, 22],
    sky=[23],
    human=[24, 25],
    vehicle=[26, 27, 28, 31, 32, 33],
)
IDS = sum(CATEGORIES.values(), [])


@pytest.fixture(scope='module')
def mini_cityscapes(tmp_path_factory):
    """Path: Folder of 6 training and 4 validation images of 64x64 pixels; read only."""
    folder = tmp_path_factory.mktemp('data') / 'mini'
    mini_dataset.write_cityscapes(folder, num_train=6, num_val=4, size=(64, 64))
    return folder


def segmentor_config(data_root, work_dir, **backbone) -> Config:
    """The shipped mini config as DeepLabV3+-R18-d8-RepL of an eighth of its width: 2 steps of 2 pictures."""
    cfg = Config.fromfile(CONFIGS / 'deeplabv3plus_r34-d8_repl_mini.py')
    cfg.model.backbone.update(dict(depth=18, base_channels=8, stem_channels=8) | backbone)
    cfg.model.decode_head.update(in_channels=64, channels=8, c1_in_channels=8, c1_channels=4)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.dataset.data_root = f'{data_root}/'
    cfg.test_evaluator[1].output_dir = str(work_dir / 'results')
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=2)
    cfg.default_hooks.logger.interval = 1
    cfg.custom_hooks = [dict(type='RepLHook', shape=None)]
    cfg.work_dir = str(work_dir)
    cfg.visualizer.name = str(work_dir)  # visualizers of one name are one object, with one folder
    cfg.randomness = dict(seed=0)
    return cfg


# ---- training ----


def test_a_segmentor_trains_and_evaluates_in_one_process(mini_cityscapes, tmp_path):
    """mmseg's configs ask for SyncBN. In one process it becomes BN: new modules, which the computing layers must see,
    and the same training as with BN in the config."""
    losses = {}
    for norm in ('BN', 'SyncBN'):
        cfg = segmentor_config(mini_cityscapes, tmp_path / norm)
        assert cfg.model.backbone.norm_cfg.type == 'SyncBN'
        for part in (cfg.model.backbone, cfg.model.decode_head):
            part.norm_cfg.type = norm
        runner = Runner.from_cfg(cfg)
        before = {name: p.clone() for name, p in runner.model.named_parameters()}
        runner.train()
        assert runner.iter == 2
        losses[norm] = [value for value, _ in _scalars(tmp_path / norm, 'loss')]
        assert len(losses[norm]) == 2
        ((miou, step),) = _scalars(tmp_path / norm, 'mIoU')
        assert 0 <= miou <= 100 and step == 2
    assert losses['SyncBN'] == pytest.approx(losses['BN'])

    modules = list(runner.model.modules())
    assert not any(isinstance(module, torch.nn.SyncBatchNorm) for module in modules)
    layers = list(repl_mm.computing_layers(runner.model))
    assert len(layers) == 4
    for name, layer in layers:
        for key, parameter in layer.named_parameters():
            assert not torch.equal(parameter, before[f'{name}.{key}']), f'{name}.{key}'
        assert all(neighbour.block in modules for neighbour in layer.neighbours)


@pytest.mark.slow
def test_two_processes_train_on_the_cpu_although_the_config_asks_for_syncbn(mini_cityscapes, tmp_path):
    cfg = segmentor_config(mini_cityscapes, tmp_path / 'work')
    cfg.dump(tmp_path / 'config.py')
    command = ['bash', ROOT / 'tools' / 'dist_train.sh', tmp_path / 'config.py', '2']
    env = {**os.environ, 'PYTHON': sys.executable}
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert done.stdout.count('SyncBN needs an accelerator') == 1
    assert len(_scalars(tmp_path / 'work', 'loss')) == 2 and _scalars(tmp_path / 'work', 'mIoU')


def _scalars(work_dir, key):
    """Logged values of a run with their steps."""
    (file,) = work_dir.glob('*/vis_data/scalars.json')
    records = [json.loads(line) for line in file.read_text().splitlines()]
    return [(record[key], record['step']) for record in records if key in record]


# ---- both evaluations ----


def brute_force(pairs):
    """Mean IoU of classes and of categories, class by class from the pixels.

    Args:
        pairs (list[tuple]): Predicted and true ids of every image.

    Returns:
        tuple: IoU by id, NaN where there is none; mean over classes; mean over categories.
    """
    predicted, truth = (np.concatenate([part.ravel() for part in parts]) for parts in zip(*pairs, strict=True))
    counts = np.isin(truth, IDS)

    def iou(ids):
        both = np.isin(predicted, ids) & np.isin(truth, ids) & counts
        either = (np.isin(predicted, ids) | np.isin(truth, ids)) & counts
        return both.sum() / either.sum() if either.any() else np.nan

    classes = {i: iou([i]) for i in IDS}
    return classes, np.nanmean(list(classes.values())), np.nanmean([iou(ids) for ids in CATEGORIES.values()])


def official_scores(results, folder):
    """What the official script says, called as by its ``main()``: it looks for the result of each truth itself."""
    args = copy.copy(official.args)
    args.predictionPath, args.predictionWalk = str(results), None
    args.evalInstLevelScore, args.JSONOutput, args.quiet = False, False, True
    truths = sorted(map(str, Path(folder).glob('gtFine/val/*/*_gtFine_labelIds.png')))
    return official.evaluateImgLists([official.getPrediction(args, truth) for truth in truths], truths, args)


def read_pairs(results, folder):
    """Predicted and true ids of every image; one result per image, named after it, and no other file."""
    truths = sorted(Path(folder).glob('gtFine/val/*/*_gtFine_labelIds.png'))
    files = [Path(results) / truth.name.replace('gtFine_labelIds', 'leftImg8bit') for truth in truths]
    assert sorted(Path(results).iterdir()) == files
    return [tuple(np.array(Image.open(path)) for path in pair) for pair in zip(files, truths, strict=True)]


def check_results(results, folder, miou=None, category_miou=None):
    """Compares the result pictures of a folder, the official scores and the metrics with a count of the pixels.

    Args:
        results (Path): Folder of result pictures.
        folder (Path): Dataset.
        miou (float, optional): What IoUMetric returned.
        category_miou (float, optional): What CityscapesMetric returned.
    """
    pairs = read_pairs(results, folder)
    for predicted, truth in pairs:
        assert predicted.shape == truth.shape and predicted.dtype == np.uint8
        assert set(np.unique(predicted)) <= set(IDS)
    classes, mean, category_mean = brute_force(pairs)
    scores = official_scores(results, folder)
    official_classes = {i: scores['classScores'][official.id2label[i].name] for i in IDS}
    assert official_classes == pytest.approx(classes, nan_ok=True)
    assert scores['averageScoreClasses'] == pytest.approx(mean)
    assert scores['averageScoreCategories'] == pytest.approx(category_mean)
    if miou is not None:
        assert miou == pytest.approx(100 * mean, abs=0.006)  # percent, rounded to two digits
    if category_miou is not None:
        assert category_miou == pytest.approx(category_mean)


@needs_in1d
def test_mmseg_and_the_official_evaluation_agree(mini_cityscapes, tmp_path):
    runner = Runner.from_cfg(segmentor_config(mini_cityscapes, tmp_path))
    # an untrained head says one class everywhere: let it say several, from features that differ as trained ones do
    for module in runner.model.decode_head.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean = module.running_var = None
    with torch.no_grad():
        runner.model.decode_head.conv_seg.weight.mul_(100)
    metrics = runner.test()
    pairs = read_pairs(tmp_path / 'results', mini_cityscapes)
    predicted = set(np.unique([prediction for prediction, _ in pairs]))
    assert len(predicted) > 3 and predicted - {7, 20, 21, 24, 26}  # also classes that no picture shows
    check_results(tmp_path / 'results', mini_cityscapes, metrics['mIoU'], metrics['averageScoreCategories'])


@needs_in1d
def test_perfect_results_score_one_in_all_of_the_official_averages(mini_cityscapes, tmp_path):
    from mmseg.evaluation import CityscapesMetric, IoUMetric

    metrics = [CityscapesMetric(output_dir=str(tmp_path / 'results'), keep_results=True), IoUMetric()]
    for truth in sorted(mini_cityscapes.glob('gtFine/val/*/*_gtFine_labelTrainIds.png')):
        labels = torch.from_numpy(np.array(Image.open(truth)))[None].long()
        best = labels.where(labels != 255, 5)  # whatever stands on void pixels
        sample = dict(
            pred_sem_seg=dict(data=best),
            gt_sem_seg=dict(data=labels),
            img_path=str(truth).replace('gtFine_labelTrainIds', 'leftImg8bit').replace('gtFine', 'leftImg8bit'),
            seg_map_path=str(truth),
        )
        for metric in metrics:
            metric.dataset_meta = dict(classes=range(19))
            metric.process({}, [sample])
    scores, miou = (metric.evaluate(4) for metric in metrics)
    assert scores['averageScoreCategories'] == scores['averageScoreInstCategories'] == 1
    check_results(tmp_path / 'results', mini_cityscapes, miou['mIoU'], 1)


# ---- weights ----


def test_pretrained_at_the_segmentor_reaches_the_builder(mini_cityscapes, tmp_path):
    """A file laid out as open-mmlab://resnet50_v1c: ``state_dict`` of the stock backbone, and a classifier."""
    cfg = segmentor_config(mini_cityscapes, tmp_path, depth=50)
    cfg.model.decode_head.update(in_channels=256, c1_in_channels=32)
    torch.manual_seed(1)
    stock = {key: value for key, value in cfg.model.backbone.items() if key != 'replace'}
    with DefaultScope.overwrite_default_scope('mmseg'):
        weights = MODELS.build(dict(stock, type='ResNetV1c')).state_dict()
        weights = {key: torch.randn_like(v) if v.is_floating_point() else v for key, v in weights.items()}
        classifier = {'fc.weight': torch.zeros(1000, 256), 'fc.bias': torch.zeros(1000)}
        torch.save(dict(meta={}, state_dict=weights | classifier), tmp_path / 'resnet50_v1c.pth')
        model = MODELS.build(dict(cfg.model, pretrained=str(tmp_path / 'resnet50_v1c.pth')))
    model.init_weights()
    replaced = tuple(f'layer{s.stage + 1}.{s.index}.' for s in repl_mm.plan_of(model.backbone).slots)
    assert len(replaced) == 5
    kept = {key: value for key, value in weights.items() if not key.startswith(replaced)}
    state = model.backbone.state_dict()
    assert all(torch.equal(state[key], value) for key, value in kept.items())
    assert len(kept) < len(weights)


# ---- the shipped configs ----

# What makes a network small; the number of its blocks stays.
RESNET = {
    'backbone.base_channels': 8,
    'backbone.stem_channels': 8,
    'decode_head.in_channels': 256,
    'decode_head.channels': 16,
    'auxiliary_head.in_channels': 128,
    'auxiliary_head.channels': 16,
}
VIT = {
    'backbone.embed_dims': 32,
    'backbone.num_heads': 2,
    'backbone.drop_path_rate': 0.0,
    'decode_head.in_channels': 32,
    'decode_head.channels': 32,
}
LEVELS = [32] * 4
SMALLER = {
    'fcn_hr18s': {
        'backbone.extra.stage2.num_channels': (4, 8),
        'backbone.extra.stage3.num_channels': (4, 8, 16),
        'backbone.extra.stage4.num_channels': (4, 8, 16, 32),
        'decode_head.in_channels': [4, 8, 16, 32],
        'decode_head.channels': 16,
    },
    'deeplabv3plus': {**RESNET, 'decode_head.c1_in_channels': 32, 'decode_head.c1_channels': 8},
    'deeplabv3': RESNET,
    'fcn': RESNET,
    'pspnet': RESNET,
    'segformer': {
        'backbone.embed_dims': 8,
        'backbone.drop_path_rate': 0.0,
        'decode_head.in_channels': [8, 16, 40, 64],
        'decode_head.channels': 16,
    },
    'segmenter': {**VIT, 'decode_head.embed_dims': 32, 'decode_head.num_heads': 2},
    'setr': {**VIT, **{f'auxiliary_head.{i}.{key}channels': 32 for i in range(3) for key in ('in_', '')}},
    'upernet_vit': {
        **VIT,
        'neck.in_channels': LEVELS,
        'neck.out_channels': 32,
        'decode_head.in_channels': LEVELS,
        'decode_head.channels': 16,
        'auxiliary_head.in_channels': 32,
        'auxiliary_head.channels': 16,
    },
    'upernet_swin': {
        'backbone.embed_dims': 24,
        'backbone.drop_path_rate': 0.0,
        'decode_head.in_channels': [24, 48, 96, 192],
        'decode_head.channels': 16,
        'auxiliary_head.in_channels': 96,
        'auxiliary_head.channels': 16,
    },
}
SHIPPED = sorted(path.stem for path in CONFIGS.glob('*_cityscapes.py'))


@pytest.mark.parametrize('name', SHIPPED)
def test_shipped_config(name):
    """Builds, and the loss of one small input reaches every computing layer."""
    from mmseg.structures import SegDataSample

    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    assert cfg.default_scope == 'mmseg' and cfg.data_root == 'data/cityscapes/'
    (hook,) = cfg.custom_hooks
    crop = next(step for step in cfg.train_dataloader.dataset.pipeline if step.type == 'RandomCrop').crop_size
    assert hook == dict(type='RepLHook', shape=crop) and cfg.model.data_preprocessor.size == crop
    smaller = next(value for key, value in SMALLER.items() if name.startswith(key))
    smaller = {'pretrained': None, 'backbone.init_cfg': None, 'data_preprocessor.size': (64, 64), **smaller}
    cfg.merge_from_dict({f'model.{key}': value for key, value in smaller.items()})
    with DefaultScope.overwrite_default_scope('mmseg'):
        segmentor = revert_sync_batchnorm(MODELS.build(cfg.model))
    assert sum(p.numel() for p in segmentor.parameters()) < 2e6
    assert segmentor.num_classes == 19
    segmentor.train()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2, 3, 64, 64), generator=generator, dtype=torch.uint8)
    labels = torch.randint(19, (2, 1, 64, 64), generator=generator)
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]
    data = segmentor.data_preprocessor(dict(inputs=list(images), data_samples=samples), True)
    loss, _ = segmentor.parse_losses(segmentor(**data, mode='loss'))
    loss.backward()

    assert loss.isfinite()
    plan = repl_mm.plan_of(segmentor.backbone)
    layers = list(repl_mm.computing_layers(segmentor))
    assert len(layers) == len(plan.slots) > 0
    for layer_name, layer in layers:
        parameters = dict(layer.named_parameters())
        assert parameters and all(p.grad is not None and p.grad.isfinite().all() for p in parameters.values())
        assert any(p.grad.any() for p in parameters.values()), layer_name
    if 'd8' in name:
        with torch.no_grad():
            sizes = [tuple(out.shape[2:]) for out in segmentor.backbone(data['inputs'])]
        assert sizes == [(16, 16), (8, 8), (8, 8), (8, 8)]


# ---- real street photographs ----


def run(tool, *args, cwd):
    command = [sys.executable, ROOT / 'tools' / tool, *args]
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, env={**os.environ, 'CI': '1'}
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.real_data
@needs_in1d
def test_the_shipped_cityscapes_config_trains_and_evaluates_on_real_photographs(shared_data, tmp_path):
    """Only the folder differs from the shipped config; few steps, small images and no download keep it short."""
    folder = shared_data / 'cityscapes_mini'
    config = CONFIGS / 'fcn_r50-d8_repl_cityscapes.py'
    options = ['model.pretrained=None', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'randomness.seed=0']
    options += ['custom_hooks.0.shape=None', 'model.data_preprocessor.size=(128,256)']
    options += ['train_dataloader.dataset.pipeline.3.crop_size=(128,256)', 'default_hooks.logger.interval=1']
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        options += [f'{loader}.num_workers=0', f'{loader}.persistent_workers=False']
        if loader != 'train_dataloader':
            options += [f'{loader}.dataset.pipeline.1.scale=(512,256)']
    common = ['--data-root', folder, '--work-dir', tmp_path / 'work', '--cfg-options', *options]
    log = run('train.py', config, *common, cwd=tmp_path)
    assert '5 of 16 blocks replaced' in log
    miou = _scalars(tmp_path / 'work', 'mIoU')[0][0]

    checkpoint = tmp_path / 'work' / 'iter_2.pth'
    common.append('test_evaluator.type=CityscapesMetric')
    for name in ('cityscapes_mini', 'mmseg_pseudo_cityscapes/pseudo_cityscapes_dataset'):
        folder, common[1] = shared_data / name, shared_data / name
        out = tmp_path / Path(name).name
        args = ['--out', out / 'results', '--show-dir', out / 'pictures']
        log = run('test.py', config, checkpoint, *args, *common, cwd=tmp_path)
        assert 'averageScoreCategories' in log and 'Score Average' in log
        # the two label maps of mmseg's sample were shrunk apart from each other and differ in 77 pixels
        check_results(out / 'results', folder, miou if name == 'cityscapes_mini' else None)
        (picture,) = (out / 'pictures').rglob('*.png')  # truth and prediction side by side
        height, width = cv2.imread(str(next((out / 'results').iterdir()))).shape[:2]
        assert cv2.imread(str(picture)).shape == (height, 2 * width, 3)
