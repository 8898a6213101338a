"""The shipped COCO configs: they change a few words of their bases, and their backbones are RepL backbones."""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope

from repl_mm import plan_of
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
}


def test_every_shipped_coco_config_is_tested():
    assert {path.stem for path in CONFIGS.glob('*_repl_coco.py')} == set(BASES)


@pytest.mark.parametrize('name', BASES)
def test_four_words_turn_the_stock_config_into_the_shipped_one(name, tmp_path):
    pytest.importorskip('mmdet')
    base = tmp_path / 'stock.py'
    base.write_text(f'_base_ = {BASES[name]!r}')
    stock = Config.fromfile(base).to_dict()
    assert stock['model']['backbone']['type'] == 'ResNet'
    assert not {'custom_hooks', 'custom_imports'} & set(stock)
    stock['model']['backbone'].update(type='RepLResNet', replace={})
    stock['custom_hooks'] = [dict(type='RepLHook')]
    stock['custom_imports'] = dict(imports=['repl_mm'])
    assert Config.fromfile(CONFIGS / f'{name}.py').to_dict() == stock


@pytest.mark.parametrize('name', BASES)
def test_the_backbone_holds_a_plan(name):
    pytest.importorskip('mmdet')
    settings = Config.fromfile(CONFIGS / f'{name}.py').model.backbone
    settings.init_cfg = None  # nothing is downloaded here
    with DefaultScope.overwrite_default_scope('mmdet'):
        backbone = MODELS.build(settings)
    assert type(backbone).__name__ == 'ResNet'
    assert backbone.depth == (101 if 'r101' in name else 50)
    slots = [(slot.stage, slot.index) for slot in plan_of(backbone).slots]
    # stage 0 is frozen in all of them; every second block between the others' ends is replaced
    last = [3, 22, 2] if backbone.depth == 101 else [3, 5, 2]
    assert slots == [(stage, i) for stage, end in zip((1, 2, 3), last, strict=True) for i in range(1, end, 2)]
