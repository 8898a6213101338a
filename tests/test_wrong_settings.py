"""Every wrong setting ends in one line that names the key, the value and what is valid, before anything is changed."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope
from small import HRNET, WITH_MMPRETRAIN

from repl_mm import PlanError, apply_repl, plan_of
from repl_mm.families import encoder

R50 = dict(type='RepLResNet', depth=50, base_channels=8)
FREE = 'stage 0 is frozen (frozen_stages), a computing layer there would never be trained'
MODES = "'fuse', 'remove', 'patch', 'linear', 'share', 'own', 'random'"
OPERATORS = "'separable', 'conv', 'half', 'full'"
TRANSFORMS = "'scalar', 'channel', 'mix'"
DCN = dict(dcn=dict(type='DCNv2', deform_groups=1), stage_with_dcn=(False, False, False, True))
CONTEXT = dict(type='ContextBlock', ratio=0.25)
PLUGINS = dict(plugins=[dict(cfg=CONTEXT, stages=(False, False, False, True), position='after_conv3')])
TRIDENT = dict(type='RepLTridentResNet', num_branch=3, test_branch_idx=1, trident_dilations=(1, 2, 3))
TRIDENT.update(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,))
TOKENS = dict(_scope_='mmseg', img_size=32, embed_dims=8, num_layers=6, num_heads=2)
VIT = dict(TOKENS, type='RepLVisionTransformer')
SWIN = dict(_scope_='mmdet', type='RepLSwinTransformer', embed_dims=8, num_heads=(1, 1, 1, 1))
SVT = dict(_scope_='mmseg', type='RepLSVT', embed_dims=[8, 8, 8], num_heads=[1, 1, 1])
LAYERS = ', '.join(map(repr, encoder.OPERATORS))

# what is given as ``replace``, what else is changed in R50 (settings with a ``_scope_`` stand for themselves), and
# what the message has to name: key, value, valid values
TABLE = {
    'replace is no dict': (True, {}, ['replace=True', 'a dict with keys among every, stages, slots, mode']),
    'replace is a number': (2, {}, ['replace=2', 'a dict']),
    'replace is a list': ([(2, 1)], {}, ['replace=[(2, 1)]', 'a dict']),
    'unknown key': (dict(evry=2), {}, ['replace.evry=2', 'unknown key', 'one of every, stages, slots']),
    'every=0': (dict(every=0), {}, ['replace.every=0', 'an integer of at least 1']),
    'every negative': (dict(every=-1), {}, ['replace.every=-1', 'an integer of at least 1']),
    'every a string': (dict(every='2'), {}, ["replace.every='2'", 'an integer of at least 1']),
    'every a bool': (dict(every=True), {}, ['replace.every=True', 'an integer of at least 1']),
    'every a fraction': (dict(every=1.5), {}, ['replace.every=1.5', 'an integer of at least 1']),
    'ratio=0': (dict(ratio=0), {}, ['replace.ratio=0', 'above 0 and up to 1']),
    'ratio=2': (dict(ratio=2), {}, ['replace.ratio=2', 'above 0 and up to 1']),
    'ratio a string': (dict(ratio='half'), {}, ["replace.ratio='half'", 'a number above 0 and up to 1']),
    'ratio nan': (dict(ratio=float('nan')), {}, ['replace.ratio=nan', 'a number above 0 and up to 1']),
    'slot beyond the stage': (dict(slots=[(2, 6)]), {}, ['replace.slots', '(2, 6)', 'has 6 blocks', '0..5']),
    'slot beyond the stages': (dict(slots=[(4, 1)]), {}, ['replace.slots', '4', '0..3']),
    'slot counted from the end': (dict(slots=[(2, -1)]), {}, ['replace.slots', '(2, -1)', '0..5']),
    'first block': (dict(slots=[(2, 0)]), {}, ['replace.slots', '(2, 0)', 'the first block', '1..5']),
    'slot twice': (dict(slots=[(2, 1), (2, 1)]), {}, ['replace.slots', '(2, 1)', 'twice', 'every slot once']),
    'flat tuple': (dict(slots=(2, 1)), {}, ['replace.slots', 'holds 2', '(stage, index) pair']),
    'slot as string': (dict(slots=['2.1']), {}, ['replace.slots', "'2.1'", '(stage, index) pair']),
    'slot of three': (dict(slots=[(2, 1, 0)]), {}, ['replace.slots', '(2, 1, 0)', '(stage, index) pair']),
    'slots as string': (dict(slots='2.1'), {}, ["replace.slots='2.1'", 'a list of (stage, index) pairs']),
    'slots empty': (dict(slots=[]), {}, ['replace.slots=[]', 'a list of (stage, index) pairs']),
    'slot of floats': (dict(slots=[(2, 1.0)]), {}, ['replace.slots', '(2, 1.0)', '0..5']),
    'slot frozen': (dict(slots=[(0, 1)]), dict(frozen_stages=1), ['replace.slots', '(0, 1)', FREE]),
    'stage beyond': (dict(stages=(1, 4)), {}, ['replace.stages', '4', '0..3']),
    'stages a number': (dict(stages=2), {}, ['replace.stages=2', 'a tuple of stages in 0..3']),
    'stages empty': (dict(stages=()), {}, ['replace.stages=()', 'a tuple of stages in 0..3']),
    'stage frozen': (dict(stages=(0, 1)), dict(frozen_stages=1), ['replace.stages=(0, 1)', FREE, '[1, 2, 3]']),
    'every and slots': (dict(every=2, slots=[(2, 1)]), {}, ['replace.every=2', 'replace.slots=[(2, 1)]', 'one of']),
    'stages and slots': (dict(stages=[2], slots=[(2, 1)]), {}, ['replace.stages=[2]', 'replace.slots=[(2, 1)]']),
    'unknown mode': (dict(mode='fused'), {}, ["replace.mode='fused'", MODES]),
    'mode no string': (dict(mode=['fuse']), {}, ["replace.mode=['fuse']", MODES]),
    'unknown operator': (dict(operator='light'), {}, ["replace.operator='light'", OPERATORS]),
    'unknown fusion': (dict(fusion='sum'), {}, ["replace.fusion.type='sum'", TRANSFORMS]),
    'unknown fusion type': (dict(fusion=dict(type='sum')), {}, ["replace.fusion.type='sum'", TRANSFORMS]),
    'fusion no dict': (dict(fusion=4), {}, ['replace.fusion=4', 'a dict such as', "'type': "]),
    'fusion of another type': (
        dict(fusion=dict(type='channel', groups=4)),
        {},
        ['replace.fusion.groups=4', "type='channel' takes 'type' only"],
    ),
    'fusion with a wrong key': (
        dict(fusion=dict(type='mix', rank=4)),
        {},
        ['replace.fusion.rank=4', "type='mix' takes 'type' and 'groups' only"],
    ),
    'groups=0': (dict(fusion=dict(type='mix', groups=0)), {}, ['replace.fusion.groups=0', 'of at least 1']),
    'groups a string': (dict(fusion=dict(type='mix', groups='4')), {}, ["replace.fusion.groups='4'", 'of at least 1']),
    'detach a string': (dict(detach='no'), {}, ["replace.detach='no'", 'True or False']),
    'conv on bottleneck': (
        dict(operator='conv'),
        {},
        ["replace.operator='conv'", 'bottleneck', "'separable', 'half' or 'full'"],
    ),
    'full with dcn': (dict(operator='full'), DCN, ["replace.operator='full'", 'dcn', 'a light operator such as']),
    'full with plugins': (
        dict(operator='full'),
        PLUGINS,
        ["replace.operator='full'", 'plugins', 'a light operator such as'],
    ),
    'full with norms without weights': (
        dict(operator='full'),
        dict(norm_cfg=dict(type='IN')),
        ["replace.operator='full'", 'affine', 'InstanceNorm2d', "operator='separable'"],
    ),
    'slot in a frozen stage of an HRNet': (
        dict(slots=[(2, 1)]),
        dict(HRNET, type='RepLHRNet', _scope_='mmseg', frozen_stages=3),
        ['replace.slots', '(2, 1)', 'stage 2 is frozen (frozen_stages)'],
    ),
    'all stages frozen': (
        dict(),
        dict(frozen_stages=4),
        ['replace.every=2', 'ResNet', '(3, 4, 6, 3)', 'frozen stages [0, 1, 2, 3]', 'stages that are trained'],
    ),
    'Trident': (
        dict(),
        TRIDENT,
        ["type='RepLTridentResNet'", 'lists of branches', "use the stock type 'TridentResNet'"],
    ),
    'DetectoRS': (
        dict(),
        dict(type='RepLDetectoRS_ResNet'),
        ["type='RepLDetectoRS_ResNet'", 'second input', "use the stock type 'DetectoRS_ResNet'"],
    ),
    'mlp on a ResNet': (dict(operator='mlp'), {}, ["replace.operator='mlp'", OPERATORS]),
    'separable on a ViT': (dict(operator='separable'), VIT, ["replace.operator='separable'", LAYERS]),
    'conv on a Swin': (dict(operator='conv'), SWIN, ["replace.operator='conv'", LAYERS]),
    'three linear layers': (dict(), dict(VIT, num_fcs=3), ['TransformerEncoderLayer', '3 linear layers', 'num_fcs=2']),
    'three in a BEiT': (dict(operator='mixer'), dict(TOKENS, type='RepLBEiT', num_fcs=3), ['BEiTT', 'num_fcs=2']),
    'batch norm in a ViT': (
        dict(),
        dict(VIT, norm_cfg=dict(type='BN1d')),
        ['TransformerEncoderLayer', 'norm_cfg', 'BatchNorm1d', "dict(type='LN')"],
    ),
    'group norm in a Swin': (
        dict(),
        dict(SWIN, norm_cfg=dict(type='GN', num_groups=2)),
        ['SwinBlock', 'norm_cfg', 'GroupNorm', "dict(type='LN')"],
    ),
    'all layers frozen': (
        dict(),
        dict(VIT, frozen_exclude=['pos_embed']),
        ['replace.every=3', 'VisionTransformer', '(6,)', 'frozen stages [0]'],
    ),
    'slot in frozen layers': (
        dict(slots=[(0, 1)]),
        dict(VIT, frozen_exclude=[]),
        ['replace.slots', '(0, 1)', 'frozen'],
    ),
    'all stages of a Swin frozen': (
        dict(),
        dict(SWIN, frozen_stages=4),
        ['replace.every=3', 'SwinTransformer', '(2, 2, 6, 2)', 'frozen stages [0, 1, 2, 3]'],
    ),
    'first of all layers': (dict(slots=[(0, 0)]), VIT, ['replace.slots', '(0, 0)', 'no kept block precedes it']),
    'full between other layers': (
        dict(operator='full'),
        SVT,
        [
            "replace.operator='full'",
            'GSAEncoderLayer',
            "'attn.attn.in_proj_weight'",
            'LSAEncoderLayer',
            "'mlp' or 'mixer'",
        ],
    ),
}
if WITH_MMPRETRAIN:
    CONVNEXT = dict(_scope_='mmpretrain', type='RepLConvNeXt', arch='atto')
    TIMM = dict(_scope_='mmpretrain', type='RepLTIMMBackbone')
    TABLE |= {
        'operator of ConvNeXt': (dict(operator='half'), CONVNEXT, ["replace.operator='half'", "'mlp', 'full'"]),
        'slot of ConvNeXt': (dict(slots=[(2, 6)]), CONVNEXT, ['(2, 6)', 'stage 2 has 6 blocks', '0..5']),
        'operator within timm': (
            dict(operator='half'),
            dict(TIMM, model_name='convnext_atto', features_only=True),
            ["replace.operator='half'", "'mlp', 'full'"],
        ),
        'unknown key within timm': (
            dict(evry=2),
            dict(TIMM, model_name='resnet18'),
            ['replace.evry=2', 'unknown key'],
        ),
    }


def whole(backbone):
    """All settings of a row's backbone."""
    return dict(backbone) if '_scope_' in backbone else R50 | backbone


