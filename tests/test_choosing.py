"""Blocks chosen by measurement: repl_mm/choosing.py, repl_mm/heads.py and tools/plan.py."""

import copy
import itertools
import json
from functools import partial
from pathlib import Path

import mmcv
import numpy as np
import plan as tool
import pytest
import torch
from _images import read_images
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import set_random_seed
from small import BACKBONES, STOCK, TRANSFORMERS, blocks, build, images
from test_healing import write_pictures
from test_tools import detector
from torch import nn

import repl_mm
from repl_mm import PlanError, choosing, config, cost, heads
from repl_mm.classification import CifarResNet
from repl_mm.classification.cifar_resnet import BasicBlock
from repl_mm.config import read_config
from repl_mm.conversion import tensors
from repl_mm.pictures import pictures_in

CIFAR = dict(STOCK['cifar b'], base_channels=4)
COUNT = partial(cost.measure, inputs=cost.ImageInput((32, 32), 2))


def count_params(net):
    """Parameters in the place of every count: quick, where the counts are not what is tested."""
    num = sum(parameter.numel() for parameter in net.parameters())
    return cost.Cost(num, num, num, num, num, num, num, cost.ImageInput((32, 32), 2))


FAMILIES = {
    'cifar': CIFAR,
    'r50': dict(STOCK['r50'], frozen_stages=1, norm_eval=True),
    **{name: TRANSFORMERS[name] for name in ('vit', 'swin', 'mit', 'pvt', 'svt')},
    **{name: STOCK[name] for name in ('ddrnet', 'pidnet', 'yolox', 'mobilenet v2')},
    'hrnet': STOCK['hrnet of two blocks'],
}
BRANCHED = ('hrnet', 'ddrnet', 'pidnet')


def stock_of(settings, seed=0):
    """A stock backbone whose norms and biases carry signal, in train mode."""
    torch.manual_seed(seed)
    backbone = build(settings)
    backbone.init_weights()
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    backbone.train()  # that of mm's backbones returns None
    return backbone


def identity(block):
    """Make a block pass on what it gets: whatever its branches end with is zero."""
    if hasattr(block, 'bn2'):
        last = getattr(block, 'bn3', block.bn2)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    if hasattr(block, 'ffn'):
        for branch in (block.attn, block.ffn):
            linears = [module for module in branch.modules() if isinstance(module, nn.Linear)]
            nn.init.zeros_(linears[-1].weight)
            nn.init.zeros_(linears[-1].bias)


@torch.no_grad()
def distance(stock, places, x, head=lambda outputs: outputs):
    """What :class:`choosing._Trials` measures, without any reuse: blocks left out of a copy."""
    nets = [copy.deepcopy(stock) for _ in range(2)]
    repl_mm.apply_repl(nets[0], slots=sorted(places), mode='remove')
    for net in nets:
        net.eval()
    pairs = zip(*(tensors(head(net(x))) for net in nets), strict=True)
    shares = [((a - b).square().mean() / b.var(correction=0)).item() for a, b in pairs]
    return sum(shares) / len(shares)


