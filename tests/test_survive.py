"""A backbone with computing layers is copied, pickled, checkpointed, traced, exported and compiled like any other."""

import copy
import io
import pickle

import pytest
import torch
from mmdet.models.backbones import resnet
from small import (
    BACKBONES,
    WITH_CP,
    WITH_TRANSFORMERS,
    blocks,
    build_backbone,
    check_graph,
    gradients,
    images,
    loss_of,
)

import repl_mm
from repl_mm import subclass

TABLE = pytest.mark.parametrize('name', BACKBONES)
CHECKPOINTED = pytest.mark.parametrize('name', WITH_CP)
BOTH = pytest.mark.parametrize(
    ('name', 'settings'), [(name, {}) for name in BACKBONES] + [(name, dict(with_cp=True)) for name in WITH_CP]
)
WORDS = ['gpt2', 'llama', 'llama_full'] if WITH_TRANSFORMERS else []
FEW = pytest.mark.parametrize('name', ['basic', 'full', 'beit', 'swin', 'mit', *WORDS])
RTOL = dict(rtol=1e-4, atol=1e-6)
# on so few positions the statistics of their batch norms multiply roundings: outputs of the stock networks differ by
# 5 to 42 % under autocast in train mode
UNSTEADY = ('yolox', 'rtmdet', 'mobilenet_v2', 'mobilenet_v3', 'ddrnet')


def check_is_a_copy(other, backbone):
    """``other`` is equal to ``backbone`` and shares nothing with it."""
    plan = repl_mm.plan_of(backbone)
    assert repl_mm.plan_of(other) == plan
    for slot in plan.slots:
        wanted = [blocks(other)[where] for where in (slot.preceding, slot.succeeding) if where is not None]
        wanted = wanted[:1] if plan.mode == 'share' else wanted
        layer = blocks(other)[slot.stage, slot.index]
        for module in layer.modules():
            if getattr(module, 'neighbours', ()):  # free weights have none
                assert [id(neighbour.block) for neighbour in module.neighbours] == [id(block) for block in wanted]

    x = images()
    torch.testing.assert_close(other(x), backbone(x), rtol=0, atol=0)
    torch.testing.assert_close(gradients(other, x), gradients(backbone, x), rtol=0, atol=0)

    # what happens to the original does not reach the copy, and loading into the copy does not reach the original
    before, saved = other(x), copy.deepcopy(backbone.state_dict())
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(2)
    torch.testing.assert_close(other(x), before, rtol=0, atol=0)
    doubled = copy.deepcopy(backbone.state_dict())
    other.load_state_dict(saved)
    torch.testing.assert_close(backbone.state_dict(), doubled, rtol=0, atol=0)
    torch.testing.assert_close(other(x), before, rtol=0, atol=0)


@BOTH
def test_deepcopy(name, settings):
    backbone = build_backbone(name, **settings)
    check_is_a_copy(copy.deepcopy(backbone), backbone)


@BOTH
def test_pickle(name, settings):
    backbone = build_backbone(name, **settings)
    pickled = pickle.dumps(backbone)
    subclass._combined.cache_clear()  # as in a new process
    check_is_a_copy(pickle.loads(pickled), backbone)


def test_a_whole_model_goes_through_torch_save():
    backbone = build_backbone('bottleneck', with_cp=True)
    file = io.BytesIO()
    torch.save(backbone, file)
    file.seek(0)
    check_is_a_copy(torch.load(file, weights_only=False), backbone)


def test_the_copy_guards_itself_against_other_plans():
    backbone = build_backbone('basic')
    twin = copy.deepcopy(backbone)
    other = build_backbone('basic', replace=dict(slots=[(2, 1)]))
    with pytest.raises(repl_mm.PlanError, match='slots only in the model'):
        twin.load_state_dict(other.state_dict())


# ---- activation checkpointing -------------------------------------------------------------------------------------


def saved_bytes(backbone, x) -> int:
    """Bytes that autograd keeps for backward, without parameters, each storage once."""
    parameters = {p.untyped_storage().data_ptr() for p in backbone.parameters()}
    sizes = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(backbone(x))
    loss.backward()  # the graph, and with it the storages, live until here: no address is used twice
    return sum(sizes.values())


@CHECKPOINTED
def test_with_cp_gives_the_same_gradients_for_less_memory(name):
    x = images()
    plain, checkpointed = build_backbone(name), build_backbone(name, with_cp=True)
    torch.testing.assert_close(gradients(checkpointed, x), gradients(plain, x), **RTOL)
    assert saved_bytes(checkpointed, x) < 0.8 * saved_bytes(plain, x)


@CHECKPOINTED
def test_with_cp_leaves_blocks_what_they_are(name):
    plain, checkpointed = build_backbone(name), build_backbone(name, with_cp=True)
    assert list(checkpointed.state_dict()) == list(plain.state_dict())
    for kept, block in zip(plain.modules(), checkpointed.modules(), strict=True):
        assert isinstance(block, type(kept))
        assert type(block).__name__ == type(kept).__name__


