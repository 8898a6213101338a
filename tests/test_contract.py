"""The contract of families: what is registered has all of it, and a backbone is served by its structure."""

import types

import foreign
import pytest
import torch
from mmengine.registry import MODELS
from small import BACKBONES, LANGUAGE, MMPRETRAIN, STOCK, blocks, build, images
from torch import nn

import repl_mm
from repl_mm.families import FAMILIES, find_family, resnet, vit
from repl_mm.families.contract import check_family

SHIPPED = tuple(FAMILIES)  # before any test adds its own

# ---- registered as a whole, or not at all -------------------------------------------------------------------------


def family(**changes) -> types.SimpleNamespace:
    """The family of ResNets for a class of another name; a change to None leaves something out."""
    whole = vars(resnet) | dict(BACKBONES=('OtherNet',), REFUSED=dict(OtherTwin='it is the twin')) | changes
    return types.SimpleNamespace(**{name: value for name, value in whole.items() if value is not None})


def registries() -> list:
    """mmengine's registry of models and those of all packages."""
    return [MODELS, *MODELS.children.values()]


@pytest.fixture
def registered():
    """Takes the types of :func:`family` and whatever was put into ``FAMILIES`` away again."""
    before = list(FAMILIES)
    yield
    FAMILIES[:] = before
    for registry in registries():
        for name in traces():
            registry.module_dict.pop(name, None)


def traces() -> list[str]:
    """What the registries know of :func:`family`."""
    return [
        name for registry in (MODELS, *MODELS.children.values()) for name in registry.module_dict if 'Other' in name
    ]


@pytest.mark.parametrize('module', FAMILIES, ids=lambda module: module.__name__)
def test_our_own_families_keep_it(module):
    check_family(module)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        *(({name: None}, f'has no {name}: see') for name in ('BACKBONES', 'REFUSED', 'OPERATORS', 'DEFAULTS')),
        *(({name: None}, f'has no {name}: see') for name in ('misfit', 'stages', 'frozen', 'openers', 'build')),
        (dict(REFUSED=None, build=None), 'has no REFUSED, build'),
        (dict(BACKBONES='OtherNet'), "BACKBONES='OtherNet' is not valid: expected a tuple of names"),
        (dict(BACKBONES=()), r'BACKBONES=\(\) is not valid'),
        (dict(BACKBONES=(nn.Module,)), 'BACKBONES=.* is not valid'),
        (dict(REFUSED=('OtherTwin',)), 'REFUSED=.* is not valid: expected a dict of names with reasons'),
        (dict(REFUSED=dict(OtherTwin=None)), 'REFUSED=.* is not valid'),
        (dict(OPERATORS='conv'), "OPERATORS='conv' is not valid"),
        (dict(DEFAULTS=dict(every=2, ratio=0.5)), 'DEFAULTS=.* expected every, ratio and fusion'),
        (dict(DEFAULTS=dict(every=2, ratio=0.5, fusion='mix', lr=1)), 'DEFAULTS=.* expected every, ratio and fusion'),
        (dict(DEFAULTS=dict(every=0, ratio=0.5, fusion=dict(type='mix'))), 'DEFAULTS=.*every=0'),
        (dict(DEFAULTS=dict(every=2, ratio=0.5, fusion=dict(type='sum'))), "DEFAULTS=.*'sum'"),
        (dict(DEFAULTS=dict(every=2, ratio=0.5, fusion='scalar')), 'DEFAULTS=.* is not valid'),
        (dict(stages=7), 'stages is not valid: expected a function of 1 arguments'),
        (dict(build=lambda plan, block: None), 'build is not valid: expected a function of 3 arguments'),
        (dict(finish=lambda: None), 'finish is not valid: expected a function of 1 arguments'),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_registered(changes, words, registered):
    before = list(FAMILIES)
    with pytest.raises(TypeError, match=words) as raised:
        repl_mm.register_family(family(**changes))
    assert '\n' not in str(raised.value)
    assert before == FAMILIES and traces() == []

    mended = family()
    repl_mm.register_family(mended)
    assert FAMILIES[0] is mended and FAMILIES[1:] == before
    with pytest.raises(repl_mm.PlanError, match="type='RepLOtherTwin' is not possible: it is the twin"):
        MODELS.build(dict(type='RepLOtherTwin'))