@pytest.mark.parametrize('name', ['cifar', 'r50', 'vit', 'swin'])
@pytest.mark.parametrize('words', [dict(mode='remove'), dict(fit=True, block_steps=3)], ids=['removed', 'fitted'])
def test_a_block_that_does_nothing_is_chosen_first(name, words):
    stock = stock_of(FAMILIES[name])
    places = choosing.replaceable(stock)
    known = places[len(places) // 2]
    identity(blocks(stock)[known])
    size = 32 if name == 'cifar' else 64
    choice = repl_mm.choose(stock, images(8, size), 0.995, count=count_params, **words)
    influences = {block.place: block.influence for block in choice.blocks}
    assert min(influences, key=influences.get) == known == choice.steps[0].slots[0]
    assert influences[known] == pytest.approx(0, abs=1e-3 if 'fit' in words else 1e-10)
    assert sorted(influences.values())[1] > 10 * influences[known]


@pytest.mark.parametrize('name', FAMILIES)
def test_what_was_computed_before_changes_no_distance(name):
    stock, x = stock_of(FAMILIES[name]), images(6)
    places = choosing.replaceable(stock)
    trials = choosing._Trials(stock, x, dict(mode='remove'), False, None, 0)
    trials.batches = x.split(4)  # of two sizes
    base = frozenset([places[1]])
    sets = [base | {place} for place in places if place not in base] + [frozenset([places[0]]), frozenset(places)]
    for start in (base, frozenset()):
        assert trials.distances(start, sets, '') == pytest.approx([distance(stock, s, x) for s in sets], rel=1e-4)
    assert trials.net.state_dict().keys() == stock.state_dict().keys()  # all blocks are back


@pytest.mark.parametrize('name', BRANCHED)
def test_any_set_of_blocks_of_several_branches_is_a_plan(name):
    """The first block of each branch stays, so that the choice may take all others."""
    stock = stock_of(STOCK[name])
    places = choosing.replaceable(stock)
    plan = repl_mm.apply_repl(copy.deepcopy(stock), slots=places, mode='remove')
    assert [(slot.stage, slot.index) for slot in plan.slots] == places
    choice = repl_mm.choose(stock, images(2), 0.98, count=count_params, mode='remove')
    repl_mm.apply_repl(stock, **choice.replace)


@pytest.mark.parametrize('name', ['cifar', 'hrnet', 'ddrnet'])
def test_influences_are_the_distances_of_blocks_left_out(name):
    stock, x = stock_of(FAMILIES[name]), images(4)
    expected = {place: distance(stock, [place], x) for place in choosing.replaceable(stock)}
    assert choosing.influences(stock, x) == pytest.approx(expected, rel=1e-4)


def test_outputs_of_the_head_count_where_there_is_one():
    stock, x = stock_of(CIFAR), images(6, 32)
    linear = nn.Linear(16, 10).requires_grad_(False)
    trials = choosing._Trials(stock, x, {}, False, lambda outputs: linear(outputs[-1].mean((2, 3))), 0)
    found = trials.distances(frozenset(), [frozenset([(1, 1)])], '')
    assert found == pytest.approx([distance(stock, [(1, 1)], x, trials.head)], rel=1e-4)


def count_blocks(net):
    """The kept blocks in the place of every count."""
    num = sum(isinstance(module, BasicBlock) for module in net.modules())
    return cost.Cost(num, num, num, num, num, num, num, cost.ImageInput((32, 32), 2))


@pytest.mark.parametrize('seed', range(4))
def test_the_choice_is_the_best_of_all_sets_or_near_it(seed):
    stock, x = stock_of(CIFAR, seed), images(16, 32, seed)
    places = choosing.replaceable(stock)
    choice = repl_mm.choose(stock, x, 0.7, count=count_blocks, mode='remove')
    sets = [s for n in range(3, 7) for s in itertools.combinations(places, n)]  # of 9 blocks 6 may be left
    found = {s: distance(stock, s, x) for s in sets}
    assert len(choice.slots) == 3 and choice.steps[-1].left == 6 / 9
    assert found[choice.slots] == pytest.approx(choice.steps[-1].distance, rel=1e-4)
    assert found[choice.slots] <= 1.1 * min(found.values())


def test_sets_are_counted_exactly_and_the_cheap_ones_come_first():
    """Where influence is the same, what saves more is chosen; no more than needed."""
    stock = stock_of(CIFAR)
    for block in blocks(stock).values():
        identity(block)
    savings = choosing.Savings(stock, dict(mode='remove'), COUNT)
    left = savings.left([(2, 1)], 'params')
    choice = repl_mm.choose(stock, images(4, 32), left, 'params', count=COUNT, mode='remove')
    assert choice.slots in (((2, 1),), ((2, 2),)) and choice.steps[-1].left == left
    net = copy.deepcopy(stock)
    repl_mm.apply_repl(net, slots=[(2, 1)], mode='remove')
    assert left == COUNT(net).params / COUNT(stock).params


def test_the_backbone_stays_as_it_is_and_takes_the_choice():
    stock = stock_of(FAMILIES['r50'])
    before = copy.deepcopy(stock.state_dict())
    modes = [module.training for module in stock.modules()]
    trained = [parameter.requires_grad for parameter in stock.parameters()]
    torch.manual_seed(3)
    choice = repl_mm.choose(stock, images(8), 0.9, fit=True, block_steps=2, count=count_params, mode='own')
    assert all(torch.equal(value, before[key]) for key, value in stock.state_dict().items())
    assert modes == [module.training for module in stock.modules()]
    assert trained == [parameter.requires_grad for parameter in stock.parameters()]
    assert not any(module._forward_hooks for module in stock.modules())
    plan = repl_mm.apply_repl(stock, **choice.replace)
    assert plan.mode == 'own' and [(slot.stage, slot.index) for slot in plan.slots] == list(choice.slots)
    assert all(stage for stage, _ in choice.slots)  # the first one is frozen


def test_layers_are_fitted_again_where_their_neighbours_change_only():
    stock, x = stock_of(CIFAR), images(8, 32)
    one, both = frozenset([(1, 1)]), frozenset([(1, 1), (1, 2)])
    far = frozenset([(1, 1), (2, 2)])
    for mode, again in (('fuse', True), ('own', False)):
        trials = choosing._Trials(stock, x, dict(mode=mode), True, None, 1)
        first = trials.standing(one)[1, 1]
        assert trials.standing(far)[1, 1] is first
        assert (trials.standing(both)[1, 1] is not first) == again


def test_a_fitted_layer_stands_nearer_than_nothing():
    stock, x = stock_of(CIFAR), images(32, 32)
    kinds = dict(removed={}, fitted=dict(fit=True, block_steps=40, mode='own', operator='conv'))
    found = {kind: repl_mm.choose(stock, x, 0.9, count=count_params, **words).blocks for kind, words in kinds.items()}
    assert all(a.influence < b.influence for a, b in zip(found['fitted'], found['removed'], strict=True))


def test_the_choice_says_itself(tmp_path):
    stock = stock_of(CIFAR)
    choice = repl_mm.choose(stock, images(4, 32), 0.8, count=count_params, mode='remove')
    text = str(choice)
    assert 'this block alone left out' in text and f'step {len(choice.steps)}: distance' in text
    assert all(choosing.name_of(place) in text for place in choosing.replaceable(stock))
    assert json.loads(json.dumps(choice.to_dict()))['slots'] == [list(place) for place in choice.slots]
    choosing.plot(choice, tmp_path / 'plan.png')
    assert (tmp_path / 'plan.png').read_bytes().startswith(b'\x89PNG')


def frozen_resnet():
    return build(dict(STOCK['r50'], frozen_stages=4))


@pytest.mark.parametrize(
    ('net', 'arguments', 'words', 'message'),
    [
        (CifarResNet, (1.0,), {}, 'flops=1.0 is not valid: expected a share above 0 and below 1'),
        (CifarResNet, (0.5, 'bytes'), {}, "measure='bytes' is not valid: expected one of 'flops', 'activations'"),
        (CifarResNet, (0.1,), {}, r'flops=0.1 is out of reach: .* 0\.\d+ are left; expected a share of at least 0\.'),
        (CifarResNet, (0.5,), dict(size=3), 'replace.size=3: unknown key'),
        (CifarResNet, (0.5,), dict(operator='mlp'), "replace.operator='mlp' is not valid"),
        (frozen_resnet, (0.5,), {}, r'no block of ResNet with \(3, 4, 6, 3\).* frozen stages \[0, 1, 2, 3\]'),
        (lambda: nn.Conv2d(3, 3, 1), (0.5,), {}, 'RepL does not know the backbone Conv2d'),
    ],
)
def test_what_is_wrong_is_said_in_one_line(net, arguments, words, message):
    backbone = CifarResNet(20, base_channels=4) if net is CifarResNet else net()
    with pytest.raises(PlanError, match=message) as error:
        repl_mm.choose(backbone, images(4, 32), *arguments, count=count_params, **words)
    assert '\n' not in str(error.value)


def test_a_changed_backbone_or_too_few_images_are_refused():
    stock, settings = BACKBONES['basic']
    backbone = build(stock, type='RepLResNet', replace=settings)
    with pytest.raises(PlanError, match='RepL was applied to this ResNet before: give the stock backbone'):
        repl_mm.choose(backbone, images(4), 0.8)
    with pytest.raises(ValueError, match='images: 1 are too few'):
        repl_mm.choose(build(stock), images(1), 0.8)


def test_weights_that_give_no_numbers_are_named():
    stock = stock_of(CIFAR)
    nn.init.constant_(stock.conv1.weight, torch.nan)
    with pytest.raises(PlanError, match='outputs of this CifarResNet are not finite: expected trained weights'):
        repl_mm.choose(stock, images(4, 32), 0.9, count=count_params, mode='remove')


# ---- what stands behind a backbone ----------------------------------------------------------------------------------


def test_a_dense_models_maps_count(tmp_path):
    cfg = Config.fromfile(detector(tmp_path))
    model, x = heads.stock_model(cfg).eval(), images(1)
    weights = {key: value for key, value in model.state_dict().items() if not key.startswith('backbone.')}
    features = model.backbone(x)
    head = heads.whole_head(cfg, 'backbone', weights, features)
    expected = tensors(model(x, mode='tensor'))
    assert len(expected) == 6  # classes and boxes of three levels
    assert all(map(torch.equal, tensors(head(features)), expected))
    assert heads.whole_head(cfg, 'backbone', {}, features) is None
    weights.pop('bbox_head.retina_cls.weight')
    assert heads.whole_head(cfg, 'backbone', weights, features) is None
    counted = cost.measure(heads.Whole(heads.stock_model(cfg), 'backbone', model.backbone), cost.ImageInput((64, 64)))
    assert counted.params > cost.measure(model.backbone, cost.ImageInput((64, 64))).params


def test_features_count_where_the_heads_want_more():
    cfg = config.read_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
    model, x = heads.stock_model(cfg), images(1)
    model.eval()
    with torch.no_grad():
        features, expected = model.backbone(x), model.extract_feat(x)
    weights = {key: value for key, value in model.state_dict().items() if not key.startswith('backbone.')}
    head = heads.whole_head(cfg, 'backbone', weights, features)
    assert len(expected) == 5 and all(map(torch.equal, head(features), expected))


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', 'backbone'),
        ('mmseg::bisenetv1/bisenetv1_r18-d32_4xb4-160k_cityscapes-1024x1024.py', 'backbone.context_path.backbone'),
        ('mmseg::icnet/icnet_r18-d8_4xb2-80k_cityscapes-832x832.py', 'backbone.backbone'),
    ],
)
def test_the_name_of_a_backbone_is_that_of_its_module(name, expected):
    cfg = config.read_config(name)
    (path,) = config.find_backbones(cfg.model)
    found = heads.backbone_name(cfg, path)
    assert found == expected and type(heads.stock_model(cfg).get_submodule(found)).__name__.startswith('ResNet')