@pytest.mark.parametrize('case', TABLE)
def test_message(case):
    replace, backbone, named = TABLE[case]
    cfg = ConfigDict({**whole(backbone), 'replace': replace})
    with DefaultScope.overwrite_default_scope('mmdet'), pytest.raises(PlanError) as caught:
        MODELS.build(cfg)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for part in named:
        assert part in message


def snapshot(backbone):
    return {key: value.clone() for key, value in backbone.state_dict().items()}, str(backbone)


@pytest.mark.parametrize('case', [case for case, (replace, *_) in TABLE.items() if isinstance(replace, dict)])
def test_nothing_is_half_done(case):
    """Whatever is refused leaves a built backbone as it was: modules, weights, no plan."""
    replace, settings, _ = TABLE[case]
    settings = whole(settings)
    settings['type'] = settings['type'].removeprefix('RepL')
    with DefaultScope.overwrite_default_scope('mmdet'):
        backbone = MODELS.build(settings)
    weights, text = snapshot(backbone)
    with pytest.raises(PlanError):
        apply_repl(backbone, **replace)
    after, text_after = snapshot(backbone)
    assert text == text_after and plan_of(backbone) is None
    torch.testing.assert_close(after, weights, rtol=0, atol=0, equal_nan=True)  # Trident's weights are uninitialized


