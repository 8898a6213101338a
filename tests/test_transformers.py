"""What is particular to transformers: operators against the stock modules, stochastic depth, layer-wise lr decay."""

import copy
import importlib.util
import sys
from pathlib import Path

import mmcv
import mmseg
import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from small import STILL, TRANSFORMERS, blocks, build, images
from torch import nn

import repl_mm
from repl_mm import config, cost

CLOSE = dict(rtol=1e-5, atol=1e-6)  # coefficients such as 1 / 30 are rounded to single precision

# name: settings without stochastic depth, the place of a layer between two layers of its own width
INNER = {name: (settings, (0, 2) if 'img_size' in settings else (1, 1)) for name, settings in TRANSFORMERS.items()}
INNER |= {name: (dict(TRANSFORMERS[name], **STILL), (2, 1)) for name in ('swin', 'mmseg swin', 'pcpvt', 'svt')}


def random_stock(settings):
    """A stock backbone in double precision and in eval mode; norms, biases and tables are drawn at random, too."""
    torch.manual_seed(0)
    backbone = build(settings).double()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.5 if parameter.dim() == 1 else 0.05))
    backbone.eval()  # mm's eval() returns nothing
    return backbone


def replaced(stock, place, **replace):
    """A computing layer in a copy of a backbone, and its input in that backbone."""
    backbone = copy.deepcopy(stock)
    repl_mm.apply_repl(backbone, slots=[place], **replace)
    layer = blocks(backbone)[place]
    inputs = []
    handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args))
    with torch.no_grad():
        backbone(images().double())
    handle.remove()
    return layer, inputs[0]


def neighbours(backbone, place):
    """The layers before and behind a place."""
    stage, index = place
    return [blocks(backbone)[stage, i] for i in (index - 1, index + 1)]


# ---- the light operators are sub-networks of the neighbours, evaluated by the stock modules -------------------------


def keep_inputs(linear, channels):
    """Let a linear layer or 1x1 convolution see only some of its input channels, and add no bias."""
    for channel in set(range(linear.weight.shape[1])) - set(channels):
        nn.init.zeros_(linear.weight[:, channel])
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def run_mlp(block, x, shape):
    """The stock branch of the MLP, without the shortcut."""
    normed = block.norm2(x)
    if 'MixFFN' in type(block.ffn).__name__:
        out = block.ffn(normed, *shape, identity=torch.zeros_like(x))
    else:
        out = block.ffn(normed, identity=torch.zeros_like(x))
    return out * block.gamma_2 if hasattr(block, 'gamma_2') else out