def test_a_backbone_of_two_models_has_no_name():
    cfg = config.read_config('mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py')
    with pytest.raises(
        config.ConfigError, match=r'2 modules of the SoftTeacher \(student.backbone, teacher.backbone\)'
    ):
        heads.backbone_name(cfg, ('detector', 'backbone'))


# ---- the config that is written -------------------------------------------------------------------------------------


def test_a_config_inherits_another_one(tmp_path):
    base = tmp_path / 'a' / 'base.py'
    base.parent.mkdir()
    base.write_text("model = dict(backbone=dict(type='X', depth=20, replace=dict(every=2)), neck=1)\nlr = 1\n")
    file = tmp_path / 'b' / 'c' / 'new.py'
    file.parent.mkdir(parents=True)
    words = dict(type='Y', replace=dict(slots=[(0, 1)], mode='own'))
    text = config.inherit(str(base), file, ('backbone',), words, {'lr': 2, 'model.backbone.replace.every': 3})
    file.write_text(text)
    cfg = Config.fromfile(file)
    assert cfg.model.to_dict() == dict(backbone=dict(depth=20, **words), neck=1) and cfg.lr == 2
    base.write_text(base.read_text().replace(', replace=dict(every=2)', ''))
    file.write_text(config.inherit(str(base), file, ('backbone',), words))
    assert Config.fromfile(file).model.backbone.to_dict() == dict(depth=20, **words)