@pytest.mark.parametrize(
    'changes',
    [
        dict(BACKBONES=('OtherNet', 'ResNet')),
        dict(BACKBONES=('OtherNet', 'OtherTwin')),
        dict(REFUSED=dict(TridentResNet='it is there')),
    ],
)
def test_a_type_that_exists_is_named_and_nothing_is_registered(changes, registered):
    before = list(FAMILIES)
    with pytest.raises(KeyError, match='exists already'):
        repl_mm.register_family(family(**changes))
    assert before == FAMILIES and traces() == []
    repl_mm.register_family(family())
    with pytest.raises(KeyError, match="'RepLOtherNet' exists already"):
        repl_mm.register_family(family())
    assert len(FAMILIES) == len(before) + 1


# ---- served by structure ------------------------------------------------------------------------------------------


def test_every_served_class_has_a_row_in_the_table():
    served = {name for module in SHIPPED for name in module.BACKBONES}
    assert served == {settings['type'] for settings in (STOCK | MMPRETRAIN | LANGUAGE).values()}
    assert {settings['type'] for settings, _ in BACKBONES.values()} <= served


@pytest.mark.parametrize('name', foreign.UNFIT)
def test_a_served_name_with_another_structure_is_refused_in_one_line(name):
    backbone = foreign.UNFIT[name]()
    before = dict(backbone.state_dict())
    with pytest.raises(repl_mm.PlanError, match='is built otherwise: it has no (layers|stages); expected') as raised:
        repl_mm.apply_repl(backbone)
    assert '\n' not in str(raised.value) and type(backbone).__name__ in str(raised.value)
    assert list(backbone.state_dict()) == list(before)
    assert backbone(foreign.images()).isfinite().all()


REPLACE = [dict(), dict(operator='full'), dict(mode='remove'), dict(mode='own')]


@pytest.mark.parametrize('replace', REPLACE, ids=str)
@pytest.mark.parametrize('name', foreign.FIT)
def test_what_is_built_as_timm_builds_it_trains(name, replace):
    torch.manual_seed(0)
    backbone = foreign.FIT[name]()
    assert len(repl_mm.apply_repl(backbone, every=2, **replace).slots) in (2, 3)
    backbone(foreign.images()).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())
    backbone.eval()
    with torch.no_grad():
        before = backbone(foreign.images())
        repl_mm.merge(backbone)
        torch.testing.assert_close(backbone(foreign.images()), before)


def test_norms_behind_attention_are_refused():
    backbone = foreign.timm_vit()
    backbone.blocks[2].__class__ = type('ResPostBlock', (foreign.TimmBlock,), {})
    with pytest.raises(repl_mm.PlanError, match=r'blocks\.2 \(ResPostBlock\) has no norms in front of its attention'):
        repl_mm.apply_repl(backbone)
    backbone = foreign.timm_vit()
    backbone.blocks[3].mlp.norm = nn.LayerNorm(64)
    with pytest.raises(repl_mm.PlanError, match=r'blocks\.3 \(TimmBlock\) has no mlp without a norm'):
        repl_mm.apply_repl(backbone)


@pytest.mark.parametrize('replace', REPLACE, ids=str)
@pytest.mark.parametrize('block', [foreign.BasicBlock, foreign.Bottleneck])
def test_torchvisions_resnet_trains(block, replace):
    torch.manual_seed(0)
    stock, backbone = (foreign.ResNet(block, (3, 4, 3, 2)) for _ in range(2))
    assert len(repl_mm.apply_repl(backbone, **replace).slots) == 4
    for model in (stock, backbone):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        losses = []
        for _ in range(8):
            loss = nn.functional.cross_entropy(model(foreign.images()), torch.tensor([1, 3]))
            optimizer.zero_grad()
            loss.backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0], losses