@torch.no_grad()
def mlp_of_both(stock, place, x, shape, ratio=0.25):
    """A tenth of what the neighbours' MLPs give with the hidden units that a computing layer takes from them.

    Of every ``1 / ratio`` hidden units it takes the first, in turn from the preceding and the succeeding layer.
    """
    total = 0
    for turn, block in enumerate(map(copy.deepcopy, neighbours(stock, place))):
        last = [m for m in block.ffn.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
        keep_inputs(last, range(round(turn / ratio), last.weight.shape[1], round(2 / ratio)))
        total = total + run_mlp(block, x, shape)
    return 0.1 * total


@torch.no_grad()
@pytest.mark.parametrize('ratio', [0.25, 0.5])
@pytest.mark.parametrize('name', INNER)
def test_mlp_starts_as_a_part_of_both_neighbours_mlps(name, ratio):
    settings, place = INNER[name]
    stock = random_stock(settings)
    layer, (x, *shape) = replaced(stock, place, operator='mlp', ratio=ratio)
    wanted = mlp_of_both(stock, place, x, shape, ratio)
    assert wanted.norm() > 1e-3 * x.norm()
    torch.testing.assert_close(layer(x, *shape) - x, wanted, **CLOSE)


def pay_equal_attention(block):
    """Make queries and keys zero, and what is added to their products."""
    attn = getattr(block.attn, 'w_msa', block.attn)
    inner = attn if hasattr(attn, 'qkv') else attn.attn
    for name, parameter in inner.named_parameters():
        if name in ('qkv.weight', 'qkv.bias', 'in_proj_weight', 'in_proj_bias'):
            nn.init.zeros_(parameter[: 2 * len(parameter) // 3])
        elif name in ('q_bias', 'relative_position_bias_table'):
            nn.init.zeros_(parameter)
    return inner.proj if hasattr(inner, 'proj') else inner.out_proj


def run_attention(block, x, shape):
    """The stock branch of the attention, without the shortcut."""
    normed = block.norm1(x)
    if hasattr(block.attn, 'w_msa'):
        block.attn.shift_size = 0  # both neighbours see one window, that of the whole map
    adds_input = hasattr(block.attn, 'attn')
    out = block.attn(normed, *shape, **(dict(identity=torch.zeros_like(x)) if adds_input else {}))
    return out * block.gamma_1 if hasattr(block, 'gamma_1') else out


@torch.no_grad()
def attention_of_both(stock, place, x, shape):
    """A tenth of what the neighbours' attention gives if all tokens are attended alike, half of the channels each."""
    total = 0
    for turn, block in enumerate(map(copy.deepcopy, neighbours(stock, place))):
        keep_inputs(pay_equal_attention(block), range(turn, x.shape[2], 2))
        total = total + run_attention(block, x, shape)
    return 0.1 * total


# where attention sees the whole map: one window, no convolution in front of keys and values
WHOLE = {'vit': {}, 'beit': {}, 'mae': {}, 'swin': {}}
WHOLE |= dict(mit=dict(sr_ratios=[1] * 4), pvt=dict(sr_ratios=[1] * 4), pcpvt=dict(sr_ratios=[1] * 3))


@torch.no_grad()
@pytest.mark.parametrize('name', WHOLE)
def test_mixer_starts_as_a_part_of_both_neighbours_with_equal_attention(name):
    settings, place = INNER[name]
    stock = random_stock(dict(settings, **WHOLE[name]))
    layer, (x, *shape) = replaced(stock, place, operator='mixer')
    mixed = attention_of_both(stock, place, x, shape)
    assert mixed.norm() > 1e-3 * x.norm()
    torch.testing.assert_close(mixed, mixed[:, :1].expand_as(mixed), **CLOSE)  # the same for every token
    torch.testing.assert_close(layer(x, *shape) - x, mlp_of_both(stock, place, x, shape) + mixed, **CLOSE)


# ---- 'full' is a layer of the stock backbone ------------------------------------------------------------------------


def last_operators(block):
    """The output projections of a layer's attention and MLP."""
    attn = getattr(block.attn, 'w_msa', block.attn)
    inner = attn if hasattr(attn, 'qkv') else attn.attn
    mlp = [m for m in block.ffn.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return inner.proj if hasattr(inner, 'proj') else inner.out_proj, mlp[-1]


FULL = {
    'mean of equal layers': (True, dict(fusion='scalar')),
    'parts of equal layers': (True, dict(fusion='mix')),
    'preceding layer': (False, dict(mode='share')),
}


@torch.no_grad()
@pytest.mark.parametrize('case', FULL)
@pytest.mark.parametrize('name', [name for name in INNER if name != 'svt'])
def test_full_has_the_function_of_its_neighbours(name, case):
    """The replaced layer's own window shift stays: the stock layer with that shift and the neighbour's weights.

    Fused, its last operators start at a tenth of their size.
    """
    equal, replace = FULL[case]
    settings, place = INNER[name]
    stock = random_stock(settings)
    preceding, succeeding = neighbours(stock, place)
    if equal:
        succeeding.load_state_dict(preceding.state_dict())
    layer, inputs = replaced(stock, place, operator='full', **replace)
    wanted = blocks(stock)[place]
    assert not torch.allclose(layer(*inputs), wanted(*inputs))
    wanted.load_state_dict(preceding.state_dict())
    for parameter in [p for operator in last_operators(wanted) for p in operator.parameters()] if equal else ():
        parameter.mul_(0.1)
    torch.testing.assert_close(layer(*inputs), wanted(*inputs), **CLOSE)
    if 'swin' in name:
        assert wanted.attn.shift_size > 0 == preceding.attn.shift_size
        assert not torch.allclose(layer(*inputs), preceding(*inputs))


# ---- stochastic depth, dropout, recomputation -----------------------------------------------------------------------

DEEP = ('vit', 'beit', 'swin', 'mit', 'pvtv2', 'pcpvt', 'svt')


def dropping(name, rate, place):
    """A computing layer, its input, and the rate of stochastic depth that its place should have."""
    backbone = random_stock(dict(TRANSFORMERS[name], drop_path_rate=rate))
    layers = list(blocks(backbone))
    layer, inputs = replaced(backbone, place, operator='mixer')
    return layer, inputs, torch.linspace(0, rate, len(layers))[layers.index(place)].item()


@torch.no_grad()
@pytest.mark.parametrize('name', DEEP)
def test_a_computing_layer_drops_its_branch_at_the_rate_of_its_place(name):
    layer, (x, *shape), rate = dropping(name, 0.95, list(blocks(build(TRANSFORMERS[name])))[-3])
    x = x[:1].expand(200, -1, -1)
    branch = layer(x, *shape) - x
    assert (branch.flatten(1).norm(dim=1) > 0).all()  # never in eval mode
    layer.train()
    torch.manual_seed(0)
    found = layer(x, *shape) - x
    kept = found.flatten(1).norm(dim=1) > 0
    assert abs(kept.double().mean() - (1 - rate)) < 4 * (rate * (1 - rate) / len(x)) ** 0.5
    torch.testing.assert_close(found[kept], branch[kept] / (1 - rate), **CLOSE)


@pytest.mark.parametrize(('name', 'settings'), [('vit', dict(drop_rate=0.3)), ('mit', dict(drop_rate=0.3))])
def test_a_computing_layer_drops_numbers_at_the_rate_of_its_mlp(name, settings):
    settings, place = dict(TRANSFORMERS[name], **settings), INNER[name][1]
    layer, (x, *shape) = replaced(random_stock(settings), place, operator='mlp')
    branch = layer(x, *shape) - x
    layer.train()
    torch.manual_seed(0)
    found = layer(x, *shape) - x
    kept = found != 0
    assert abs(kept.double().mean() - 0.7) < 4 * (0.21 / kept.numel()) ** 0.5
    torch.testing.assert_close(found[kept], branch[kept] / 0.7, **CLOSE)


@pytest.mark.parametrize('large', [0, 2**20])
@pytest.mark.parametrize('name', ['vit', 'beit', 'swin', 'mit'])
def test_recomputation_gives_the_gradients_of_the_plain_branch(name, large, monkeypatch):
    monkeypatch.setattr(
        sys.modules['repl_mm.computing_layers.base'], 'LARGE', large
    )  # 0: the synthesis is recomputed as well
    layer, (x, *shape), _ = dropping(name, 0.5, INNER[name][1])
    layer.train()
    x = x[:1].expand(8, -1, -1).clone().requires_grad_()
    variables = [x, *layer.parameters(), *(p for neighbour in layer.neighbours for p in neighbour.block.parameters())]
    found = []
    for call in (layer, lambda x, *shape: x + layer.drop(layer.branch(x, layer.weights(), *shape))):
        torch.manual_seed(1)
        found.append(torch.autograd.grad(call(x, *shape).square().sum(), variables, allow_unused=True))
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, **CLOSE)
    assert sum(grad is not None and bool(grad.any()) for grad in found[0]) > 2 + len(list(layer.parameters()))


# ---- layer-wise learning rates --------------------------------------------------------------------------------------


def parameter_groups(backbone, constructor, paramwise):
    """Learning rate, weight decay and group by name of every parameter of a segmentor."""
    head = dict(type='FCNHead', in_channels=16, in_index=1, channels=8, num_convs=1, num_classes=3)
    model = dict(type='EncoderDecoder', backbone=backbone, decode_head=head)
    wrapper = dict(optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05), constructor=constructor)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(model)
        groups = build_optim_wrapper(model, dict(wrapper, paramwise_cfg=paramwise)).optimizer.param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert sum(len(group['params']) for group in groups) == len(names)
    return {
        names[id(p)]: (group['lr'], group['weight_decay'], group['group_name'])
        for group in groups
        for p in group['params']
    }


@pytest.mark.parametrize('replace', [dict(slots=[(0, 2), (0, 5)]), dict(slots=[(0, 2), (0, 5)], operator='full')])
@pytest.mark.parametrize('decay', ['decay_rate', 'layer_decay_rate'])
@pytest.mark.parametrize('name', ['beit', 'mae'])
def test_layer_decay_gives_computing_layers_the_rate_of_their_place(name, decay, replace):
    constructor = dict(
        decay_rate='LearningRateDecayOptimizerConstructor', layer_decay_rate='LayerDecayOptimizerConstructor'
    )[decay]
    paramwise = {decay: 0.5, 'num_layers': 6} | (dict(decay_type='layer_wise') if decay == 'decay_rate' else {})
    settings = TRANSFORMERS[name]
    wanted = parameter_groups(settings, constructor, dict(paramwise))
    settings = dict(settings, type=f'RepL{settings["type"]}', replace=replace)
    found = parameter_groups(settings, constructor, dict(paramwise))
    new = {key for key in found if '.repl.' in key}
    gone = {key for key in wanted if key.startswith(('backbone.layers.2.', 'backbone.layers.5.'))}
    assert {key: found[key] for key in found if key not in new} == {k: v for k, v in wanted.items() if k not in gone}
    rates = {'backbone.layers.2': 0.5**4, 'backbone.layers.5': 0.5}  # the head has 1, the last layer half of it
    assert {key.partition('.repl.')[0] for key in new} == rates.keys()
    assert all(found[key][0] == rates[key.partition('.repl.')[0]] for key in new)
    assert {wanted[key][0] for key in gone if key.startswith('backbone.layers.2')} == {0.5**4}


@pytest.mark.parametrize(('scope', 'name'), [('mmseg', 'vit'), ('mmseg', 'mmseg swin'), ('mmdet', 'swin')])
def test_layer_decay_refuses_what_it_refuses_without_repl(scope, name):
    """mmseg's constructor knows ConvNeXt, BEiT and MAE only, mmdet's ConvNeXt only."""
    settings = TRANSFORMERS[name]
    constructor = f'{scope}.LearningRateDecayOptimizerConstructor'
    paramwise = dict(decay_rate=0.5, num_layers=6, decay_type='layer_wise')
    for backbone in (settings, dict(settings, type=f'RepL{settings["type"]}', replace=dict())):
        with pytest.raises(NotImplementedError):
            parameter_groups({'_scope_': 'mmdet', **backbone}, constructor, paramwise)


# ---- frozen layers --------------------------------------------------------------------------------------------------


def places(backbone):
    return [(slot.stage, slot.index) for slot in repl_mm.plan_of(backbone).slots]


@pytest.mark.parametrize('name', ['swin', 'mmseg swin'])
def test_frozen_stages_keep_their_blocks(name):
    backbone = build(TRANSFORMERS[name], type='RepLSwinTransformer', frozen_stages=2, replace=dict())
    assert places(backbone) == [(2, 1), (3, 1)]
    assert repl_mm.plan_of(backbone).notes == ('frozen stages keep all their blocks: 0, 1',)


@pytest.mark.parametrize(
    ('name', 'settings', 'slots', 'preceding'),
    [
        ('swin', dict(frozen_stages=2), [(2, 0)], 'stages.1.blocks.1.'),
        ('vit', dict(frozen_exclude=['layers.3']), [(0, 2)], 'layers.1.'),
        ('vit', dict(frozen_exclude=['layers.3']), [(0, 5)], 'layers.4.'),
    ],
)
@pytest.mark.parametrize('operator', ['mlp', 'mixer', 'full'])
def test_a_computing_layer_beside_frozen_blocks_is_trained_and_they_are_not(
    name, settings, slots, preceding, operator
):
    settings = dict(TRANSFORMERS[name], **settings)
    stock = build(settings)
    stock.train()
    frozen = {key for key, p in stock.named_parameters() if not p.requires_grad}
    assert any(key.startswith(preceding) for key in frozen)
    backbone = build(settings, type=f'RepL{settings["type"]}', replace=dict(slots=slots, operator=operator))
    backbone.train()
    sum(out.square().mean() for out in backbone(images())).backward()
    for key, parameter in backbone.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None) == (key not in frozen), key
    assert any('.repl.' in key for key, _ in backbone.named_parameters())


# ---- initialization -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('operator', ['mlp', 'mixer', 'full'])
def test_mae_rescales_the_kept_layers_as_without_repl(operator):
    settings = TRANSFORMERS['mae']
    stock, backbone = (
        random_stock(dict(settings, type=kind, **more))
        for kind, more in (('MAE', {}), ('RepLMAE', dict(replace=dict(operator=operator, slots=[(0, 2)]))))
    )
    state = {key: value for key, value in stock.state_dict().items() if not key.startswith('layers.2.')}
    backbone.load_state_dict(state, strict=False)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    for model in (stock, backbone):
        model.fix_init_weight()
    for key, value in backbone.state_dict().items():
        torch.testing.assert_close(value, stock.state_dict()[key] if key in state else before[key], rtol=0, atol=0)
    assert not torch.equal(backbone.layers[3].attn.proj.weight, before['layers.3.attn.proj.weight'])


@pytest.mark.real_data
def test_real_deit_weights_load_by_the_converter_of_mmseg(shared_data, tmp_path):
    """DeiT-tiny on photographs: removing 4 of 12 layers changes its features by much more than converting them."""
    path = Path(mmseg.__file__).parent / '.mim' / 'tools' / 'model_converters' / 'vit2mmseg.py'
    spec = importlib.util.spec_from_file_location('vit2mmseg', path)
    converter = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(converter)
    weights = torch.load(shared_data / 'weights' / 'deit_tiny_patch16_224_from_mat.pth', weights_only=True)['model']
    torch.save(converter.convert_vit(weights), tmp_path / 'deit.pth')

    settings = dict(_scope_='mmseg', type='VisionTransformer', embed_dims=192, num_heads=3, qkv_bias=True)
    settings.update(norm_cfg=dict(type='LN', eps=1e-6), patch_bias=True, out_indices=(5, 11))
    settings.update(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'deit.pth')))
    photos = [
        mmcv.imread(p, channel_order='rgb') for p in sorted((shared_data / 'imagenet_sample/images').glob('*/*'))[:3]
    ]
    batch = torch.stack([torch.from_numpy(photo[:224, :224].copy()).permute(2, 0, 1).float() for photo in photos])
    batch = (batch - torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)) / 57.6
    arms = {name: dict(type='RepLVisionTransformer', replace=dict(operator=name)) for name in ('mlp', 'mixer')}
    arms |= dict(stock={}, removed=dict(type='RepLVisionTransformer', replace=dict(mode='remove')))
    outputs = {}
    for name, arm in arms.items():
        backbone = build(settings, **arm)
        backbone.init_weights()
        backbone.eval()
        torch.testing.assert_close(backbone.pos_embed.data, weights['pos_embed'], rtol=0, atol=0)
        for index in range(12) if name == 'stock' else (0, 2, 3, 5, 6, 8, 9, 11):
            layer = backbone.layers[index]
            for ours, theirs in (
                (layer.ln2.bias, 'norm2.bias'),
                (layer.attn.attn.in_proj_weight, 'attn.qkv.weight'),
                (layer.attn.attn.out_proj.bias, 'attn.proj.bias'),
                (layer.ffn.layers[1].weight, 'mlp.fc2.weight'),
            ):
                torch.testing.assert_close(ours.data, weights[f'blocks.{index}.{theirs}'], rtol=0, atol=0)
        with torch.no_grad():
            outputs[name] = backbone(batch)[-1]
    far = (outputs['stock'] - outputs['removed']).norm()
    for operator in ('mlp', 'mixer'):
        assert (outputs[operator] - outputs['removed']).norm() < 0.3 * far


