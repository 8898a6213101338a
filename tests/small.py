"""Small backbones of all families, and a small detector on a few pictures, for tests of what RepL has to survive."""

import pickle
from importlib.util import find_spec
from pathlib import Path

import mmdet
import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope

import repl_mm  # noqa: F401  (registers the builders)
from repl_mm.families import find_family

REPO = Path(__file__).resolve().parent.parent
ONEDL = mmdet.__version__ >= '3.5'
official_stack = pytest.mark.skipif(ONEDL, reason='of the official stack; OneDL does otherwise')
CIFAR_NAMES = ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']

TOKENS = dict(_scope_='mmseg', img_size=64, embed_dims=16, num_layers=6, num_heads=2, out_indices=(1, 5))
SWIN = dict(type='SwinTransformer', embed_dims=8, depths=(2, 2, 4, 2), num_heads=(1, 2, 2, 4), window_size=4)
PYRAMID = dict(embed_dims=8, num_layers=[2, 3, 2, 2], num_heads=[1, 2, 2, 4])
TWINS = dict(_scope_='mmseg', embed_dims=[8, 16, 16], num_heads=[1, 2, 2], depths=[2, 3, 4])
TRANSFORMERS = {
    'vit': dict(TOKENS, type='VisionTransformer'),
    'beit': dict(TOKENS, type='BEiT'),
    'mae': dict(TOKENS, type='MAE', init_values=1.0),
    'swin': SWIN,
    'mmseg swin': dict(SWIN, _scope_='mmseg'),
    'mit': dict(PYRAMID, _scope_='mmseg', type='MixVisionTransformer'),
    'pvt': dict(PYRAMID, type='PyramidVisionTransformer', pretrain_img_size=64),
    'pvtv2': dict(PYRAMID, type='PyramidVisionTransformerV2'),
    'pcpvt': dict(TWINS, type='PCPVT', sr_ratios=[4, 2, 1], mlp_ratios=[4, 4, 4]),
    'svt': dict(TWINS, type='SVT'),
}
VIT = TRANSFORMERS['vit']
PLAIN_R50 = dict(type='ResNet', depth=50, base_channels=8)
D8 = dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
V1C = dict(type='ResNetV1c', depth=50, base_channels=8, **D8)
DCN = dict(type='DCNv2', deform_groups=1, fallback_on_stride=False)
ATTENTION = dict(type='GeneralizedAttention', spatial_range=-1, num_heads=2, attention_type='0010', kv_stride=2)
CONTEXT = dict(type='ContextBlock', ratio=1 / 4)
SOME_STAGES = (False, True, True, False)


def hrnet(depths, channels=8, modules=(1, 2, 1)) -> dict:
    """``extra`` of an HRNet: blocks in the branches of a module, blocks in ``layer1`` first."""
    extra = dict(
        stage1=dict(num_modules=1, num_branches=1, block='BOTTLENECK', num_blocks=depths[:1], num_channels=(8,))
    )
    for number, count in enumerate(modules, 2):
        widths = tuple(channels * 2**i for i in range(number))
        settings = dict(num_modules=count, num_branches=number, block='BASIC')
        extra[f'stage{number}'] = dict(settings, num_blocks=(depths[number - 1],) * number, num_channels=widths)
    return extra


HRNET = dict(type='HRNet', extra=hrnet((3, 4, 3, 2)))
YOLOX = dict(type='CSPDarknet', widen_factor=0.125, deepen_factor=0.33)
RTMDET = dict(type='CSPNeXt', widen_factor=0.125, deepen_factor=0.67)
MOBILE = dict(type='MobileNetV2', widen_factor=0.25)
MSCAN = dict(_scope_='mmseg', type='MSCAN', embed_dims=[8, 16, 16, 32], depths=[2, 3, 4, 2], norm_cfg=dict(type='BN'))
DUAL = dict(_scope_='mmseg', channels=8, ppm_channels=8)
MANY_BLOCKS = {
    'hrnet': HRNET,
    'yolox': YOLOX,
    'rtmdet': RTMDET,
    'mobilenet v2': MOBILE,
    'mobilenet v3': dict(_scope_='mmseg', type='MobileNetV3'),
    'mscan': MSCAN,
    'ddrnet': dict(DUAL, type='DDRNet'),
}