def test_applied_twice():
    from mmdet.models import ResNet

    backbone = ResNet(18, base_channels=8)
    apply_repl(backbone, stages=[1])
    _, text = snapshot(backbone)
    with pytest.raises(PlanError, match='RepL was applied to this ResNet before: build a new one') as caught:
        apply_repl(backbone, stages=[2])
    assert len(str(caught.value).splitlines()) == 1 and text == str(backbone)


@pytest.mark.parametrize('module', [torch.nn.Conv2d(3, 3, 1), torch.nn.Sequential()], ids=['Conv2d', 'Sequential'])
def test_unsupported_class(module):
    with pytest.raises(PlanError, match='RepL does not know the backbone .*: expected one of ResNet, .*ResNeSt'):
        apply_repl(module)


def test_another_mm_backbone():
    from mmdet.models import HourglassNet

    small = dict(downsample_times=1, stage_channels=(8, 8), stage_blocks=(1, 1), feat_channel=8)
    with pytest.raises(PlanError, match='RepL does not know the backbone HourglassNet: expected one of ResNet'):
        apply_repl(HourglassNet(num_stacks=1, **small))


def test_no_slots_in_stages_of_one_block():
    from mmdet.models import RegNet

    with pytest.raises(PlanError) as caught:
        apply_repl(RegNet('regnetx_400mf'), stages=[0])
    assert 'replace.stages=(0,) selects no block of RegNet with (1, 2, 7, 12) blocks per stage' in str(caught.value)
    assert 'at least 2 blocks' in str(caught.value)


def test_unknown_keyword_of_the_plain_call():
    with pytest.raises(PlanError, match=r'replace\.operater=.*: unknown key; expected one of every, stages'):
        apply_repl(torch.nn.Identity(), operater='full')