def test_configs_of_packages_are_inherited(tmp_path):
    words = dict(type='repl_mm.RepLResNet', replace=dict(slots=[(2, 1)]))
    for name in ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', 'repl_mm::retinanet_r50_repl_coco.py'):
        (tmp_path / 'new.py').write_text(config.inherit(name, tmp_path / 'new.py', ('backbone',), words))
        backbone = Config.fromfile(tmp_path / 'new.py').model.backbone
        assert backbone.depth == 50 and backbone.replace.to_dict() == words['replace']
    (tmp_path / 'lazy.py').write_text('from mmdet.models import ResNet\nmodel = dict(backbone=dict(type=ResNet))\n')
    with pytest.raises(config.ConfigError, match='is a pure-Python one'):
        config.inherit(str(tmp_path / 'lazy.py'), tmp_path / 'new.py', ('backbone',), words)


# ---- the tool -------------------------------------------------------------------------------------------------------


def run(*words):
    tool.main([str(word) for word in words])


def test_the_tool_writes_a_config_that_trains_and_converts(prepared, tmp_path, capsys):
    words = ['--fit', '--block-steps', 2, '--flops', 0.9, '--num', 24, '--out', 'out']
    run(prepared, 'stock.pth', '--images', 'data', *words, '--cfg-options', 'model.backbone.replace.mode=linear')
    text = capsys.readouterr().out
    saved = json.loads((tmp_path / 'out' / 'plan.json').read_text())
    assert saved['counted'] == "the roots of the classifier's probabilities"
    assert f'24 images; what counts: {saved["counted"]}' in text and 'replace=dict(slots=[(' in text
    cfg = Config.fromfile(tmp_path / 'out' / 'resnet_chosen.py')
    assert [list(place) for place in cfg.model.backbone.replace.slots] == saved['slots']
    assert cfg.model.backbone.replace.mode == 'linear' and cfg.model.backbone.depth == 20
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    assert len(model.backbone.repl.slots) == len(saved['slots'])
    assert (tmp_path / 'out' / 'plan.png').is_file()