# of mmpretrain, and of timm within it
CONVNEXT = dict(
    _scope_='mmpretrain', type='ConvNeXt', arch=dict(depths=[2, 3, 4, 2], channels=[8, 16, 16, 32]), out_indices=[0, 3]
)
CONVNEXT |= dict(gap_before_final_norm=False, layer_scale_init_value=0.5)
LAYERS = dict(embed_dims=16, num_layers=6, num_heads=2, feedforward_channels=64)
TIMM = dict(_scope_='mmpretrain', type='TIMMBackbone')
MMPRETRAIN = {
    'convnext': CONVNEXT,
    'convnext v2': dict(CONVNEXT, use_grn=True, layer_scale_init_value=0.0, drop_path_rate=0.1, linear_pw_conv=False),
    'convnext frozen': dict(CONVNEXT, frozen_stages=2, with_cp=True),
    'poolformer': dict(
        _scope_='mmpretrain',
        type='PoolFormer',
        arch=dict(layers=[2, 3, 4, 2], embed_dims=[8, 16, 24, 32], layer_scale_init_value=0.5),
        out_indices=[0, 2, 4, 6],
        drop_rate=0.1,
        frozen_stages=1,
    ),
    'mmpretrain vit': dict(
        _scope_='mmpretrain',
        type='VisionTransformer',
        arch=LAYERS,
        img_size=64,
        out_type='featmap',
        layer_scale_init_value=0.5,
    ),
    'mmpretrain swin': dict(
        _scope_='mmpretrain',
        type='SwinTransformer',
        arch=dict(embed_dims=8, depths=[2, 2, 4, 2], num_heads=[1, 2, 2, 4]),
        img_size=64,
        window_size=4,
        pad_small_map=True,
        out_indices=(0, 1, 2, 3),
    ),
    'mmpretrain r50': dict(PLAIN_R50, _scope_='mmpretrain'),
    'timm resnet': dict(TIMM, model_name='resnet26', features_only=True, in_channels=3),
    'timm vit': dict(TIMM, model_name='deit_tiny_patch16_224', img_size=64, embed_dim=16, depth=6, num_heads=2),
    'timm vit features': dict(
        TIMM, model_name='vit_tiny_patch16_224', features_only=True, img_size=64, embed_dim=16, num_heads=2
    ),
    'timm dinov2': dict(
        TIMM,
        model_name='vit_small_patch14_dinov2',
        img_size=64,
        patch_size=16,
        embed_dim=16,
        depth=6,
        num_heads=2,
        drop_path_rate=0.1,
    ),
    'timm dinov3': dict(
        TIMM, model_name='vit_small_patch16_dinov3', img_size=64, embed_dim=32, depth=6, num_heads=2, init_values=0.5
    ),
    'timm swin': dict(
        TIMM,
        model_name='swin_tiny_patch4_window7_224',
        features_only=True,
        img_size=64,
        window_size=4,
        embed_dim=8,
        depths=(2, 2, 4, 2),
        num_heads=(1, 2, 2, 4),
    ),
    'timm convnext': dict(
        TIMM,
        model_name='convnext_atto',
        features_only=True,
        depths=(2, 3, 4, 2),
        dims=(8, 16, 16, 32),
        ls_init_value=0.5,
    ),
}
MMPRETRAIN['mmpretrain swin frozen'] = dict(MMPRETRAIN['mmpretrain swin'], frozen_stages=1)
# of Hugging Face's transformers; they read pictures as texts here, see as_texts
WORDS = dict(_scope_='repl_mm', vocab_size=50, bos_token_id=None, eos_token_id=None)
GPT2 = dict(WORDS, type='GPT2Model', n_embd=16, n_layer=6, n_head=2, n_positions=32)
GPT2 |= dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
LLAMA = dict(WORDS, type='LlamaModel', hidden_size=16, intermediate_size=40, num_hidden_layers=6)
LLAMA |= dict(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32)
LANGUAGE = {
    'gpt2': GPT2,
    'gpt2 drops': dict(GPT2, resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1, n_inner=24, activation_function='relu'),
    'llama': LLAMA,
    'llama with biases': dict(LLAMA, attention_bias=True, mlp_bias=True, head_dim=8, num_key_value_heads=1),
    'mistral': dict(LLAMA, type='MistralModel', sliding_window=5),
    'qwen2': dict(LLAMA, type='Qwen2Model'),
    'qwen3': dict(LLAMA, type='Qwen3Model', head_dim=6),
}
WITH_TRANSFORMERS = find_spec('transformers') is not None
WITH_MMPRETRAIN = find_spec('mmpretrain') is not None and find_spec('timm') is not None