# the last block or layer of a stage, what is taken from it, and how it is called in the message
TAKEN = [
    ('r18', (1, 1), 'conv2', r'layer2\.1 \(BasicBlock\) has no conv2'),
    ('r50', (3, 2), 'conv1', r'layer4\.2 \(Bottleneck\) has no conv1'),
    ('r50', (0, 2), 'conv2', r'layer1\.2 \(Bottleneck\) has no conv2'),
    ('res2net', (2, 5), 'convs', r'layer3\.5 \(Bottle2neck\) has no conv2'),
    ('vit', (0, 5), 'ffn', r'layers\.5 \(TransformerEncoderLayer\) has no ffn'),
    ('vit', (0, 3), 'ln1', r'layers\.3 \(TransformerEncoderLayer\) has no norm1\.weight'),
    ('beit', (0, 4), 'attn.proj', r'layers\.4 \(BEiTTransformerEncoderLayer\) has no attn\.proj'),
    ('hrnet', (5, 3), 'conv2', r'stage2\.0\.branches\.1\.3 \(BasicBlock\) has no conv2'),
    ('yolox', (1, 2), 'conv2', r'stage2\.1\.blocks\.2 \(DarknetBottleneck\) has no conv2'),
    ('rtmdet', (0, 1), 'conv1', r'stage1\.1\.blocks\.1 \(CSPNeXtBlock\) has no conv1'),
    ('darknet', (2, 7), 'conv2', r'conv_res_block3\.res7 \(ResBlock\) has no conv2'),
    ('mobilenet v2', (2, 2), 'linear_conv', r'layer3\.2 \(InvertedResidual\) has no linear_conv'),
    ('mobilenet v3', (4, 2), 'depthwise_conv', r'layer11 \(InvertedResidualV3\) has no depthwise_conv'),
    ('mscan', (2, 3), 'mlp.dwconv', r'block3\.3 \(MSCABlock\) has no mlp\.dwconv\.weight'),
    ('ddrnet', (2, 1), 'conv1', r'context_branch_layers\.0\.1 \(BasicBlock\) has no conv1'),
    ('swin', (2, 3), 'norm2', r'stages\.2\.blocks\.3 \(SwinBlock\) has no norm2\.weight'),
    ('swin', (1, 1), 'attn.w_msa.qkv', r'stages\.1\.blocks\.1 \(SwinBlock\) has no attn\.qkv'),
    ('mit', (1, 2), 'attn', r'layers\.1\.1\.2 \(TransformerEncoderLayer\) has no attn'),
    ('pvt', (3, 1), 'norm1', r'layers\.3\.1\.2 \(PVTEncoderLayer\) has no norm1\.weight'),
    ('svt', (2, 3), 'ffn', r'layers\.2\.3 \(GSAEncoderLayer\) has no ffn'),
]


@pytest.mark.parametrize(('name', 'place', 'part', 'words'), TAKEN)
def test_every_block_is_looked_at(name, place, part, words):
    backbone = build(STOCK[name])
    assert repl_mm.apply_repl(build(STOCK[name])).slots  # as it is, it is served
    owner, _, attribute = part.rpartition('.')
    delattr(blocks(backbone)[place].get_submodule(owner), attribute)
    with pytest.raises(repl_mm.PlanError, match=f'is built otherwise: {words}.*; expected') as raised:
        repl_mm.apply_repl(backbone)
    assert '\n' not in str(raised.value)


def test_a_stage_that_is_no_list_of_blocks_is_named():
    backbone = foreign.ResNet()
    backbone.layer3 = nn.Identity()
    with pytest.raises(repl_mm.PlanError, match=r'layer3 \(Identity\) is no list of blocks'):
        repl_mm.apply_repl(backbone)
    backbone = nn.Module()
    backbone.__class__ = type('ResNet', (nn.Module,), {})
    with pytest.raises(repl_mm.PlanError, match='it has no layer1'):
        repl_mm.apply_repl(backbone)


class Gated(nn.Module):
    """mmpretrain's and timm's SwiGLU, as in the large DINOv2: an ``ffn`` of two linear layers and no activation."""

    def __init__(self, dim: int = 16, hidden: int = 32):
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x, identity=None):
        gate, value = self.w12(x).chunk(2, -1)
        return (x if identity is None else identity) + self.w3(nn.functional.silu(gate) * value)


def test_gated_mlps_are_refused():
    backbone = build(STOCK['vit'])
    backbone.layers[4].ffn = Gated()
    assert all(out.isfinite().all() for out in backbone(images()))  # the control
    with pytest.raises(repl_mm.PlanError, match=r'layers\.4 .* has no ffn of two layers with an activation'):
        repl_mm.apply_repl(backbone)


def test_layer_norms_without_weights_are_named():
    backbone = build(STOCK['vit'], norm_cfg=dict(type='LN', elementwise_affine=False))
    with pytest.raises(repl_mm.PlanError, match=r'layers\.0 .* has no norm1\.weight'):
        repl_mm.apply_repl(backbone)


def test_a_second_family_may_serve_what_does_not_fit_the_first(registered):
    """Of two families with one class name, each serves what is built its way."""
    unfit = foreign.torchvision_vit()
    repl_mm.register_family(family(BACKBONES=('VisionTransformerOther',)))
    FAMILIES[0].BACKBONES = ('VisionTransformer',)
    FAMILIES[0].misfit = lambda backbone: None if hasattr(backbone, 'encoder') else 'it has no encoder'
    assert find_family(unfit) is FAMILIES[0]
    assert find_family(build(STOCK['vit'])) is vit


def test_a_backbone_with_computing_layers_still_fits():
    backbone = build(dict(STOCK['r18'], type='RepLResNet'))
    assert find_family(backbone) is resnet
    assert all(out.isfinite().all() for out in backbone(images()))
