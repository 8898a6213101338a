"""The configs that mmdet and mmseg ship: all their backbones, and whole detectors, with the one-word change."""

from collections import Counter
from pathlib import Path

import pytest
import try_backbone
import walk_configs
import walk_report
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from small import WITH_MMPRETRAIN

import repl_mm
from repl_mm import config

REPO = Path(__file__).resolve().parent.parent
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
    cfg.model.backbone.init_cfg = None  # no download
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        detector = MODELS.build(cfg.model)
        detector.init_weights()  # some parts of DINO hold whatever the memory held until then
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


WHERE_MMPRETRAIN_IS = 'works' if WITH_MMPRETRAIN else 'stock fails'
# A part of the walk, every family in both packages: config -> what becomes of it, and the backbones that it has.
FEW = {
    'mmdet': {
        'pvt/retinanet_pvt-t_fpn_1x_coco.py': ('works', {'PyramidVisionTransformer'}),
        'pvt/retinanet_pvtv2-b0_fpn_1x_coco.py': ('works', {'PyramidVisionTransformerV2'}),
        'swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py': ('works', {'SwinTransformer'}),
        'regnet/faster-rcnn_regnetx-400MF_fpn_ms-3x_coco.py': ('works', {'RegNet'}),
        'detectors/detectors_htc-r50_1x_coco.py': ('refused', {'DetectoRS_ResNet'}),
        'strongsort/strongsort_yolox_x_8xb4-80e_crowdhuman-mot20train_test-mot20test.py': (
            WHERE_MMPRETRAIN_IS,
            {'CSPDarknet', 'ResNet'},
        ),
        'convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py': (WHERE_MMPRETRAIN_IS, {'ConvNeXt'}),
        'timm_example/retinanet_timm-tv-resnet50_fpn_1x_coco.py': (WHERE_MMPRETRAIN_IS, {'TIMMBackbone'}),
        'timm_example/retinanet_timm-efficientnet-b1_fpn_1x_coco.py': (
            'refused' if WITH_MMPRETRAIN else 'stock fails',
            {'TIMMBackbone'},
        ),
        'hrnet/fcos_hrnetv2p-w18-gn-head_4xb4-1x_coco.py': ('works', {'HRNet'}),
        'yolox/yolox_tiny_8xb8-300e_coco.py': ('works', {'CSPDarknet'}),
        'rtmdet/rtmdet_tiny_8xb32-300e_coco.py': ('works', {'CSPNeXt'}),
        'yolo/yolov3_d53_8xb8-320-273e_coco.py': ('works', {'Darknet'}),
        'ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py': ('works', {'MobileNetV2'}),
        'efficientnet/retinanet_effb3_fpn_8xb4-crop896-1x_coco.py': ('works', {'EfficientNet'}),
        'ssd/ssd300_coco.py': ('refused', {'SSDVGG'}),
        'cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco.py': ('other', {'HourglassNet'}),
        'centernet/centernet_tta.py': ('none', set()),
        'sort/faster-rcnn_r50_fpn_8xb2-4e_mot17train_test-mot17train.py': ('unreadable', set()),
    },
    'mmseg': {
        'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py': ('works', {'MixVisionTransformer'}),
        'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py': ('works', {'SwinTransformer'}),
        'twins/twins_pcpvt-s_fpn_fpnhead_8xb4-80k_ade20k-512x512.py': ('works', {'PCPVT'}),
        'twins/twins_svt-s_fpn_fpnhead_8xb4-80k_ade20k-512x512.py': ('works', {'SVT'}),
        'twins/twins_svt-s_uperhead_8xb2-160k_ade20k-512x512.py': ('works', {'SVT'}),
        'vit/vit_deit-s16_upernet_8xb2-80k_ade20k-512x512.py': ('works', {'VisionTransformer'}),
        'beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py': ('works', {'BEiT'}),
        'mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py': ('works', {'MAE'}),
        'san/san-vit-b16_voc12aug-640x640.py': ('refused', {'VisionTransformer'}),
        'hrnet/fcn_hr18s_4xb2-40k_cityscapes-512x1024.py': ('works', {'HRNet'}),
        'mobilenet_v2/mobilenet-v2-d8_fcn_4xb2-80k_cityscapes-512x1024.py': ('works', {'MobileNetV2'}),
        'mobilenet_v3/mobilenet-v3-d8-s_lraspp_4xb4-320k_cityscapes-512x1024.py': ('works', {'MobileNetV3'}),
        'segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py': ('works', {'MSCAN'}),
        'ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py': ('works', {'DDRNet'}),
        'pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py': ('works', {'PIDNet'}),
        'poolformer/fpn_poolformer_s12_8xb4-40k_ade20k-512x512.py': (WHERE_MMPRETRAIN_IS, {'PoolFormer'}),
        'stdc/stdc1_4xb12-80k_cityscapes-512x1024.py': ('refused', {'STDCNet', 'STDCContextPathNet'}),
        # a backbone that no family knows around one that works
        'bisenetv1/bisenetv1_r18-d32_4xb4-160k_cityscapes-1024x1024.py': ('works', {'BiSeNetV1', 'ResNet'}),
    },
}


