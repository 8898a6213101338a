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
    assert [name for name in names if not hasattr(toy, name)] == ['finish']  # the optional one
    for family in families.FAMILIES:
        assert {name for name in names if not hasattr(family, name)} <= {'finish'}


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


def test_a_subclass():
    exec(SUBCLASS, {})
    with DefaultScope.overwrite_default_scope('mmdet'):
        backbone = MODELS.build(dict(type='RepLMyResNet', depth=18, base_channels=8, replace=dict(mode='own')))
        assert type(backbone).__name__ == 'MyResNet'
        assert repl_mm.plan_of(backbone).mode == 'own'
        assert repl_mm.plan_of(MODELS.build(dict(type='MyResNet', depth=18, base_channels=8))) is None
        assert config.stock_config(dict(type='RepLMyResNet', depth=18))['type'] == 'MyResNet'
    del families.FAMILIES[0]
