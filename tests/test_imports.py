"""What importing the package needs and loads, and what it does not."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
PACKAGE = REPO / 'repl_mm'


def python(code):
    """Run code in a process of its own."""
    env = dict(os.environ, PYTHONPATH=str(REPO))
    return subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)


@pytest.mark.parametrize('name', ['mmengine', 'torch'])
def test_what_is_missing_is_said_in_one_line(name):
    done = python(f'import sys; sys.modules[{name!r}] = None; import repl_mm')
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and 'During handling' not in done.stderr
    assert last.startswith(f'ImportError: repl_mm needs torch and mmengine (import of {name} halted')
    assert last.endswith("pip install 'torch>=2.6' mmengine")


def test_mmengine_is_enough():
    others = ('mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'scipy', 'sklearn', 'pycocotools', 'torchvision', 'matplotlib')
    done = python(f"""
import sys
sys.modules.update(dict.fromkeys({others}))
import repl_mm, repl_mm.choosing, repl_mm.classification, repl_mm.conversion, repl_mm.cost, repl_mm.data_checks
import repl_mm.heads, repl_mm.stock_weights, repl_mm.visualization
""")
    assert done.returncode == 0, done.stderr


def test_a_saved_config_finds_the_optimizer_wrapper():
    done = python("""
import torch, repl_mm
from mmengine.optim import build_optim_wrapper
for name in ('CPUAmpOptimWrapper', 'repl_mm.CPUAmpOptimWrapper'):
    cfg = dict(type=name, optimizer=dict(type='SGD', lr=0.1))
    print(type(build_optim_wrapper(torch.nn.Linear(1, 1), cfg)).__module__)
""")
    assert done.stdout.split() == ['repl_mm.optim'] * 2, done.stderr


@pytest.mark.parametrize('path', sorted(PACKAGE.rglob('*.py')), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_only_classification_imports_classification(path):
    if 'classification' in path.relative_to(PACKAGE).parts:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        names += [node.module or ''] if isinstance(node, ast.ImportFrom) else []
        assert not any('classification' in name.split('.') for name in names), ast.unparse(node)


@pytest.mark.parametrize('path', sorted((REPO / 'tools').rglob('*.py')), ids=lambda path: path.name)
def test_tools_are_short(path):
    assert len(path.read_text().splitlines()) <= 200
