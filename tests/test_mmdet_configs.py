"""The configs that mmdet ships: all their backbones, and whole detectors, with the one-word change."""

import pytest
import walk_configs
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

import repl_mm

DETECTORS = {
    'retinanet': 'retinanet/retinanet_r50_fpn_1x_coco.py',
    'faster-rcnn': 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'mask-rcnn': 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'cascade-rcnn': 'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py',
    'fcos': 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'atss': 'atss/atss_r50_fpn_1x_coco.py',
    'detr': 'detr/detr_r50_8xb2-150e_coco.py',
    'dino': 'dino/dino-4scale_r50_8xb2-12e_coco.py',
    'mask2former': 'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
}
# What makes a detector small enough for small images, away from the backbone.
SMALLER = {'dino': {'num_queries': 60}, 'mask2former': {'data_preprocessor.batch_augments': None}}
CONFIG = """
_base_ = 'mmdet::{base}'
custom_imports = dict(imports=['repl_mm'])
model = dict(backbone=dict(type='RepLResNet'))
"""


@pytest.mark.slow
@pytest.mark.parametrize('name', DETECTORS)
def test_detector(name, tmp_path):
    """One line in a config over the stock base: builds, and a training step's loss reaches every computing layer."""
    from mmdet.testing import demo_mm_inputs

    (tmp_path / 'config.py').write_text(CONFIG.format(base=DETECTORS[name]))
    cfg = Config.fromfile(tmp_path / 'config.py')
    cfg.merge_from_dict({f'model.{key}': value for key, value in SMALLER.get(name, {}).items()})
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        detector = MODELS.build(cfg.model)
        detector.train()
        data = detector.data_preprocessor(demo_mm_inputs(2, [[3, 128, 128]] * 2, with_mask=True), True)
        loss, _ = detector.parse_losses(detector(**data, mode='loss'))
    loss.backward()

    assert loss.isfinite()
    ((where, backbone),) = repl_mm.repl_backbones(detector)
    assert (where, type(backbone).__name__) == ('backbone', 'ResNet')
    # mmdet freezes the first stage by default, and Mask2Former none: all stages that are trained have slots
    assert {slot.stage for slot in repl_mm.plan_of(backbone).slots} == set(range(max(backbone.frozen_stages, 0), 4))
    for key, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    assert all(p.grad.any() for key, p in backbone.named_parameters() if key.endswith('expand.bias'))


@pytest.mark.slow
def test_all_shipped_configs():
    """mmdet 3.3.0 ships 823 configs; 604 have a backbone of the ResNet family."""
    report = walk_configs.walk('mmdet')
    print(walk_configs.summary(report))
    assert (report['configs'], report['with_backbone']) == (823, 793)
    # 5 configs need mmpretrain's registry to be read at all, 4 name a base that the wheel does not have
    assert len(report['unreadable']) == 9

    failures = [result for result in report['results'] if result['status'] == 'fails']
    assert not failures
    counts = walk_configs.count(report, 'resnet')
    assert counts['works'] >= 586
    assert counts['refused'] == 10  # DetectoRS and Trident, by name
    assert counts['stock fails'] <= 8  # they need mmpretrain
    refused = [result for result in report['results'] if result['status'] == 'refused']
    assert {result['type'] for result in refused} == {'DetectoRS_ResNet', 'TridentResNet'}
    assert all('use the stock type' in result['reason'] for result in refused)


# ---- the parts of the walk ----


def test_backbones_are_found_wherever_they_are():
    inner, outer, neck = dict(type='ResNet', depth=18), dict(type='ICNet'), dict(type='DetectoRS_ResNet')
    model = dict(
        detector=dict(backbone=dict(outer, backbone_cfg=inner)),
        necks=[dict(rfp_backbone=neck)],
        backbone='torchvision',
        note=dict(type='ResNet'),
    )
    found = list(walk_configs.backbones(model))
    assert found == [dict(outer, backbone_cfg=inner), inner, neck]


def test_only_the_type_changes():
    settings = dict(type='mmdet.ResNet', depth=18, norm_cfg=dict(type='BN'))
    assert walk_configs.with_repl(settings) == dict(settings, type='mmdet.RepLResNet')
    assert walk_configs.with_repl(dict(type='ResNet')) == dict(type='RepLResNet')
    plain = dict(type='ResNet', init_cfg=dict(checkpoint='x'), pretrained='y', dcn=dict(init_cfg=None, type='DCN'))
    assert walk_configs.without_weights(plain) == dict(type='ResNet', dcn=dict(type='DCN'))


@pytest.mark.parametrize(
    ('settings', 'status', 'reason'),
    [
        (dict(type='ResNet', depth=18, base_channels=8), 'works', ''),
        (dict(type='ResNet', depth=18, base_channels=8, frozen_stages=4), 'refused', 'selects no block of ResNet'),
        (dict(type='ResNet', depth=19), 'stock fails', 'invalid depth 19'),
        (dict(type='mmpretrain.ResNet', depth=18), 'stock fails', 'mmpretrain.ResNet is not in'),
        # what fails with RepL and not without it: a backbone without a builder
        (dict(type='MobileNetV2'), 'fails', 'RepLMobileNetV2 is not in'),
    ],
)
def test_one_backbone(settings, status, reason):
    have, text = walk_configs.try_backbone(settings, 'mmdet', 64)
    assert have == status and reason in text and len(text.splitlines()) <= 1


def test_a_config_counts_once_with_its_worst_status():
    result = dict(family='resnet', type='ResNet', reason='')
    report = dict(
        results=[
            dict(result, config='a', status='works'),
            dict(result, config='a', status='refused'),
            dict(result, config='b', status='works'),
            dict(result, config='c', status='unknown', family=None),
        ]
    )
    counts = walk_configs.count(report, 'resnet')
    assert counts == {'works': 1, 'refused': 1, 'stock fails': 0, 'fails': 0}


def test_a_package_that_is_not_installed():
    with pytest.raises(SystemExit, match='--package nowhere: not installed here'):
        walk_configs.shipped_configs('nowhere')