@pytest.mark.parametrize(
    ('mode', 'given'), [('remove', lambda logits: logits.softmax(1).sqrt()), ('fuse', nn.Identity())]
)
def test_a_classifiers_answers_count(mode, given, prepared, tmp_path):
    """Roots of its probabilities where its blocks will be left out, else logits: how far they move without a block."""
    write_pictures(tmp_path / 'pictures', 16)
    words = ['--shape', 32, 32, '--num', 16, '--out', 'out', '--cfg-options', f'model.backbone.replace.mode={mode}']
    run(prepared, 'stock.pth', '--images', 'pictures', '--flops', 0.9, *words)
    saved = json.loads((tmp_path / 'out' / 'plan.json').read_text())
    cfg = Config.fromfile(prepared)
    cfg.model.backbone = config.stock_config(cfg.model.backbone)
    model = config.build(cfg.model, cfg.default_scope)
    model.load_state_dict(torch.load('stock.pth'))
    model.eval()
    x = read_images(cfg, Path('pictures'), 16, (32, 32), '--images')
    with torch.no_grad():
        answers = given(model(x))
        for block in saved['blocks']:
            stage, index = block['place']
            stages = [model.backbone.layer1, model.backbone.layer2, model.backbone.layer3]
            kept, stages[stage][index] = stages[stage][index], nn.Identity()
            moved = (given(model(x)) - answers).square().mean() / answers.var(correction=0)
            stages[stage][index] = kept
            assert block['influence'] == pytest.approx(moved.item(), rel=1e-3)


@pytest.mark.parametrize('fit', [['--fit'], []], ids=['fit', 'left out'])
def test_with_fitted_layers_the_answers_count(fit, prepared, tmp_path, monkeypatch):
    """Roots of probabilities are vectors of length one; logits are not."""
    lengths = []

    def choose(backbone, images, limit, measure, fit, head, *more, **words):
        lengths.append(head(backbone(images)).square().sum(1))
        raise PlanError('enough')

    monkeypatch.setattr(choosing, 'choose', choose)
    write_pictures(tmp_path / 'pictures', 16)
    with pytest.raises(SystemExit, match='enough'):
        run(prepared, 'stock.pth', '--images', 'pictures', *fit, '--shape', 32, 32, '--num', 16, '--out', 'out')
    assert torch.allclose(lengths[0], torch.ones(16)) == bool(fit)