@pytest.mark.parametrize('depth, stock', [(18, resnet.BasicBlock), (50, resnet.Bottleneck)])
def test_with_cp_of_a_block_without_borrowers_stays_stock(depth, stock):
    backbone = build_backbone('basic', depth=depth, with_cp=True, replace=dict(slots=[(3, 1)]))
    assert type(backbone.layer2[1]) is stock and backbone.layer2[1].with_cp
    borrowed = backbone.layer4[0]
    assert isinstance(borrowed, stock) and type(borrowed) is not stock and not borrowed.with_cp


# ---- autocast -----------------------------------------------------------------------------------------------------


@TABLE
def test_autocast_runs_layers_in_bfloat16_and_the_synthesis_in_float32(name):
    backbone = build_backbone(name)
    for module in backbone.modules() if name in UNSTEADY else ():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    exact = backbone(images())
    with torch.autocast('cpu', torch.bfloat16):
        outputs = backbone(images())
        weights = [pair for _, layer in repl_mm.computing_layers(backbone) for pair in layer.synthesize()]
        found = gradients(backbone, images())
    assert weights or repl_mm.plan_of(backbone).mode == 'remove'
    assert all(part.dtype == torch.float32 for pair in weights for part in pair if part is not None)
    for output, wanted in zip(outputs, exact, strict=True):
        assert (output.float() - wanted).norm() < (0.05 if name in UNSTEADY else 0.03) * wanted.norm()
    wanted = gradients(backbone, images())
    assert found.keys() == wanted.keys()
    for key, gradient in found.items():
        assert gradient.dtype == torch.float32
        rounding = 1e-3 if gradient.numel() > 1 else 2e-2  # a single number's gradient sums over whole weights
        assert (gradient - wanted[key]).norm() < 0.2 * wanted[key].norm() + rounding, key


# ---- trace, export, compile ---------------------------------------------------------------------------------------


@FEW
@pytest.mark.parametrize('how', ['trace', 'export'])
def test_a_folded_backbone_is_traced_and_exported(name, how, tmp_path):
    backbone = build_backbone(name)
    backbone.eval()
    repl_mm.fold(backbone)
    check_graph(backbone, how, tmp_path, **RTOL)


@pytest.mark.parametrize(
    'name, settings, backend',
    [
        ('full', {}, 'eager'),
        ('basic', {}, 'aot_eager'),
        ('vit_full', dict(num_layers=3, out_indices=(2,)), 'eager'),
        ('vit', dict(num_layers=3, out_indices=(2,)), 'aot_eager'),
    ],
)
def test_compile_makes_one_graph_with_the_same_gradients(name, settings, backend):
    backbone = build_backbone(name, **settings)
    torch._dynamo.reset()
    compiled = torch.compile(backbone, backend=backend, fullgraph=True)
    x = images()
    torch.testing.assert_close(gradients(backbone, x, call=compiled), gradients(backbone, x), **RTOL)

    with torch.no_grad():  # the graph reads the neighbours' weights, it has not baked them in
        for parameter in blocks(backbone)[repl_mm.plan_of(backbone).slots[-1].preceding].parameters():
            parameter.neg_()
    torch.testing.assert_close(gradients(backbone, x, call=compiled), gradients(backbone, x), **RTOL)


@TABLE
def test_what_was_folded_is_not_used_in_training(name):
    """Whoever folds a model in train mode still trains it."""
    x = images()
    folded, plain = build_backbone(name), build_backbone(name)
    repl_mm.fold(folded)
    torch.testing.assert_close(gradients(folded, x), gradients(plain, x), rtol=0, atol=0)


@TABLE
def test_jit_trace_with_gradients_is_that_without_or_says_what_to_do(name):
    """By torch's own check, which traces again without gradients."""
    backbone, x = build_backbone(name), images()
    backbone.eval()
    if name == 'vit_half' or repl_mm.plan_of(backbone).operator == 'full':
        with pytest.raises(RuntimeError, match=r'call repl_mm.fold\(model.eval\(\)\) before'):
            torch.jit.trace(backbone, x)
        repl_mm.fold(backbone)
    traced = torch.jit.trace(backbone, x)
    torch.testing.assert_close(traced(x), backbone(x), **RTOL)


@pytest.mark.parametrize('name', ['full', 'vit_full'])
@pytest.mark.parametrize('mode', ['fuse', 'own'])
def test_with_cp_keeps_little_more_than_the_input_of_a_full_layer(name, mode):
    """Also where the layer synthesizes nothing, as those of transformers with free weights."""

    def kept(with_cp):
        backbone = build_backbone(name, with_cp=with_cp, replace=dict(operator='full', mode=mode))
        layer = next(layer for _, layer in repl_mm.computing_layers(backbone))
        shape = (2, 16, 16) if name == 'vit_full' else (2, 64, 16, 16)
        weights = {p.untyped_storage().data_ptr() for p in backbone.parameters()}
        saved = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            layer(torch.randn(shape, requires_grad=True))
        return sum(saved.values())

    assert kept(True) < 0.5 * kept(False)