# name: settings; every served class has a row, and a new family adds its own
STOCK = {
    'r18': dict(type='ResNet', depth=18, base_channels=8),
    'r34': dict(type='ResNet', depth=34, base_channels=8),
    'r50': PLAIN_R50,
    'r101': dict(type='ResNet', depth=101, base_channels=8),
    'r152': dict(type='ResNet', depth=152, base_channels=8),
    'frozen': dict(PLAIN_R50, frozen_stages=1, norm_cfg=dict(type='BN', requires_grad=False), norm_eval=True),
    'bn in training': dict(PLAIN_R50, norm_eval=False),
    'two stages': dict(PLAIN_R50, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1)),
    'caffe': dict(PLAIN_R50, style='caffe'),
    'deep stem': dict(PLAIN_R50, deep_stem=True),
    'avg_down': dict(PLAIN_R50, avg_down=True),
    'gn': dict(PLAIN_R50, norm_cfg=dict(type='GN', num_groups=2, requires_grad=True)),
    'gn r18': dict(type='ResNet', depth=18, base_channels=8, norm_cfg=dict(type='GN', num_groups=2)),
    'syncbn': dict(PLAIN_R50, norm_cfg=dict(type='SyncBN', requires_grad=True), norm_eval=False),
    'weight standardization': dict(PLAIN_R50, conv_cfg=dict(type='ConvWS'), norm_cfg=dict(type='GN', num_groups=2)),
    'with_cp': dict(PLAIN_R50, with_cp=True),
    'd8': dict(PLAIN_R50, **D8),
    'dcn': dict(PLAIN_R50, dcn=DCN, stage_with_dcn=SOME_STAGES),
    'attention': dict(PLAIN_R50, plugins=[dict(cfg=ATTENTION, stages=SOME_STAGES, position='after_conv2')]),
    'context': dict(PLAIN_R50, plugins=[dict(cfg=CONTEXT, stages=SOME_STAGES, position='after_conv3')]),
    'v1d': dict(type='ResNetV1d', depth=50, base_channels=8),
    'resnext': dict(type='ResNeXt', depth=50, groups=4, base_width=4, base_channels=8),
    'resnext dcn': dict(
        type='ResNeXt', depth=50, groups=4, base_width=4, base_channels=8, dcn=DCN, stage_with_dcn=SOME_STAGES
    ),
    'regnet 400mf': dict(type='RegNet', arch='regnetx_400mf'),
    'regnet 800mf': dict(type='RegNet', arch='regnetx_800mf'),
    'res2net': dict(type='Res2Net', depth=50, scales=4, base_width=4, base_channels=8),
    'resnest': dict(type='ResNeSt', depth=50, base_channels=8, radix=2, reduction_factor=4),
    'cifar': dict(_scope_='repl_mm', type='CifarResNet', depth=32, base_channels=8, out_indices=(0, 1, 2)),
    'cifar b': dict(_scope_='repl_mm', type='CifarResNet', depth=20, base_channels=8, shortcut='B'),
    'mmseg r50': dict(PLAIN_R50, _scope_='mmseg'),
    'mmseg r18 v1c': dict(_scope_='mmseg', type='ResNetV1c', depth=18, base_channels=8, **D8),
    'mmseg v1c': dict(_scope_='mmseg', contract_dilation=True, **V1C),
    'mmseg multi_grid': dict(_scope_='mmseg', contract_dilation=True, multi_grid=(1, 2, 4), **V1C),
    'mmseg resnest': dict(_scope_='mmseg', type='ResNeSt', depth=50, base_channels=8, **D8),
    **MANY_BLOCKS,
    'hrnet of two blocks': dict(HRNET, extra=hrnet((2, 2, 2, 2)), norm_eval=False),
    'hrnet with_cp': dict(HRNET, with_cp=True, norm_cfg=dict(type='GN', num_groups=2)),
    'mmseg hrnet': dict(HRNET, _scope_='mmseg', norm_cfg=dict(type='SyncBN'), multiscale_output=False),
    'mmseg hrnet frozen': dict(HRNET, _scope_='mmseg', frozen_stages=2, norm_eval=True),
    'yolox depthwise': dict(YOLOX, use_depthwise=True, arch='P6', out_indices=(1, 5), norm_eval=True),
    'yolox frozen': dict(YOLOX, deepen_factor=0.67, frozen_stages=2, act_cfg=dict(type='ReLU')),
    'yolox without norms': dict(YOLOX, norm_cfg=None),
    'rtmdet of one block': dict(RTMDET, deepen_factor=0.167),
    'rtmdet frozen': dict(RTMDET, frozen_stages=1, use_depthwise=True, norm_eval=True),
    'darknet': dict(type='Darknet', frozen_stages=3, norm_eval=False),
    'mobilenet v2 frozen': dict(MOBILE, frozen_stages=3, out_indices=(4, 7), norm_eval=True),
    'mmseg mobilenet v2': dict(
        MOBILE, _scope_='mmseg', strides=(1, 2, 2, 1, 1, 1, 1), dilations=(1, 1, 1, 2, 2, 4, 4)
    ),
    'mobilenet v3 large': dict(
        _scope_='mmseg', type='MobileNetV3', arch='large', out_indices=(1, 3, 16), with_cp=True
    ),
    'mobilenet v3 frozen': dict(_scope_='mmseg', type='MobileNetV3', frozen_stages=5, norm_eval=True),
    'efficientnet': dict(type='EfficientNet', arch='b3', out_indices=(3, 4), drop_path_rate=0.2, frozen_stages=0),
    'mscan drops': dict(MSCAN, drop_rate=0.1, drop_path_rate=0.2, mlp_ratios=[8, 8, 4, 4]),
    'pidnet': dict(DUAL, type='PIDNet', num_stem_blocks=3, num_branch_blocks=4),
    'pidnet s': dict(DUAL, type='PIDNet'),
    **TRANSFORMERS,
    'vit no cls_token': dict(VIT, with_cls_token=False),
    'vit cls_token put out': dict(VIT, output_cls_token=True, out_origin=True),
    'vit norms': dict(VIT, pre_norm=True, patch_norm=True, final_norm=True, drop_rate=0.1, attn_drop_rate=0.1),
    'vit partly frozen': dict(VIT, frozen_exclude=['layers.2', 'layers.5', 'pos_embed']),
    'vit of other pictures': dict(VIT, img_size=48, interpolate_mode='bilinear', patch_size=8),
    'vit with_cp': dict(VIT, with_cp=True, qkv_bias=False, act_cfg=dict(type='ReLU')),
    'beit no bias': dict(TRANSFORMERS['beit'], qv_bias=False, final_norm=True, drop_path_rate=0.1),
    'swin frozen': dict(SWIN, frozen_stages=2, patch_norm=False, qkv_bias=False),
    'swin with_cp': dict(SWIN, with_cp=True, drop_path_rate=0.0),
    'mmseg swin of another ratio': dict(SWIN, _scope_='mmseg', mlp_ratio=2.5),
    'twins of one layer': dict(TRANSFORMERS['pcpvt'], depths=[1, 3, 2], sr_ratios=[4, 2, 1], mlp_ratios=[4, 4, 4]),
    'mit with_cp': dict(TRANSFORMERS['mit'], with_cp=True, drop_rate=0.1),
    'pvt with convolutions': dict(
        TRANSFORMERS['pvt'], use_abs_pos_embed=False, use_conv_ffn=True, norm_after_stage=True
    ),
}

