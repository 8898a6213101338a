"""docs/families.md: its code runs as it stands there."""

import contextlib
import importlib
import io
import re
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

import repl_mm
from repl_mm import config, families

pytest.importorskip('mmdet')
DOC = (Path(__file__).resolve().parent.parent / 'docs' / 'families.md').read_text()
PYTHON = re.findall(r'```python\n(.*?)```', DOC, re.DOTALL)
(OUTPUT,) = re.findall(r'```text\n(.*?)```', DOC, re.DOTALL)
NET, ADAPTER, USE, SUBCLASS = PYTHON


OPTIONAL = ['branches', 'finish', 'BUILT', 'inner']


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    """Module: The adapter of the example, as a file, with the file of its backbone beside it."""
    folder = tmp_path_factory.mktemp('doc')
    for code in (NET, ADAPTER):
        (folder / code.split()[1]).write_text(code)  # '# name.py' is the first line
    sys.path.insert(0, str(folder))
    yield importlib.import_module('toy')
    sys.path.remove(str(folder))


@pytest.fixture(scope='module')
def entered(toy):
    """Str: What the example prints; it registers the family."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(USE, {})
    yield output.getvalue()
    families.FAMILIES.remove(toy)


def test_the_example_prints_what_the_page_says(entered):
    assert entered == OUTPUT


def test_a_config_may_name_it(entered):
    with DefaultScope.overwrite_default_scope('mmdet'):
        backbone = MODELS.build(dict(type='RepLToyNet', depth=3, replace=dict(mode='own')))
    assert type(backbone).__name__ == 'ToyNet' and repl_mm.plan_of(backbone).depths == (3,)


def test_the_example_says_all_that_the_page_lists(toy):
    names = re.findall(r'^\| `(\w+)', DOC, re.MULTILINE)
    assert [name for name in names if not hasattr(toy, name)] == OPTIONAL
    for family in families.FAMILIES:
        lacking = {name for name in names if not hasattr(family, name)}
        assert lacking <= {*OPTIONAL} or {*names} - lacking <= {'BACKBONES', 'REFUSED', 'BUILT', 'inner'}


@pytest.mark.parametrize('replace', [*(dict(mode=mode) for mode in repl_mm.plan.MODES), dict(slots=[(0, 5)])])
def test_every_mode_of_the_example(replace, entered):
    from toy_net import ToyNet

    torch.manual_seed(0)
    stock, net, removed = ToyNet(), ToyNet(), ToyNet()
    for other in (net, removed):
        other.load_state_dict(stock.state_dict())
    repl_mm.apply_repl(net, **replace)
    repl_mm.apply_repl(removed, **replace | dict(mode='remove'))
    image = torch.randn(2, 3, 32, 32)
    (out,), (without,), (full,) = net(image), removed(image), stock(image)
    assert out.shape == full.shape
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    # it starts nearer to the network without the blocks than the stock network is
    assert (out - without).norm() < 0.5 * (full - without).norm()


@pytest.fixture(scope='module')
def my_resnet():
    """Run the example of a subclass, which registers a family."""
    exec(SUBCLASS, {})
    yield
    del families.FAMILIES[0]


def test_a_backbone_of_another_structure_is_refused(entered):
    from toy_net import ToyNet

    net = ToyNet()
    del net.blocks[5].conv
    with pytest.raises(repl_mm.PlanError, match=r'is built otherwise: blocks\.5 \(Block\) has no conv'):
        repl_mm.apply_repl(net)
    del net.blocks
    with pytest.raises(repl_mm.PlanError, match='is built otherwise: blocks .* is no list of blocks'):
        repl_mm.apply_repl(net)


def test_the_prefix_of_a_package_and_a_pure_python_config(entered):
    from repl_mm.backbones import RepLToyNet

    for scope in ('mmseg', 'mmdet'):
        with DefaultScope.overwrite_default_scope(scope):
            built = MODELS.build(dict(type='mmdet.RepLToyNet', depth=3)), MODELS.build(dict(type=RepLToyNet, depth=3))
        for backbone in built:
            assert type(backbone).__name__ == 'ToyNet' and repl_mm.plan_of(backbone).depths == (3,)


def test_a_subclass(my_resnet):
    with DefaultScope.overwrite_default_scope('mmdet'):
        backbone = MODELS.build(dict(type='RepLMyResNet', depth=18, base_channels=8, replace=dict(mode='own')))
        assert type(backbone).__name__ == 'MyResNet'
        assert repl_mm.plan_of(backbone).mode == 'own'
        assert repl_mm.plan_of(MODELS.build(dict(type='MyResNet', depth=18, base_channels=8))) is None
        assert config.stock_config(dict(type='RepLMyResNet', depth=18))['type'] == 'MyResNet'


@pytest.mark.parametrize('types', [('ResNet', 'MyResNet'), ('MyResNet', 'ResNet')], ids=' into '.join)
def test_weights_of_a_parent_and_its_subclass_are_the_same(types, my_resnet):
    settings = dict(depth=18, base_channels=8)
    with DefaultScope.overwrite_default_scope('mmdet'):
        one, other = (
            MODELS.build(dict(settings, type=f'RepL{type_}', replace=dict(slots=[(2, 1)]))) for type_ in types
        )
        third = MODELS.build(dict(settings, type=f'RepL{types[1]}', replace=dict(slots=[(1, 1)])))
        stocks = [MODELS.build(dict(settings, type=type_)) for type_ in types]
    stocks[1].load_state_dict(stocks[0].state_dict())  # the control
    other.load_state_dict(one.state_dict())
    image = torch.randn(1, 3, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(one(image), other(image), strict=True))
    with pytest.raises(repl_mm.PlanError, match=r'slots only in the checkpoint: \[\(2, 1\)\]') as raised:
        third.load_state_dict(one.state_dict())
    assert f'backbone: {types[0]!r} in the checkpoint, {types[1]!r} in the model' in str(raised.value)
