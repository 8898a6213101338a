"""The shipped configs: they change a few words of their bases, and their backbones are RepL backbones."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from repl_mm import arms, plan_of
from repl_mm.config import build
from repl_mm.registry import MODELS

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'
BASES = {
    'retinanet_r50_repl_coco': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'retinanet_r101_repl_coco': 'mmdet::retinanet/retinanet_r101_fpn_1x_coco.py',
    'faster-rcnn_r50_repl_coco': 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'mask-rcnn_r50_repl_coco': 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'cascade-rcnn_r50_repl_coco': 'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py',
    'fcos_r50_repl_coco': 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'detr_r50_repl_coco': 'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    'retinanet_swin-t_repl_coco': 'mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py',
    'mask-rcnn_swin-t_repl_coco': 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
    'rtmdet_tiny_repl_coco': 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'yolox_tiny_repl_coco': 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
    'faster-rcnn_hrnetv2p-w18_repl_coco': 'mmdet::hrnet/faster-rcnn_hrnetv2p-w18-1x_coco.py',
}
# the hooks of their bases stay, and say how large the images are
HOOKS = {
    'rtmdet_tiny_repl_coco': ['EMAHook', 'PipelineSwitchHook'],
    'yolox_tiny_repl_coco': ['YOLOXModeSwitchHook', 'SyncNormHook', 'EMAHook'],
}
# their backbones are mmpretrain's, which only one of the tested stacks has
WITH_MMPRETRAIN = {
    'mask-rcnn_convnext-t_repl_coco': 'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py',
    'upernet_convnext-t_repl_ade20k': 'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py',
}
ADE20K = {'segnext_mscan-t_repl_ade20k': 'mmseg::segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py'}
HERE = {**BASES, **ADE20K, **(WITH_MMPRETRAIN if find_spec('mmpretrain') else {})}
# mmdet has no plain ViT: these take mmseg's
WITH_VIT = {
    'retinanet_vit-b_repl_coco': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'mask-rcnn_vit-b_repl_coco': 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
}
TRANSFORMERS = [*(name for name in BASES if 'swin' in name), *WITH_VIT]


def test_every_shipped_coco_config_is_tested():
    shipped = {path.stem for kind in ('coco', 'ade20k') for path in CONFIGS.glob(f'*_repl_{kind}.py')}
    assert shipped == {*BASES, *WITH_VIT, *WITH_MMPRETRAIN, *ADE20K}


@pytest.mark.parametrize('name', HERE)
def test_four_words_turn_the_stock_config_into_the_shipped_one(name, tmp_path):
    pytest.importorskip('mmdet')
    base = tmp_path / 'stock.py'
    base.write_text(f'_base_ = {HERE[name]!r}')
    stock = Config.fromfile(base).to_dict()
    package, _, kind = stock['model']['backbone']['type'].rpartition('.')
    imports = stock.setdefault('custom_imports', dict(imports=[]))
    if isinstance(imports['imports'], str):  # mmseg's own has a word, mmdet's a list
        imports['imports'] = [imports['imports']]
    assert imports['imports'] == (['mmpretrain.models'] if package else [])
    stock['model']['backbone'].update(type='.'.join(filter(None, [package, f'RepL{kind}'])), replace={})
    hooks = stock.setdefault('custom_hooks', [])
    assert [hook['type'] for hook in hooks] == HOOKS.get(name, [])
    shape = dict(shape=(640, 640)) if hooks else dict(shape=(512, 512)) if 'ade20k' in name else {}
    hooks.append(dict(type='RepLHook', **shape))
    imports['imports'].append('repl_mm')
    assert Config.fromfile(CONFIGS / f'{name}.py').to_dict() == stock


# every second block between the ends of a ResNet's stages, of which the first is frozen; every third one of a
# transformer's, and the second one of two
PLANS = {
    'r50': [(1, 1), (2, 1), (2, 3), (3, 1)],
    'r101': [(1, 1), *((2, i) for i in range(1, 22, 2)), (3, 1)],
    'swin-t': [(0, 1), (1, 1), (2, 1), (2, 4), (3, 1)],
    'vit-b': [(0, 1), (0, 4), (0, 7), (0, 10)],
    'hrnetv2p-w18': [(i, 1) for i in range(1 + 1 * 2 + 4 * 3 + 3 * 4)],  # layer1, and every branch of every module
    'rtmdet_tiny': [(1, 0)],
    'yolox_tiny': [(1, 1), (2, 1)],
    'convnext-t': [(0, 1), (1, 1), *((2, i) for i in range(1, 8, 2)), (3, 1)],
    'mscan-t': [(0, 1), (1, 1), (2, 1), (2, 3), (3, 1)],
}


@pytest.mark.parametrize('name', [*HERE, *WITH_VIT])
def test_the_backbone_holds_a_plan(name):
    pytest.importorskip('mmdet')
    settings = Config.fromfile(CONFIGS / f'{name}.py').model.backbone
    settings.init_cfg = None  # nothing is downloaded here
    with DefaultScope.overwrite_default_scope('mmseg' if 'ade20k' in name else 'mmdet'):
        backbone = MODELS.build(settings)
    assert f'RepL{type(backbone).__name__}' == settings.type.rpartition('.')[2]
    package = 'mmpretrain' if name in WITH_MMPRETRAIN else 'mmseg' if name in {**WITH_VIT, **ADE20K} else 'mmdet'
    assert type(backbone).__module__.startswith(f'{package}.models.backbones.')
    slots = [(slot.stage, slot.index) for slot in plan_of(backbone).slots]
    plan = PLANS[name.removesuffix('_repl_coco') if name in HOOKS else name.split('_')[1]]
    assert slots == plan
    if name in WITH_VIT:  # what the neck sees comes out of layers of their own
        assert not {(0, index) for index in backbone.out_indices} & set(slots)


@pytest.mark.parametrize('name', WITH_VIT)
def test_the_stock_detector_gets_a_vit(name, tmp_path):
    """Beside backbone and neck, what differs from the stock config is the size of images and the optimizer."""
    pytest.importorskip('mmdet')
    stock = read(f'_base_ = {WITH_VIT[name]!r}', tmp_path)
    shipped = Config.fromfile(CONFIGS / f'{name}.py').to_dict()
    size = shipped['image_size']
    assert shipped['model']['backbone']['img_size'] == size
    for config, scale in ((stock, (1333, 800)), (shipped, size)):
        for phase in ('train', 'val', 'test'):
            pipeline = config[f'{phase}_dataloader']['dataset']['pipeline']
            (resize,) = (step for step in pipeline if step['type'] == 'Resize')
            assert resize.pop('scale') == scale
            pipeline[0].pop('backend_args', None)  # None, the default
        del config['train_pipeline'], config['test_pipeline']  # what the loaders have, and more of mmengine's
    paths = differences(shipped, stock)
    assert {path for path in paths if not path.startswith(('.model.backbone.', '.optim_wrapper.'))} == {
        '.image_size',
        '.custom_imports',
        '.custom_hooks',
        '.model.neck',
    } | ({'.model.data_preprocessor.pad_size_divisor'} if 'retinanet' in name else set())
    assert shipped['custom_hooks'] == [dict(type='RepLHook', shape=size)]
    assert shipped['optim_wrapper']['optimizer']['type'] == 'AdamW'
    # maps are halved up to the coarsest level of the pyramid without a remainder
    pyramid = shipped['model']['neck'][0]
    assert shipped['model']['data_preprocessor']['pad_size_divisor'] % (16 / min(pyramid['rescales'])) == 0


def shrunk(name):
    """The config with a backbone of few channels and without weights, for tiny images."""
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    backbone = dict(init_cfg=None, drop_path_rate=0.0, num_heads=2, embed_dims=16)
    if name in WITH_VIT:
        cfg.model.neck[0].embed_dim = 16
        if 'norm_cfg' in cfg.model.neck[0]:
            cfg.model.neck[0].norm_cfg.num_groups = 4
        cfg.model.neck[1].in_channels = [16] * 4
    else:
        backbone.update(num_heads=[1, 2, 2, 4], embed_dims=8, window_size=4)
        cfg.model.neck.in_channels = [8 * 2**i for i in cfg.model.backbone.out_indices]
    cfg.model.backbone.update(backbone)
    return cfg


@pytest.mark.parametrize('name', TRANSFORMERS)
def test_detectors_with_transformers_train_and_predict(name):
    """All parameters get a gradient (DDP needs that), and every image gets its predictions."""
    pytest.importorskip('mmdet')
    from mmdet.testing import demo_mm_inputs

    cfg = shrunk(name)
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.manual_seed(0)
        detector = MODELS.build(cfg.model)
        detector.init_weights()
        detector.train()
        batch = demo_mm_inputs(2, [[3, 128, 128], [3, 96, 128]], num_items=[2, 3], with_mask=True)
        data = detector.data_preprocessor(batch, True)
        loss, _ = detector.parse_losses(detector(**data, mode='loss'))
        loss.backward()
        detector.eval()
        head = detector.roi_head if 'mask-rcnn' in name else detector.bbox_head
        head.test_cfg.score_thr = 0.0
        with torch.no_grad():
            predictions = detector(**detector.data_preprocessor(batch, False), mode='predict')
    assert loss.isfinite()
    for key, parameter in detector.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    assert len(predictions) == 2
    for sample in predictions:
        found = sample.pred_instances
        assert found.bboxes.shape == (len(found), 4) and found.scores.isfinite().all()
        assert len(found) > 0


@pytest.mark.parametrize('name', TRANSFORMERS)
def test_costs_and_comparisons_find_the_stock_backbone(name):
    """What tools/cost.py and tools/compare.py set beside RepL is the stock backbone of the same package."""
    pytest.importorskip('mmdet')
    cfg = shrunk(name)
    built = [arms.build_backbones(arms.read_arm(arm), cfg)[0][0] for arm in ('e2e', 'fuse', 'remove')]
    built += [
        build(arms.arm_config(arms.read_arm(arm), cfg).model.backbone, 'mmdet')
        for arm in ('e2e', 'fuse', 'remove', 'full')
    ]
    assert {type(backbone).__module__ for backbone in built} == {
        'mmseg.models.backbones.vit' if name in WITH_VIT else 'mmdet.models.backbones.swin'
    }
    assert [plan_of(backbone) is None for backbone in built] == [True, False, False, True, False, False, False]
    assert len({plan_of(backbone).slots for backbone in built if plan_of(backbone)}) == 1
    assert 'e2e:with_cp=True' in [arm.name for arm in arms.default_arms(cfg)]


# ---- Cityscapes ----

CITYSCAPES = {
    f'{name}_r{depth}-d8_repl_cityscapes': f'mmseg::{name}/{name}_r{depth}-d8_4xb2-80k_cityscapes-512x1024.py'
    for name in ('fcn', 'pspnet', 'deeplabv3', 'deeplabv3plus')
    for depth in (50, 101)
} | {
    'fcn_hr18s_repl_cityscapes': 'mmseg::hrnet/fcn_hr18s_4xb2-80k_cityscapes-512x1024.py',
    'segformer_mit-b2_repl_cityscapes': 'mmseg::segformer/segformer_mit-b2_8xb1-160k_cityscapes-1024x1024.py',
    'setr_vit-l_pup_repl_cityscapes': 'mmseg::setr/setr_vit-l_pup_8xb1-80k_cityscapes-768x768.py',
}
# mmseg has these for ADE20K only
FROM_ADE20K = {
    'segmenter_vit-b_mask_repl_cityscapes': 'mmseg::segmenter/segmenter_vit-b_mask_8xb1-160k_ade20k-512x512.py',
    'upernet_vit-b16-ln_mln_repl_cityscapes': 'mmseg::vit/vit_vit-b16-ln_mln_upernet_8xb2-160k_ade20k-512x512.py',
    'upernet_swin-t_repl_cityscapes': (
        'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'
    ),
}


def read(text, tmp_path):
    """The config with this text."""
    (tmp_path / 'stock.py').write_text(text)
    return Config.fromfile(tmp_path / 'stock.py').to_dict()


def test_every_shipped_cityscapes_config_is_tested():
    assert {path.stem for path in CONFIGS.glob('*_repl_cityscapes.py')} == {*CITYSCAPES, *FROM_ADE20K}


@pytest.mark.parametrize('name', CITYSCAPES)
def test_five_words_turn_the_stock_cityscapes_config_into_the_shipped_one(name, tmp_path):
    pytest.importorskip('mmseg')
    stock = read(f'_base_ = {CITYSCAPES[name]!r}', tmp_path)
    shipped = Config.fromfile(CONFIGS / f'{name}.py').to_dict()
    backbone = stock['model']['backbone']
    backbone.update(type='RepL' + backbone['type'], replace={})
    if name.startswith('setr'):
        stock['checkpoint'] = shipped['checkpoint']
        backbone['init_cfg']['checkpoint'] = stock['checkpoint']
    stock['custom_hooks'] = [dict(type='RepLHook', shape=stock['crop_size'])]
    stock['custom_imports'] = dict(imports=['repl_mm'])
    assert shipped == stock


def differences(one, other, path=''):
    """Paths of all values in which two configs differ."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return {path} if one != other else set()
    found = (differences(one.get(key), other.get(key), f'{path}.{key}') for key in {*one, *other})
    return set().union(*found)


