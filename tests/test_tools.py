"""tools/train.py, tools/test.py and the scripts around them, run as a user runs them."""

import importlib.util
import os
import pickle
import subprocess
import sys
from pathlib import Path

import _common
import cv2
import numpy as np
import pytest
import torch
import train
from mmengine.config import Config
from mmengine.registry import DATASETS
from torch import nn

from repl_mm import data_checks
from repl_mm.data_checks import DataError
from repl_mm.optim import CPUAmpOptimWrapper, enable_amp

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / 'tools'
COCO_CONFIG = str(ROOT / 'configs' / 'retinanet_r50_repl_coco.py')


def load_test_py():
    """Imports tools/test.py; Python has a package of this name."""
    spec = importlib.util.spec_from_file_location('tools_test', TOOLS / 'test.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL_MODULES = {'train.py': train, 'test.py': load_test_py()}

DETECTION = """
_base_ = '{root}/configs/retinanet_r50_repl_mini.py'
model = dict(
    backbone=dict(depth=18, base_channels=8, replace=dict({replace})),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=8),
    bbox_head=dict(in_channels=8, feat_channels=8),
    test_cfg=dict(score_thr=0.0, max_per_img=5),
)
loader = dict(batch_size=2, num_workers=0, persistent_workers=False)
train_dataloader = dict(**loader)
val_dataloader = dict(**loader)
test_dataloader = dict(**loader)
train_cfg = dict(max_epochs=1, val_interval=1)
param_scheduler = []
custom_hooks = [dict(type='RepLHook', shape=None)]
randomness = dict(seed=0)
"""

SEGMENTATION = """
_base_ = 'mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py'
custom_imports = dict(imports=['repl_mm'])
custom_hooks = [dict(type='RepLHook', shape=None)]
model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(type='RepLResNetV1c', replace=dict(), base_channels=8, stem_channels=8, norm_cfg=dict(type='BN')),
    decode_head=dict(in_channels=64, channels=8, norm_cfg=dict(type='BN')),
    auxiliary_head=dict(in_channels=32, channels=8, norm_cfg=dict(type='BN')),
)
pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
dataset = dict(
    data_root='data/', data_prefix=dict(img_path='img', seg_map_path='ann'), pipeline=pipeline, seg_map_suffix='.png'
)
loader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(img_suffix='.jpg', **dataset))
train_dataloader = dict(**loader)
val_dataloader = dict(**loader)
test_dataloader = dict(**loader)
data_root = 'data/'
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=2))
"""

# A module and a config that know nothing of mmdet or mmseg
TOY = """
import sys
import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS

@DATASETS.register_module()
class Numbers(BaseDataset):
    def load_data_list(self):
        return [dict(x=torch.tensor([float(i)]), y=torch.tensor([2.0 * i])) for i in range(4)]

@MODELS.register_module()
class Line(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)

    def forward(self, x, y, mode, **kwargs):
        error = (self.linear(x) - y).square()
        return dict(loss=error.mean()) if mode == 'loss' else [dict(error=float(e)) for e in error]

@METRICS.register_module()
class MeanError(BaseMetric):
    def process(self, batch, samples):
        self.results += [sample['error'] for sample in samples]

    def compute_metrics(self, results):
        assert not {'mmdet', 'mmseg'} & set(sys.modules)
        return dict(error=sum(results) / len(results))
"""
TOY_CONFIG = """
custom_imports = dict(imports=['repl_mm', 'toy'])
model = dict(type='Line')
train_dataloader = dict(
    batch_size=2,
    dataset=dict(type='Numbers'),
    sampler=dict(type='DefaultSampler'),
    collate_fn=dict(type='default_collate'),
)
val_dataloader = test_dataloader = train_dataloader
train_cfg = dict(by_epoch=True, max_epochs=1)
val_cfg = test_cfg = dict()
val_evaluator = test_evaluator = dict(type='MeanError')
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01))
"""

# A RepL backbone whose loss is a mean over images, of which each process has its share
SQUARES = """
import torch
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS

@DATASETS.register_module()
class Noise(BaseDataset):
    def load_data_list(self):
        return [dict(x=torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(i))) for i in range(8)]

@MODELS.register_module()
class Squares(BaseModel):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = MODELS.build(backbone)

    def forward(self, x, mode, **kwargs):
        return dict(loss=self.backbone(x)[-1].square().mean())
"""
SQUARES_CONFIG = """
default_scope = 'mmdet'
custom_imports = dict(imports=['squares'])
backbone = dict(type='repl_mm.RepLResNet', depth=18, base_channels=8, frozen_stages=-1, replace=dict(), {backbone})
model = dict(type='Squares', backbone=backbone)
train_dataloader = dict(
    batch_size={batch_size},
    dataset=dict(type='Noise'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
)
train_cfg = dict(by_epoch=True, max_epochs=2)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
randomness = dict(seed=0)
"""


def run(tool, *args, cwd, **env):
    """Run a tool in the folder ``cwd`` and return what came of it."""
    launcher = ['bash'] if tool.endswith('.sh') else [sys.executable]
    env = {**os.environ, 'PYTHON': sys.executable, **env}
    command = [*launcher, TOOLS / tool, *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


def run_well(tool, *args, cwd, **env):
    """Run a tool that has to succeed and return its log."""
    done = run(tool, *args, cwd=cwd, **env)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout + done.stderr


def detector(folder, replace=''):
    """Write the config of a tiny RetinaNet-RepL."""
    config = folder / 'tiny.py'
    config.write_text(DETECTION.format(root=ROOT, replace=replace))
    return config


@pytest.mark.parametrize(
    'words, name, value',
    [
        ([], 'resume', None),
        (['--resume'], 'resume', 'auto'),
        (['--resume', 'epoch_3.pth'], 'resume', 'epoch_3.pth'),
        (['--local_rank', '3'], 'local_rank', 3),
        (['--local-rank=3'], 'local_rank', 3),
        (['--launcher', 'slurm'], 'launcher', 'slurm'),
        (['--work-dir', 'w'], 'work_dir', 'w'),
        (['--amp'], 'amp', True),
        (['--auto-scale-lr'], 'auto_scale_lr', True),
        (['--cfg-options', 'a.b=1', 'c=[1,2]', 'd=(0,1)'], 'cfg_options', {'a.b': 1, 'c': [1, 2], 'd': (0, 1)}),
    ],
)
def test_arguments_of_train(words, name, value, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['train.py', 'config.py', *words])
    assert getattr(train.parse_args(), name) == value


def test_work_dir_comes_from_the_command_line_then_the_config_then_its_name(tmp_path, monkeypatch):
    def work_dir(*words):
        monkeypatch.setattr(sys, 'argv', ['train.py', str(config), *words])
        return _common.load_config(train.parse_args()).work_dir

    config = tmp_path / 'name.py'
    config.write_text('')
    assert work_dir() == './work_dirs/name'
    monkeypatch.setattr(sys, 'argv', ['train.py', 'repl_mm::retinanet_r50_repl_coco.py'])
    assert _common.load_config(train.parse_args()).work_dir == './work_dirs/retinanet_r50_repl_coco'
    config.write_text("work_dir = 'mine'")
    assert work_dir() == 'mine'
    assert work_dir('--cfg-options', 'work_dir=option') == 'option'
    assert work_dir('--work-dir', 'given') == 'given'


@pytest.mark.parametrize(
    'words, expected',
    [
        (['train.py', 'nowhere.py'], ['nowhere.py']),
        (['train.py', 'mmdet::retinanet/nowhere.py'], ['retinanet/nowhere.py']),
        (['train.py', 'nowhere::resnet.py'], ['nowhere is not installed']),
        (['train.py', 'mmdet::nowhere.py'], ["'mmdet::nowhere.py': mmdet has no such config", 'mmdet::']),
        (['train.py', 'mmdet::retinanet_r50_fpn_1x_coco.py'], ['as mmdet::retinanet/retinanet_r50_fpn_1x_coco.py']),
        (['train.py', 'repl_mm::retinanet_r50_coco.py'], ['expected one as repl_mm::retinanet_r50_repl_coco.py']),
        # what is wrong in the config comes before the data that is missing too
        (
            ['train.py', COCO_CONFIG, '--cfg-options', 'model.backbone.type=RepLResNett'],
            ["type='RepLResNett' is not known", 'expected one of RepLResNet, '],
        ),
        (['train.py', COCO_CONFIG, '--cfg-options', 'model.neck.type=FPNN'], ["type='FPNN'", 'expected one of FPN, ']),
        (['train.py', COCO_CONFIG, '--cfg-options', 'model.backbone.depht=50'], ["keyword argument 'depht'"]),
        (['train.py', COCO_CONFIG, '--cfg-options', 'model.backbone.replace.evry=2'], ['replace.evry=2: unknown key']),
        (['train.py', COCO_CONFIG, '--cfg-options', 'optim_wrapper.optimizer.type=SDG'], ["type='SDG'", 'SGD']),
        (
            ['train.py', COCO_CONFIG, '--cfg-options', 'optim_wrapper.optimizer.lrr=1', 'load_from=nowhere.pth'],
            ["keyword argument 'lrr'"],
        ),
        (['test.py', COCO_CONFIG, 'bad_base.py', '--cfg-options', 'model.type=RetinaNett'], ["type='RetinaNett'"]),
        (['train.py', COCO_CONFIG, '--cfg-options', 'model.backbone.depth=51'], ['invalid depth 51']),
        (['train.py', COCO_CONFIG, '--cfg-options', 'default_scope=mmdte'], ["default_scope='mmdte'"]),
        (['train.py', 'bad_hook.py'], ["custom_hooks: type='RepLHok' is not known: expected one as RepLHook"]),
        (
            ['train.py', COCO_CONFIG, '--cfg-options', 'train_dataloader.dataset.type=CocoDatset'],
            ["train_dataloader.dataset: type='CocoDatset' is not known: expected one as CocoDataset"],
        ),
        (['train.py', 'bad_name.py'], ["config 'bad_name.py': NameError: name 'nothing' is not defined"]),
        (['train.py', 'bad_ours.py'], ["'bad_ours.py': in _base_ mmengine wants PACKAGE::FOLDER/NAME.py"]),
        (['train.py', '.'], ["config '.' is a folder"]),
        (['train.py', 'empty.py'], ['the config has no model']),
        (['test.py', COCO_CONFIG, '.'], ["checkpoint '.' not found"]),
        (['train.py', 'bad_base.py'], ['bad_base.py', 'nowhere_either.py']),
        (['train.py', COCO_CONFIG, '--resume', 'nowhere.pth'], ["checkpoint 'nowhere.pth'"]),
        (['test.py', COCO_CONFIG, 'nowhere.pth'], ["checkpoint 'nowhere.pth'"]),
        (['test.py', COCO_CONFIG, 'bad_base.py', '--out', 'x.txt'], ["--out 'x.txt'", '.pkl']),
        (
            ['test.py', COCO_CONFIG, 'bad_base.py'],
            ['data/coco/annotations/instances_val2017.json', 'data/coco/val2017/'],
        ),
        (['train.py', 'empty.py', '--auto-scale-lr'], ['auto_scale_lr=dict(enable=..., base_batch_size=...)']),
        (['train.py', 'empty.py', '--data-root', 'x'], ['--data-root', 'no data_root']),
        (
            ['train.py', 'mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py', '--data-root', 'other'],
            ['other/leftImg8bit/train', 'other/gtFine/train', 'other/leftImg8bit/val', 'other/gtFine/val'],
        ),
    ],
)
def test_what_is_wrong_is_named_in_one_line(words, expected, tmp_path, monkeypatch):
    (tmp_path / 'empty.py').touch()
    (tmp_path / 'bad_base.py').write_text("_base_ = 'nowhere_either.py'")
    (tmp_path / 'bad_hook.py').write_text(f"_base_ = '{COCO_CONFIG}'\ncustom_hooks = [dict(type='RepLHok')]")
    (tmp_path / 'bad_name.py').write_text('model = nothing')
    (tmp_path / 'bad_ours.py').write_text("_base_ = 'repl_mm::retinanet_r50_repl_coco.py'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', words)
    with pytest.raises(SystemExit) as stopped:
        TOOL_MODULES[words[0]].main()
    message = stopped.value.code
    assert message.startswith(f'{words[0]}: ')
    assert '\n' not in message
    assert all(word in message for word in expected), message


def test_a_missing_dataset_ends_the_program_with_its_line_only(tmp_path):
    done = run('train.py', COCO_CONFIG, cwd=tmp_path)
    assert done.returncode == 1
    assert not [line for line in done.stdout.splitlines() if 'OneDL' not in line]  # which says at once what it lacks
    paths = ['annotations/instances_train2017.json', 'annotations/instances_val2017.json', 'train2017/', 'val2017/']
    expected = ', '.join(f'data/coco/{path}' for path in paths)
    assert done.stderr.splitlines() == [
        f'train.py: dataset not found, expected: {expected} (in {tmp_path}); --data-root FOLDER names another place'
    ]


def test_paths_of_nested_datasets_and_evaluators_are_expected():
    def data(name):
        return dict(type='D', data_root=f'{name}/', ann_file='a.json', data_prefix=dict(img='i/', seg=['s', 't']))

    cfg = Config(
        dict(
            train_dataloader=dict(
                dataset=dict(type='RepeatDataset', dataset=dict(type='ConcatDataset', datasets=[data('x'), data('y')]))
            ),
            val_dataloader=dict(dataset=dict(type='D', data_root='root', data_prefix='val', ann_file='')),
            val_evaluator=[dict(type='A', ann_file='z/a.json'), dict(type='B'), dict(type='C', ann_file=None)],
            test_dataloader=dict(dataset=dict(type='D', data_root='only_a_root')),
        )
    )
    expected = [f'{name}/{file}' for name in 'xy' for file in ('a.json', 'i/', 's', 't')]
    assert list(data_checks.expected_paths(cfg, 'train')) == expected
    assert list(data_checks.expected_paths(cfg, 'val')) == ['root/val', 'z/a.json']
    assert list(data_checks.expected_paths(cfg, 'test')) == ['only_a_root/']
    assert list(data_checks.expected_paths(Config(), 'train')) == []


def test_paths_that_need_not_exist_are_not_expected():
    class Downloads:
        def __init__(self, data_prefix, download=True):
            pass

    def paths(**dataset):
        return list(data_checks.expected_paths(Config(dict(test_dataloader=dict(dataset=dataset))), 'test'))

    DATASETS.register_module(name='Downloads', module=Downloads, force=True)
    assert paths(type='Downloads', data_prefix='data/cifar10') == []
    assert paths(type='Downloads', data_prefix='data/cifar10', download=False) == ['data/cifar10']
    assert paths(type='D', data_root='s3://bucket/', ann_file='a.json') == []
    assert paths(type='D', data_root='data', ann_file='a.json', backend_args=dict(backend='petrel')) == []
    assert paths(type='D', data_root='data', ann_file='a.json', backend_args=None) == ['data/a.json']


def test_data_root_moves_all_paths_and_nothing_else():
    cfg = Config(
        dict(
            data_root='data/coco/',
            train_dataloader=dict(
                dataset=dict(
                    datasets=[dict(data_root='data/coco/', ann_file='a.json'), dict(data_root='data/other/')],
                )
            ),
            test_dataloader=None,
            val_evaluator=[dict(ann_file='data/coco/annotations/v.json', metric='bbox')],
        )
    )
    _common.set_data_root(cfg, '/my')
    assert cfg.train_dataloader.dataset.datasets[0] == dict(data_root='/my/', ann_file='a.json')
    assert cfg.train_dataloader.dataset.datasets[1] == dict(data_root='data/other/')
    assert cfg.val_evaluator == [dict(ann_file='/my/annotations/v.json', metric='bbox')]
    assert cfg.data_root == '/my/'


@pytest.mark.parametrize('kind', ['CityscapesMetric', 'mmseg.CityscapesMetric', 'mmdet.CityScapesMetric'])
def test_the_official_cityscapes_evaluation_is_not_started_where_it_cannot_end(kind, monkeypatch):
    cfg = Config(dict(val_evaluator=[dict(type='IoUMetric'), dict(type=kind)], test_evaluator=dict(type='IoUMetric')))
    monkeypatch.delattr(np, 'in1d', raising=False)  # numpy 2.4
    data_checks.check_data(cfg, 'train', 'test')
    with pytest.raises(DataError, match=r"cityscapesscripts 2\.3\.0 calls numpy\.in1d.*: install 'numpy<2\.4'"):
        data_checks.check_data(cfg, 'train', 'val')


@pytest.mark.parametrize(
    'kinds, writer',
    [(['IoUMetric'], 0), (['CityscapesMetric'], 0), (['IoUMetric', 'mmseg.CityscapesMetric'], 1), (None, None)],
)
def test_one_metric_keeps_the_label_maps(kinds, writer):
    """Two would write files of the same names; Cityscapes' server wants label ids."""
    metrics = dict(type='IoUMetric') if kinds is None else [dict(type=kind) for kind in kinds]
    cfg = Config(dict(test_evaluator=metrics))
    TOOL_MODULES['test.py'].keep_label_maps(cfg, 'maps')
    if kinds is None:
        assert cfg.test_evaluator == dict(type='IoUMetric', output_dir='maps', keep_results=True)
    else:
        assert [metric.get('output_dir') for metric in cfg.test_evaluator] == [
            'maps' if i == writer else None for i in range(len(kinds))
        ]


def test_test_time_augmentation_wraps_the_model_and_exchanges_the_pipelines(capsys):
    inner = dict(type='Any', pipeline=[dict(type='Plain')])
    cfg = Config(
        dict(model=dict(type='Net'), test_dataloader=dict(dataset=dict(type='Wrapper', datasets=[inner, inner])))
    )
    with pytest.raises(SystemExit, match='--tta: the config has no tta_model with a tta_pipeline'):
        TOOL_MODULES['test.py'].enable_tta(cfg)
    cfg.tta_model, cfg.tta_pipeline = dict(type='TTA'), [dict(type='TestTimeAug')]
    TOOL_MODULES['test.py'].enable_tta(cfg)
    assert cfg.model == dict(type='TTA', module=dict(type='Net'))
    assert all(d.pipeline == [dict(type='TestTimeAug')] for d in cfg.test_dataloader.dataset.datasets)


def test_bfloat16_on_the_cpu_is_the_forward_pass_only():
    model = nn.Linear(4, 1)
    wrapper = CPUAmpOptimWrapper(optimizer=torch.optim.SGD(model.parameters(), lr=0.5))
    before = model.weight.detach().clone()
    with wrapper.optim_context(model):
        out = model(torch.ones(2, 4))
    assert out.dtype == torch.bfloat16
    wrapper.update_params(out.float().mean())
    assert model.weight.dtype == torch.float32
    # the gradient of the mean over two samples of ones is one
    torch.testing.assert_close(before - model.weight.detach(), torch.full((1, 4), 0.5))


def test_amp_refuses_wrappers_that_it_does_not_know():
    with pytest.raises(ValueError, match="not with 'ApexOptimWrapper'"):
        enable_amp(Config(dict(optim_wrapper=dict(type='ApexOptimWrapper'))))


@pytest.mark.skipif(torch.cuda.is_available(), reason='asks for what happens without CUDA')
def test_amp_without_cuda_drops_the_loss_scale():
    cfg = Config(
        dict(optim_wrapper=dict(type='AmpOptimWrapper', loss_scale='dynamic', dtype='float16', clip_grad=None))
    )
    enable_amp(cfg)
    assert cfg.optim_wrapper == dict(type='CPUAmpOptimWrapper', clip_grad=None)


@pytest.mark.slow
def test_an_impossible_plan_ends_in_one_line(mini_coco, tmp_path):
    pytest.importorskip('mmdet')
    done = run('train.py', detector(tmp_path, 'evry=2'), '--data-root', mini_coco, cwd=tmp_path)
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    assert done.stderr.splitlines()[-1].startswith('train.py: ')
    assert 'evry' in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_detection_trains_resumes_is_tested_and_merged_from_any_folder(mini_coco, tmp_path):
    pytest.importorskip('mmdet')
    config, work_dir = detector(tmp_path), tmp_path / 'work'
    args = ['--data-root', mini_coco, '--work-dir', work_dir]
    log = run_well('train.py', config, *args, '--amp', cwd='/')
    assert 'Epoch(train) [1]' in log
    assert "type='CPUAmpOptimWrapper'" in (work_dir / 'tiny.py').read_text()

    log = run_well('train.py', config, *args, '--resume', '--cfg-options', 'train_cfg.max_epochs=2', cwd='/')
    assert 'resumed epoch: 1' in log
    assert 'Epoch(train) [1]' not in log
    assert 'Epoch(train) [2]' in log

    out, pictures = tmp_path / 'out.pkl', 'pictures'
    checkpoint = work_dir / 'epoch_2.pth'
    run_well('test.py', config, checkpoint, *args, '--out', out, '--show-dir', pictures, cwd=tmp_path)
    predictions = pickle.loads(out.read_bytes())
    assert [p['pred_instances']['bboxes'].shape for p in predictions] == [(5, 4)] * 4
    assert len(list(work_dir.glob(f'2*/{pictures}/*.jpg'))) == 4

    two = tmp_path / 'two.pkl'
    run_well('dist_test.sh', config, checkpoint, 2, *args, '--out', two, cwd=tmp_path)
    for one, other in zip(predictions, pickle.loads(two.read_bytes()), strict=True):
        assert one['img_id'] == other['img_id']
        torch.testing.assert_close(one['pred_instances']['scores'], other['pred_instances']['scores'])

    merged, three = tmp_path / 'merged.pth', tmp_path / 'three.pkl'
    log = run_well('merge.py', config, checkpoint, merged, cwd=tmp_path)
    assert f'merged; its config: {tmp_path / "merged.py"}' in log
    run_well('test.py', tmp_path / 'merged.py', merged, *args, '--out', three, cwd=tmp_path)
    for one, other in zip(predictions, pickle.loads(three.read_bytes()), strict=True):
        torch.testing.assert_close(one['pred_instances'], other['pred_instances'], rtol=1e-4, atol=1e-4)
    from mmdet.apis import init_detector

    assert init_detector(str(tmp_path / 'merged.py'), str(merged), device='cpu').backbone.repl.merged
    word = ['--cfg-options', 'model.backbone.replace.merged=True', f'load_from={merged}']
    log = run_well('train.py', config, '--data-root', mini_coco, '--work-dir', tmp_path / 'on', *word, cwd=tmp_path)
    assert 'Epoch(train) [1]' in log
    for file, words, wanted in (
        (merged, (), 'the checkpoint was merged, the model is not'),
        (merged, word[:2], 'is of a merged model already'),
    ):
        done = run('merge.py', config, file, tmp_path / 'again.pth', *words, cwd=tmp_path)
        assert done.returncode == 1 and wanted in done.stderr.splitlines()[-1]
    assert not (tmp_path / 'again.pth').exists()


@pytest.mark.slow
@pytest.mark.parametrize('with_cp', [False, True])
def test_two_processes_train_like_one(with_cp, tmp_path):
    """Four images per step in one process, or two in each of two, are the same step."""
    pytest.importorskip('mmdet')
    (tmp_path / 'squares.py').write_text(SQUARES)
    for name, batch_size in dict(one=4, two=2).items():
        config = SQUARES_CONFIG.format(batch_size=batch_size, backbone=f'norm_eval=True, with_cp={with_cp}')
        (tmp_path / f'{name}.py').write_text(config)
    env = dict(cwd=tmp_path, PYTHONPATH=str(tmp_path))
    run_well('train.py', 'one.py', '--work-dir', 'one', **env)
    log = run_well('dist_train.sh', 'two.py', 2, '--work-dir', 'two', **env)
    assert 'Distributed launcher: pytorch' in log
    assert 'GPU number: 2' in log
    before, one, two = (
        torch.load(tmp_path / name, weights_only=False)['state_dict']
        for name in ('one/epoch_1.pth', 'one/epoch_2.pth', 'two/epoch_2.pth')
    )
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(
            one[key], two[key], rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f'{key}: {text}'
        )
    moved = max((one[key].float() - before[key].float()).abs().max() for key in one)
    assert moved > 1e-3


END = """
import atexit, sys, torch, _common
_common.end_process_group()
print('no group, nothing happens')
store = torch.distributed.FileStore('store', 1)
torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
atexit.register(print, 'the end of the interpreter')
_common.end_process_group()
print('not reached')
"""


def test_a_process_of_a_group_ends_when_its_work_is_done(tmp_path):
    env = dict(os.environ, PYTHONPATH=str(Path(_common.__file__).parent))
    done = subprocess.run([sys.executable, '-c', END], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == 'no group, nothing happens\n', done.stderr


@pytest.mark.slow
def test_segmentation_needs_no_tool_of_its_own(tmp_path):
    pytest.importorskip('mmseg')
    (tmp_path / 'seg.py').write_text(SEGMENTATION)
    for kind in ('img', 'ann'):
        (tmp_path / 'data' / kind).mkdir(parents=True)
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 32:] = 255
    for name in 'ab':
        cv2.imwrite(str(tmp_path / 'data' / 'img' / f'{name}.jpg'), image)
        cv2.imwrite(str(tmp_path / 'data' / 'ann' / f'{name}.png'), image[..., 0] // 255)
    log = run_well('train.py', 'seg.py', cwd=tmp_path)
    assert 'mIoU' in log
    checkpoint = tmp_path / 'work_dirs' / 'seg' / 'iter_2.pth'
    log = run_well('test.py', 'seg.py', checkpoint, '--out', 'maps', '--show-dir', 'pictures', cwd=tmp_path)
    assert 'mIoU' in log
    assert cv2.imread(str(tmp_path / 'maps' / 'a.png')).shape == (64, 64, 3)
    assert len(list((tmp_path / 'pictures').rglob('*.png'))) == 2


@pytest.mark.slow
def test_a_config_without_scope_loads_neither_mmdet_nor_mmseg(tmp_path):
    (tmp_path / 'toy.py').write_text(TOY)
    (tmp_path / 'config.py').write_text(TOY_CONFIG)
    run_well('train.py', 'config.py', cwd=tmp_path, PYTHONPATH=str(tmp_path))
    checkpoint = 'work_dirs/config/epoch_1.pth'
    log = run_well('test.py', 'config.py', checkpoint, '--out', 'out.pkl', cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert 'error:' in log
    assert len(pickle.loads((tmp_path / 'out.pkl').read_bytes())) == 4


def test_the_number_of_cores_is_known_where_the_system_does_not_say_which(monkeypatch):
    spec = importlib.util.spec_from_file_location('install', ROOT / 'requirements' / 'install.py')
    install = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(install)
    assert 1 <= install.count_cores() <= os.cpu_count()
    monkeypatch.delattr(os, 'sched_getaffinity', raising=False)
    assert install.count_cores() == os.cpu_count()


@pytest.mark.parametrize(
    'script, words, said',
    [
        ('plan.py', ['x.py', '--flops', '1.5'], 'argument --flops: 1.5 is not valid: expected what may be left'),
        ('compress.py', ['x.py', 'y', 'z', '--images', '.', '--flops', '.5', '--params', '.5'], 'not allowed with'),
        ('cost.py', ['x.py', '--shapes'], 'unrecognized arguments: --shapes'),
        ('plan.py', ['x.py', '--cfg-options', 'a.b'], '--cfg-options a.b: expected KEY=VALUE'),
        ('heal.py', ['x', 'y', 'z', 'o', '--cfg-options', '=3'], '--cfg-options =3: expected KEY=VALUE'),
        ('train.py', ['x.py', '--cfg-options', 'a.b=[(0,1'], '--cfg-options a.b=[(0,1: expected KEY=VALUE'),
        ('plan.py', ['x.py', '--kinds', 'remove:half'], 'remove:half is not valid'),
        ('train.py', [], 'the following arguments are required: config'),
        ('visualize.py', ['x'], "argument command: invalid choice: 'x'"),
    ],
)
def test_a_wrong_argument_ends_in_one_line(script, words, said, tmp_path):
    done = run(script, *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f'{script}: ') and len(done.stderr.splitlines()) == 1 and said in done.stderr


@pytest.mark.parametrize('script, needs', [('dist_train.sh', 2), ('dist_test.sh', 3), ('slurm_train.sh', 4)])
def test_scripts_say_how_they_are_used(script, needs, tmp_path):
    done = run(script, *['x'] * (needs - 1), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith('usage: ')


def test_slurm_script_starts_train_py_with_the_arguments_as_they_are(tmp_path):
    fake = tmp_path / 'srun'
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    args = ['part', 'job', 'config.py', 'work dir', '--cfg-options', 'a="[1, 2]"']
    log = run_well('slurm_train.sh', *args, cwd=tmp_path, PATH=f'{tmp_path}:{os.environ["PATH"]}', GPUS='4')
    words = log.splitlines()
    assert words[:3] == ['-p', 'part', '--job-name=job']
    assert '--ntasks=4' in words
    assert words[-5:] == ['config.py', '--work-dir=work dir', '--launcher=slurm', '--cfg-options', 'a="[1, 2]"']