@pytest.mark.parametrize('pictures', [True, False], ids=['pictures', 'data_root'])
def test_the_seed_draws_the_images(pictures, prepared, tmp_path):
    """24 of the 40 images: the same ones with the same seed, others with another."""
    if pictures:
        for index, image in enumerate(np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)):
            mmcv.imwrite(image, str(tmp_path / 'data' / f'{index}.png'))
    cfg, found = Config.fromfile(prepared), []
    cfg.train_dataloader.num_workers = 0
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler')
    cfg.train_dataloader.dataset.pipeline = [dict(type='RandomFlip', prob=0.5), dict(type='PackImage')]
    for seed in (0, 1, 0):
        set_random_seed(seed)
        found.append(read_images(cfg, tmp_path / 'data', 24, (32, 32), '--images'))
        assert len(found[-1].flatten(1).unique(dim=0)) == 24
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (dict(train_dataloader=None), "--images 'data': no pictures there, and the config has no train_dataloader"),
        (
            dict(train_dataloader=dict(dataset=dict(ann_file='a.json'))),
            "--images 'data': no pictures there, nor 'data/a.json' of the config's dataset; expected either",
        ),
        (dict(train_dataloader=dict(drop_last=True)), '40 images, expected at least 41'),
    ],
)
def test_images_that_are_not_there_end_in_one_line(words, message, prepared):
    cfg = Config.fromfile(prepared)
    cfg.merge_from_dict(words)
    with pytest.raises(SystemExit) as stopped:
        read_images(cfg, Path('data'), 512, (32, 32), '--images', fewest=41)
    assert message in str(stopped.value) and '\n' not in str(stopped.value)


def test_without_weights_it_counts(prepared, capsys):
    run(prepared, '--shape', 32, 32, '--batch', 4, '--params', 0.8)
    text = capsys.readouterr().out
    assert (
        'nothing is measured' in text and 'Counted: the backbone alone' in text and 'RepL plan of CifarResNet' in text
    )
    assert all(f'| {name}' in text for name in ('separable', 'half', 'remove', 'patch', 'every=1'))
    assert 'ranked by saving only' in text and 'params <= 0.8' in text and 'None of them' not in text
    assert 'every=2' not in text  # of two blocks in a stage one can be replaced: the same plan
    run(prepared, '--params', 0.01, '--cfg-options', 'model.data_preprocessor.size=40')
    text = capsys.readouterr().out
    assert 'Counted: the backbone alone, 40x40' in text and 'None of them leaves params <= 0.01.' in text


def test_pictures_behind_links_are_found_once(tmp_path):
    write_pictures(tmp_path / 'elsewhere', 2)
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'train').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'elsewhere' / 'back').symlink_to(tmp_path / 'data')
    (tmp_path / 'data' / 'again').symlink_to(tmp_path / 'data' / 'train')
    (tmp_path / 'elsewhere' / 'itself').symlink_to(tmp_path / 'elsewhere')
    found = [path.relative_to(tmp_path).as_posix() for path in pictures_in(tmp_path / 'data')]
    assert len(found) == 2 and all(name.startswith('data/again/') for name in found)  # of two links the first
    assert len(pictures_in(tmp_path / 'elsewhere')) == 2


def test_memory_is_that_of_the_whole_model(tmp_path, capsys):
    file = detector(tmp_path)
    words = ['--shape', 64, 64, '--batch', 2]
    run(file, *words, '--memory', '3MB')
    text = capsys.readouterr().out
    assert 'Counted: the whole model, 64x64, batch 2' in text and 'memory <= 0.' in text
    with pytest.raises(SystemExit, match=r'--memory 8GB: 0\.\d+GB are counted of the stock model; expected less'):
        run(file, *words, '--memory', '8GB')


def test_a_model_of_words_is_refused():
    for words in ([], ['--shape', 224, 224]):
        with pytest.raises(SystemExit, match='its backbone takes words: expected one that takes images'):
            run(Path(tool.__file__).parents[1] / 'configs' / 'language' / 'gpt2-s_repl_wikitext2.py', *words)


def test_what_takes_proposals_is_counted_without_its_heads(capsys):
    run('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', '--shape', 64, 64, '--batch', 2, '--memory', '500MB')
    said = 'Counted: the whole model without what its heads do, which cannot be counted, 64x64, batch 2'
    assert said in capsys.readouterr().out


def test_a_model_that_cannot_be_counted_is_named():
    with pytest.raises(SystemExit, match=r'--memory: the model cannot be counted \(.*\): expected --flops') as stopped:
        run('mmdet::dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py', '--shape', 64, 64, '--memory', '1GB')
    assert '\n' not in str(stopped.value)