# ---- default plans and what they save -------------------------------------------------------------------------------

DEFAULTS = {
    'ViT-B': (
        dict(_scope_='mmseg', type='VisionTransformer', img_size=(512, 512), out_indices=(2, 5, 8, 11)),
        [(0, 1), (0, 4), (0, 7), (0, 10)],
    ),
    'Swin-T': (dict(_scope_='mmseg', type='SwinTransformer'), [(0, 1), (1, 1), (2, 1), (2, 4), (3, 1)]),
}


@pytest.mark.parametrize('name', DEFAULTS)
def test_default_plan_keeps_most_of_the_saving(name):
    """At 512x512: most of what removing the same layers saves."""
    settings, slots = DEFAULTS[name]
    repl = dict(settings, type=f'RepL{settings["type"]}', replace=dict())
    backbones = [config.build(c, 'mmseg') for c in (settings, repl, config.repl_config(settings, mode='remove'))]
    assert places(backbones[1]) == slots
    before, after, limit = (cost.measure(backbone, cost.ImageInput((512, 512))) for backbone in backbones)
    assert cost.share_kept(after, before, limit, 'flops') >= 0.75
    assert cost.share_kept(after, before, limit, 'activation_bytes') >= 0.7
    assert after.params <= 0.7 * before.params


def test_computing_layers_are_built_where_the_backbone_is():
    vit = build(TRANSFORMERS['vit']).double()
    repl_mm.apply_repl(vit)
    assert {p.dtype for p in vit.parameters()} == {torch.float64}
    assert vit(images().double())[0].dtype == torch.float64