# different backbones: DetectoRS, StrongSORT and STDC have two, a ViT is there as it is used and frozen, and two
# configs have the same SVT
DIFFERENT = dict(mmdet=18, mmseg=18)
SAN = [('vit', 'VisionTransformer')]  # it is frozen there


@pytest.mark.parametrize('package', FEW)
def test_some_shipped_configs(package):
    report = walk_configs.walk(package, only=tuple(FEW[package]))
    assert walk_report.by_config(report) == {name: status for name, (status, _) in FEW[package].items()}
    found = {name: {r['type'] for r in report['results'] if r['config'] == name} for name in FEW[package]}
    assert found == {name: types for name, (_, types) in FEW[package].items()}
    assert report['settings'] == DIFFERENT[package]


@pytest.mark.slow
@pytest.mark.parametrize(
    ('package', 'configs', 'works', 'refused'),
    [
        (
            'mmdet',
            823,
            774 if WITH_MMPRETRAIN else 756,
            {
                *(('resnet', name) for name in ('DetectoRS_ResNet', 'TridentResNet', 'SSDVGG')),
                *([('timm', 'TIMMBackbone')] if WITH_MMPRETRAIN else []),
            },
        ),
        (
            'mmseg',
            681,
            636 if WITH_MMPRETRAIN else 625,
            {*(('dual', name) for name in ('STDCNet', 'STDCContextPathNet')), *SAN, ('resnet', 'UNet')},
        ),
    ],
)
def test_all_shipped_configs(package, configs, works, refused):
    """mmdet 3.3.0 and mmseg 1.2.2: docs/configs.md shows what this says, beside mmpretrain the sums."""
    report = walk_configs.walk(package)
    print(walk_report.summary(report))
    assert len(report['configs']) == configs
    assert not [result for result in report['results'] if result['status'] == 'fails']
    assert Counter(walk_report.by_config(report).values())['works'] == works
    assert {(r['family'], r['type']) for r in report['results'] if r['status'] == 'refused'} == refused
    said = f'{works} of {configs} in {package}' if WITH_MMPRETRAIN else walk_report.summary(report)
    assert said in (REPO / 'docs' / 'configs.md').read_text()


# ---- the parts of the walk ----


def test_backbones_are_found_wherever_they_are():
    inner, outer, neck = dict(type='ResNet', depth=18), dict(type='ICNet'), dict(type='DetectoRS_ResNet')
    model = dict(
        detector=dict(backbone=dict(outer, backbone_cfg=inner)),
        necks=[dict(rfp_backbone=neck)],
        backbone='torchvision',
        note=dict(type='ResNet'),
    )
    model['image_encoder'] = dict(type='VisionTransformer')
    found = list(config.all_backbones(model).values())
    assert found == [dict(outer, backbone_cfg=inner), inner, neck, model['image_encoder']]