def test_of_a_model_without_its_heads_all_parameters_are_counted():
    cfg = read_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
    model, inputs = heads.stock_model(cfg), cost.ImageInput((64, 64))
    kind, count = heads.countable(cfg, 'backbone', partial(cost.measure, inputs=inputs))
    got, alone = count(model.backbone), cost.measure(model.backbone, inputs)
    assert kind is heads.WithoutHeads
    others = {
        'detr/detr_r50_8xb2-150e_coco.py': heads.Whole,  # its queries are its own
        'sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py': heads.WithoutHeads,  # its RPN has no maps
    }
    for name, expected in others.items():
        found, _ = heads.countable(read_config(f'mmdet::{name}'), 'backbone', partial(cost.measure, inputs=inputs))
        assert found is expected
    assert got.total_params == sum(p.numel() for p in model.parameters())
    # five maps of 256 channels from four of the backbone's: 1x1, 3x3; and an RPN of three anchors on each of them
    cells = [2 * (64 // 2**n) ** 2 for n in range(2, 7)]
    neck = sum(n * 256 * (256 * 2**i + 9 * 256) for i, n in enumerate(cells[:4]))
    rpn = sum(n * (9 * 256 * 256 + 256 * 15) for n in cells)
    assert got.forward_flops - alone.forward_flops == 2 * (neck + rpn)


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--images', 'nowhere'], "--images 'nowhere': no such folder"),
        (['--images', 'few'], "--images 'few': 10 images, expected at least 16"),
        (['--images', 'data', '--out', 'stock.pth'], "--out 'stock.pth': 'stock.pth' cannot be written to"),
        (
            ['--images', 'labelled'],
            "labelled/maps': expected the folder of the pictures",
        ),
        (['--images', '.'], "--images '.' has label maps, in '"),
        (['--images', 'labelled/maps'], "--images 'labelled/maps' has label maps, in '"),
        (['--images', 'maps/photos'], "--images 'maps/photos': 10 images, expected at least 16"),
        (['--images', 'broken'], "'broken/x.png' is cut off or no picture"),
        (['--images', 'data', '--flops', 0.1], 'flops=0.1 is out of reach'),
        (['--images', 'data', '--cfg-options', 'model.backbone.replace.mode=no'], "replace.mode='no' is not valid"),
        (['--images', 'data', '--cfg-options', 'model.backbone.type=VGG'], "does not support backbone type 'VGG'"),
        (['--images', 'data', '--cfg-options', 'model.second_backbone.type=RepLResNet'], 'expected one backbone'),
    ],
)
def test_the_tool_ends_in_one_line(words, message, prepared, tmp_path):
    (tmp_path / 'broken').mkdir()
    (tmp_path / 'broken' / 'x.png').write_text('no picture')
    for folder in ('few', 'labelled/img', 'labelled/maps'):
        write_pictures(tmp_path / folder, 10)
    write_pictures(tmp_path / 'maps' / 'photos', 10)  # of pictures, below a folder of the same name
    prefix = 'train_dataloader.dataset.data_prefix'
    options = ['--cfg-options', f'{prefix}.img_path=img', f'{prefix}.seg_map_path=maps']
    with pytest.raises(SystemExit) as stopped:
        run(
            prepared,
            'stock.pth',
            *words,
            *(options if words[1] in ('.', 'labelled', 'labelled/maps', 'maps/photos') else []),
        )
    assert message in str(stopped.value) and '\n' not in str(stopped.value)
    assert not (tmp_path / 'work_dirs').exists()


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['stock.pth'], 'STOCK without --images DIR: expected both, or none of them'),
        (['--fit'], '--fit without STOCK and --images DIR: there is nothing to fit to'),
        (['stock.pth', '--images', 'data', '--num', 10], '--num 10: must be at least 16'),
        (['--images', 'data'], '--images without STOCK: expected both, or none of them'),
        (['--flops', 1.2], 'argument --flops: 1.2 is not valid: expected what may be left, above 0 and below 1'),
        (['--flops', 0.8, '--params', 0.7], 'argument --params: not allowed with argument --flops'),
        (['--memory', '8'], 'argument --memory: 8 is not valid: expected a size such as 8GB'),
        (['--num', 0], '--num 0: must be at least 16'),
    ],
)
def test_words_that_contradict_are_named(words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        run('config.py', *words)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


# ---- what stands in each slot ---------------------------------------------------------------------------------------


KINDS = dict(patch=dict(mode='patch'), own=dict(mode='own', operator='conv'), repl={})


def test_each_slot_chooses_among_kinds(tmp_path):
    """A block that only scales and shifts its input: a patch does the same, and is the cheapest that does."""
    stock = stock_of(CIFAR)
    known = (1, 1)
    identity(blocks(stock)[known])
    choice = repl_mm.choose(
        stock, images(16, 32), 0.97, count=count_params, fit=True, block_steps=3, kinds=KINDS, mode='fuse'
    )
    assert choice.steps[0].slots == ((*known, 'patch'),)
    assert len(choice.blocks) == len(KINDS) * len(choosing.replaceable(stock))
    assert len({option[:2] for option in choice.slots}) == len(choice.slots)
    net = copy.deepcopy(stock)
    plan = repl_mm.apply_repl(net, **choice.replace)
    assert [plan.at(slot).mode for slot in plan.slots] == [KINDS[o[2]].get('mode', 'fuse') for o in choice.slots]
    assert choice.steps[-1].left == pytest.approx(count_params(net).params / count_params(stock).params)
    text = str(choice)
    assert '1.1 patch' in text and 'RepL (fuse) stands in ' in text
    assert json.loads(json.dumps(choice.to_dict()))['slots'] == json.loads(json.dumps(choice.replace['slots']))
    choosing.plot(choice, tmp_path / 'plan.png')
    with pytest.raises(PlanError, match='kinds=.* without fit=True'):
        repl_mm.choose(stock, images(16, 32), 0.97, count=count_params, kinds=KINDS)


def test_every_budget_within_reach_is_met():
    """A kind that moves the outputs less may have taken each place: it is exchanged for the one that saves more."""
    stock, x, kinds = stock_of(CIFAR), images(16, 32), dict(patch=dict(mode='patch'), own=dict(mode='own'))
    patches = [(*place, 'patch') for place in choosing.replaceable(stock)]
    limit = choosing.Savings(stock, {}, count_params, kinds).left(patches, 'flops') + 1e-6
    choice = repl_mm.choose(stock, x, limit, count=count_params, fit=True, block_steps=20, kinds=kinds)
    assert choice.slots == tuple(patches) and choice.steps[-1].left <= limit
    assert 'own' in {option[2] for step in choice.steps for option in step.slots}  # else nothing was exchanged
    net = copy.deepcopy(stock)
    repl_mm.apply_repl(net, **choice.replace)
    assert choice.steps[-1].left == pytest.approx(count_params(net).params / count_params(stock).params)
    with pytest.raises(PlanError, match='is out of reach'):
        repl_mm.choose(stock, x, limit - 2e-6, count=count_params, fit=True, kinds=kinds)


@pytest.mark.parametrize(
    ('kinds', 'message'),
    [
        (
            ['patch'],
            r"kinds=\['patch'\] is not valid: expected a dict of dicts, such as dict\(patch=dict\(mode='patch'\)",
        ),
        (3, 'kinds=3 is not valid: expected a dict of dicts'),
        (
            {'a': 3},
            r"kinds\['a'\]=3 is not valid: expected a dict with keys among mode, operator, ratio, fusion, detach",
        ),
        ({1: {}}, 'kinds has the name 1: expected a string'),
        ({'': {}}, "kinds has the name '': expected a string"),
        ({'a': {'size': 3}}, r"kinds\['a'\] holds size=3: unknown key; expected one of mode, operator, ratio, fusion"),
        ({'a': {'mode': 'no'}}, r"replace.mode='no' is not valid: expected one of 'fuse'"),
    ],
)
def test_wrong_kinds_are_named(kinds, message):
    with pytest.raises(PlanError, match=message) as error:
        repl_mm.choose(stock_of(CIFAR), images(4, 32), 0.9, count=count_params, fit=True, kinds=kinds)
    assert '\n' not in str(error.value)


def test_the_tool_lets_slots_choose(prepared, tmp_path, capsys):
    words = ['--fit', '--block-steps', 2, '--flops', 0.9, '--num', 24, '--out', 'out', '--kinds', 'linear', 'own:half']
    run(prepared, 'stock.pth', '--images', 'data', *words)
    assert 'RepL (fuse) stands in 0 of' in capsys.readouterr().out
    cfg = Config.fromfile(tmp_path / 'out' / 'resnet_chosen.py')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        plan = MODELS.build(cfg.model).backbone.repl
    assert {(plan.at(slot).mode, plan.at(slot).operator) for slot in plan.slots} <= {
        ('linear', plan.operator),
        ('own', 'half'),
    }
    with pytest.raises(SystemExit):
        run(prepared, 'stock.pth', '--images', 'data', '--kinds', 'linear')
    assert '--kinds without --fit' in capsys.readouterr().err