if WITH_MMPRETRAIN:
    STOCK |= MMPRETRAIN
if WITH_TRANSFORMERS:
    STOCK |= LANGUAGE

# as mmdet trains
R18, R50 = (dict(STOCK[name], frozen_stages=1, norm_eval=True) for name in ('r18', 'r50'))
STILL = dict(drop_path_rate=0.0)  # no stochastic depth

# name: (stock backbone, replace): what has to survive whatever is done to a model; a new family adds rows
BACKBONES = {
    'basic': (R18, dict()),
    'basic_conv': (R18, dict(operator='conv', fusion='channel')),
    'bottleneck': (R50, dict(every=3)),
    'adjacent': (R50, dict(slots=[(2, 1), (2, 2), (2, 5), (3, 2)])),
    'full': (R50, dict(stages=(1, 3), operator='full')),
    'detach': (R18, dict(detach=True)),
    'share': (R18, dict(mode='share')),
    'own': (R18, dict(mode='own')),
    'remove': (R18, dict(mode='remove')),
    'v1d': (dict(R18, type='ResNetV1d'), dict(operator='conv', ratio=1)),
    'resnext': (dict(R50, type='ResNeXt', groups=4, base_width=4), dict(stages=(3,), fusion='channel')),
    'vit': (TRANSFORMERS['vit'], dict(operator='mlp')),
    'vit_full': (TRANSFORMERS['vit'], dict(operator='full')),
    'vit_half': (TRANSFORMERS['vit'], dict(operator='half')),
    'beit': (TRANSFORMERS['beit'], dict(operator='mixer')),
    'swin': (dict(SWIN, **STILL, frozen_stages=1), dict(operator='full')),
    'mit': (dict(TRANSFORMERS['mit'], **STILL), dict(operator='mlp')),
    'pvt': (dict(TRANSFORMERS['pvt'], **STILL), dict(operator='mixer', fusion='channel')),
    'hrnet': (HRNET, dict()),
    'yolox': (YOLOX, dict()),
    'rtmdet': (RTMDET, dict(operator='half')),
    'mobilenet_v2': (MOBILE, dict()),
    'mobilenet_v3': (dict(_scope_='mmseg', type='MobileNetV3'), dict(operator='full')),
    'mscan': (MSCAN, dict()),
    'ddrnet': (dict(DUAL, type='DDRNet', channels=16), dict()),
}
if WITH_MMPRETRAIN:
    BACKBONES |= {
        'convnext': (CONVNEXT, dict()),
        'poolformer': (dict(MMPRETRAIN['poolformer'], drop_rate=0.0), dict(operator='full')),
        'timm_vit': (MMPRETRAIN['timm vit'], dict()),
        'timm_swin': (dict(MMPRETRAIN['timm swin'], **STILL), dict(operator='mlp')),
        'timm_convnext': (MMPRETRAIN['timm convnext'], dict(operator='full')),
    }