def test_only_the_type_changes():
    settings = dict(type='mmdet.ResNet', depth=18, norm_cfg=dict(type='BN'))
    assert config.repl_config(settings) == dict(settings, type='mmdet.RepLResNet', replace={})
    assert config.repl_type(dict(type='ResNet')) == 'repl_mm.RepLResNet'


def test_what_does_not_matter_is_left_out():
    plain = dict(type='ResNet', init_cfg=dict(checkpoint='x'), pretrained='y', dcn=dict(init_cfg=None, type='DCN'))
    assert try_backbone.essential(plain, 96) == dict(type='ResNet', dcn=dict(type='DCN'))
    vit = dict(type='BEiT', img_size=(640, 640), drop_rate=0.0, drop_path_rate=0.1, attn_drop_rate=0.0)
    assert try_backbone.essential(vit, 64) == dict(type='BEiT', img_size=64)


@pytest.mark.parametrize(
    ('settings', 'status', 'reason'),
    [
        (dict(type='ResNet', depth=18, base_channels=8), 'works', ''),
        (dict(type='ResNet', depth=18, base_channels=8, frozen_stages=4), 'refused', 'selects no block of ResNet'),
        (dict(type='ResNet', depth=19), 'stock fails', 'invalid depth 19'),
        (dict(type='mmseg.BEiT', img_size=64, embed_dims=32, num_layers=4, num_heads=2), 'works', ''),
        (
            dict(type='mmpretrain.ResNet', depth=18),
            WHERE_MMPRETRAIN_IS,
            '' if WITH_MMPRETRAIN else 'mmpretrain.ResNet is not in',
        ),
        # what fails with RepL and not without it: a backbone without a builder
        (dict(type='HourglassNet', num_stacks=1), 'fails', "RepL does not support backbone type 'HourglassNet'"),
    ],
)
def test_one_backbone(settings, status, reason):
    have, text = try_backbone.try_backbone(settings, 'mmdet', 64)
    assert have == status and reason in text and len(text.splitlines()) <= 1


def test_a_config_counts_once_with_its_worst_status():
    results = [
        ('a', 'resnet', 'ResNet', 'works'),
        ('a', 'resnet', 'ResNet', 'refused'),
        ('b', 'vit', 'VisionTransformer', 'fails'),
        ('b', 'resnet', 'ResNet', 'works'),
        ('c', None, 'HRNet', 'other'),
        ('d', None, 'ICNet', 'other'),
        ('d', 'resnet', 'ResNet', 'works'),
    ]
    keys = ('config', 'family', 'type', 'status')
    results = [dict(zip(keys, result, strict=True), reason='why') for result in results]
    report = dict(package='mm', configs=list('abcdef'), unreadable=dict(f='why'), settings=3, results=results)
    everything = dict(a='refused', b='fails', c='other', d='works', e='none', f='unreadable')
    assert walk_report.by_config(report) == everything
    assert walk_report.by_config(report, 'resnet') == dict(a='refused', b='works', d='works')
    assert walk_report.by_config(report, 'vit') == dict(b='fails')

    text = walk_report.summary(report)
    assert 'HRNet' in text and 'ICNet' not in text  # it is there around a ResNet that works
    assert 'mm, resnet: RepL works in 2 of 3 configs' in text
    assert 'mm: RepL works in 1 of 6 configs (3 different backbones were run)' in text


def test_patterns_that_no_config_fits(capsys):
    assert walk_configs.walk('mmdet', only=('vit/*',))['configs'] == []  # mmseg has some
    with pytest.raises(SystemExit):
        walk_configs.main(['--only', 'no/such'])
    assert '--only no/such: no config fits; expected patterns such as swin/*' in capsys.readouterr().err


def test_a_package_that_is_not_installed():
    with pytest.raises(SystemExit, match='--package nowhere: not installed here'):
        walk_configs.shipped_configs('nowhere')