@pytest.mark.parametrize('name', FROM_ADE20K)
def test_the_ade20k_config_becomes_one_for_cityscapes(name, tmp_path):
    """Model and optimizer are those of mmseg's ADE20K config but for classes, crops and where weights come from."""
    pytest.importorskip('mmseg')
    stock = read(f'_base_ = {FROM_ADE20K[name]!r}', tmp_path)
    shipped = Config.fromfile(CONFIGS / f'{name}.py').to_dict()
    assert differences(shipped['model'], stock['model']) <= {
        '.pretrained',
        '.backbone.type',
        '.backbone.replace',
        '.backbone.img_size',
        '.backbone.init_cfg.checkpoint',
        '.data_preprocessor.size',
        '.decode_head.num_classes',
        '.auxiliary_head.num_classes',
        '.test_cfg.mode',
        '.test_cfg.crop_size',
        '.test_cfg.stride',
    }
    assert shipped['model']['backbone']['type'] == 'RepL' + stock['model']['backbone']['type']
    assert {head['num_classes'] for key, head in shipped['model'].items() if key.endswith('head')} == {19}
    assert differences(shipped['optim_wrapper'], stock['optim_wrapper']) <= {'._scope_'}
    assert shipped['train_dataloader']['batch_size'] == stock['train_dataloader']['batch_size']
    crop = shipped['crop_size']
    cityscapes = read("_base_ = 'mmseg::_base_/datasets/cityscapes.py'", tmp_path)
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        mine, theirs = shipped[loader]['dataset'], cityscapes[loader]['dataset']
        assert {key: value for key, value in mine.items() if key != 'pipeline'} == {
            key: value for key, value in theirs.items() if key != 'pipeline'
        }
    (random_crop,) = (step for step in shipped['train_pipeline'] if step['type'] == 'RandomCrop')
    assert random_crop['crop_size'] == shipped['model']['data_preprocessor']['size'] == crop
    assert shipped['custom_hooks'] == [dict(type='RepLHook', shape=crop)]
    # the schedule ends with the training
    assert max(step['end'] for step in shipped['param_scheduler']) == shipped['train_cfg']['max_iters'] == 80000


def _weights(model):
    """Where a model's weights come from; a local file would be one that the user has to make."""
    return [model['pretrained']] if model.get('pretrained') else [model['backbone']['init_cfg']['checkpoint']]


@pytest.mark.parametrize('name', [*CITYSCAPES, *FROM_ADE20K])
def test_no_cityscapes_config_asks_for_a_file_that_is_not_downloaded(name):
    pytest.importorskip('mmseg')
    (source,) = _weights(Config.fromfile(CONFIGS / f'{name}.py').model)
    assert source.startswith(('https://download.openmmlab.com/', 'https://mmassets.onedl.ai/', 'open-mmlab://'))