if WITH_TRANSFORMERS:
    BACKBONES |= {
        'gpt2': (GPT2, dict()),
        'gpt2_full': (GPT2, dict(operator='full')),
        'llama': (LLAMA, dict()),
        'llama_full': (LLAMA, dict(operator='full', fusion='channel')),
    }
WITHOUT_CP = ('gpt2', 'gpt2_full', 'llama', 'llama_full', 'poolformer', 'timm_vit', 'timm_swin', 'timm_convnext')
WITHOUT_CP += ('beit', 'pvt', 'yolox', 'rtmdet', 'mscan', 'ddrnet')  # these have no such setting
WITH_CP = [name for name in BACKBONES if name not in WITHOUT_CP]


def build(settings: dict, **changes) -> torch.nn.Module:
    """A backbone from the registry of its ``_scope_``, by default mmdet's."""
    settings = ConfigDict(settings, **changes)
    with DefaultScope.overwrite_default_scope(settings.pop('_scope_', 'mmdet')):
        backbone = MODELS.build(settings)
    if hasattr(backbone, 'get_input_embeddings'):
        backbone.register_forward_pre_hook(as_texts)
        backbone.register_forward_hook(as_tuple)
    return backbone


def as_texts(backbone: torch.nn.Module, args: tuple) -> torch.Tensor:
    """Pictures as texts of 16 words, for a network of words; texts stay as they are."""
    x = args[0]
    if not x.is_floating_point():
        return x
    return (x.flatten(1)[:, : 16 * 97 : 97].abs() * 1000).long() % backbone.config.vocab_size


def as_tuple(_, args: tuple, output) -> tuple[torch.Tensor]:
    """What the last layer gives, as backbones give it."""
    return (output.last_hidden_state,)


def blocks(backbone: torch.nn.Module) -> dict[tuple[int, int], torch.nn.Module]:
    """All blocks and computing layers by (stage, index)."""
    stages = find_family(backbone).stages(backbone)
    return {(s, i): stages[s][i] for s in range(len(stages)) for i in range(len(stages[s]))}


def build_backbone(name: str, seed: int = 0, replace: dict | None = None, **settings) -> torch.nn.Module:
    """The backbone of a row with RepL, in train mode; ``replace`` and further settings in place of the row's.

    All norms and biases, which initialization leaves at zero or at one, are moved, so that every path carries signal
    and gradient.
    """
    stock, default = BACKBONES[name]
    torch.manual_seed(seed)
    backbone = build(stock, type=f'RepL{stock["type"]}', replace=default if replace is None else replace, **settings)
    with torch.no_grad():
        for key, parameter in backbone.named_parameters():
            if parameter.dim() == 1 and '.coefficients.' not in key:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    backbone.train()
    return backbone


def images(num: int = 2, size: int = 64, seed: int = 1) -> torch.Tensor:
    """Normalized noise, ``(num, 3, size, size)``."""
    return torch.randn(num, 3, size, size, generator=torch.Generator().manual_seed(seed))


def loss_of(outputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """A loss that all outputs of a backbone take part in, a mean over the images."""
    return sum(output.square().mean() for output in outputs)


def gradients(model: torch.nn.Module, x: torch.Tensor, call=None) -> dict[str, torch.Tensor]:
    """Gradients of :func:`loss_of` by parameter name; ``call`` is what is called in place of the model."""
    model.zero_grad()
    loss_of((model if call is None else call)(x)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def detector_config(data_root, work_dir, **backbone) -> Config:
    """The shipped mini config as RetinaNet-R18-RepL of an eighth of its width: 2 epochs of 3 steps of 2 pictures.

    It runs in mmdet's way, with ``norm_eval=True`` and ``frozen_stages=1``, and without random augmentation.
    """
    cfg = Config.fromfile(REPO / 'configs' / 'retinanet_r50_repl_mini.py')
    cfg.model.backbone.update(dict(depth=18, base_channels=8, frozen_stages=1, norm_eval=True) | backbone)
    cfg.model.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
    cfg.model.bbox_head.update(in_channels=16, feat_channels=16)
    root = f'{data_root}/'
    for split, loader in (('train', cfg.train_dataloader), ('val', cfg.val_dataloader), ('val', cfg.test_dataloader)):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.dataset.update(data_root=root, ann_file=f'annotations/instances_{split}.json')
        loader.dataset.data_prefix = dict(img=f'{split}/')
        loader.dataset.pipeline = [step for step in loader.dataset.pipeline if step.type != 'RandomFlip']
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.ann_file = f'{root}annotations/instances_val.json'
    cfg.train_cfg.update(max_epochs=2, val_interval=1)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    cfg.param_scheduler = [dict(type='LinearLR', start_factor=0.5, by_epoch=False, begin=0, end=4)]
    cfg.custom_hooks = [dict(type='RepLHook', shape=None)]
    cfg.work_dir = str(work_dir)
    cfg.visualizer.name = str(work_dir)  # visualizers of one name are one object, with one folder
    cfg.randomness = dict(seed=0)
    return cfg


def check_graph(backbone: torch.nn.Module, how: str, folder: Path, **tolerance) -> None:
    """A backbone in eval mode, traced ('trace') or exported ('export'), saved and loaded, gives what it gives."""
    x, other = images(), images(seed=2)
    with torch.no_grad():
        if how == 'trace':
            torch.jit.trace(backbone, x).save(folder / 'backbone.pt')
            graph = torch.jit.load(folder / 'backbone.pt')
        else:
            torch.export.save(torch.export.export(backbone, (x,)), folder / 'backbone.pt2')
            graph = torch.export.load(folder / 'backbone.pt2').module()
        torch.testing.assert_close(tuple(graph(other)), backbone(other), **tolerance)


def write_pickle(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol))


def write_cifar(folder, num=8):
    """The python batches of CIFAR-10 with ``num`` images of noise in each."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    write_pickle(
        folder / 'batches.meta', {b'label_names': [name.encode() for name in CIFAR_NAMES], b'num_cases_per_batch': num}
    )
    for name in [*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch']:
        data = rng.integers(0, 256, (num, 3072), np.uint8)
        write_pickle(
            folder / name, {b'data': data, b'labels': rng.integers(0, 10, num).tolist(), b'batch_label': b'a batch'}
        )
