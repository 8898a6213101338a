"""What a stranger gets: the built wheel in an environment of its own, used from a folder that is not the checkout."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from small import REPO, write_cifar

import repl_mm

TINY = ['train_dataloader.batch_size=8', 'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False']
TINY += [word.replace('train', 'val') for word in TINY] + ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1']
TINY += ['model.backbone.depth=20', 'param_scheduler=None']


def command(*words, cwd):
    """Run a command that knows nothing of the checkout; return its exit code and its output."""
    env = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    done = subprocess.run(list(map(str, words)), cwd=cwd, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope='module')
def clean(tmp_path_factory):
    """An environment with the wheel and, from this environment, everything but the editable installation.

    A folder in a .pth file is searched, but the .pth files in it are not read: these lead to the checkout.
    """
    folder = tmp_path_factory.mktemp('clean')
    pip = [sys.executable, '-m', 'pip', '-q', '--disable-pip-version-check']
    code, output = command(
        *(*pip, 'wheel', REPO, '--no-build-isolation', '--no-deps', '-w', folder / 'wheel'), cwd=folder
    )
    assert code == 0, output
    (wheel,) = (folder / 'wheel').glob('repl_mm-*.whl')
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder / 'venv'], check=True)
    python = folder / 'venv' / 'bin' / 'python'
    packages = Path(
        command(python, '-c', "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)[1].strip()
    )
    (packages / 'stack.pth').write_text(sysconfig.get_path('purelib'))
    install = [*pip, '--python', python, 'install', '--no-deps', '--ignore-installed']
    code, output = command(*install, '--no-index', wheel, cwd=folder)
    assert code == 0, output
    inside = packages / 'repl_mm' / '.mim'
    (folder / 'elsewhere').mkdir()
    write_cifar(folder / 'cifar' / 'cifar-10-batches-py')
    return SimpleNamespace(
        python=python,
        tools=inside / 'tools',
        inside=inside,
        cwd=folder / 'elsewhere',
        install=install,
        data=folder / 'cifar',
    )


def test_the_wheel_is_what_is_imported(clean):
    code, output = command(
        clean.python, '-c', 'import repl_mm; print(repl_mm.__file__, repl_mm.__version__)', cwd=clean.cwd
    )
    assert output.split() == [str(clean.inside.parent / '__init__.py'), repl_mm.__version__]


def test_the_wheel_carries_every_config_and_tool(clean):
    for folder in ('configs', 'tools'):
        have = {str(file.relative_to(clean.inside)) for file in (clean.inside / folder).rglob('*.*')}
        tracked = subprocess.run(['git', 'ls-files', folder], cwd=REPO, capture_output=True, text=True).stdout.split()
        assert {file for file in have if '__pycache__' not in file} >= set(tracked) != set()


def test_a_tool_takes_our_configs_by_name(clean):
    name = 'repl_mm::classification/resnet32_repl_cifar10.py'
    words = ['--data-root', clean.data, '--work-dir', 'out', '--cfg-options', *TINY]
    code, output = command(clean.python, clean.tools / 'train.py', name, *words, cwd=clean.cwd)
    assert code == 0 and 'accuracy/top1' in output and 'is not installed' not in output, output[-3000:]
    assert (clean.cwd / 'out' / 'epoch_1.pth').is_file()


def test_other_peoples_configs_take_ours_as_a_base(clean):
    """mmengine wants a folder in such a name."""
    (clean.cwd / 'mine.py').write_text("_base_ = 'repl_mm::_base_/../retinanet_r50_repl_coco.py'\nwork_dir = 'mine'\n")
    code = "import repl_mm.config as c; cfg = c.read_config('mine.py'); print(cfg.model.backbone.type, cfg.work_dir)"
    code, output = command(clean.python, '-W', 'ignore', '-c', code, cwd=clean.cwd)
    assert output.split()[-2:] == ['RepLResNet', 'mine']


def test_mim_trains_and_runs_our_tools(clean):
    code, output = command(*clean.install, '-r', REPO / 'requirements' / 'mim.txt', cwd=clean.cwd)
    assert code == 0, output
    mim = [clean.python, '-W', 'ignore', '-m', 'mim']
    words = ['--data-root', clean.data, '--work-dir', 'by_mim', '--cfg-options', *TINY]
    code, output = command(*mim, 'train', 'repl_mm', 'resnet32_repl_cifar10.py', '--gpus', 0, *words, cwd=clean.cwd)
    assert code == 0 and (clean.cwd / 'by_mim' / 'epoch_1.pth').is_file(), output[-3000:]
    words = ['repl_mm::classification/resnet32_repl_cifar10.py', '--shape', 32, 32, '--arms', 'e2e']
    code, output = command(*mim, 'run', 'repl_mm', 'cost', *words, cwd=clean.cwd)
    assert code == 0 and '463.50 k' in output, output[-3000:]
    code, output = command(*mim, 'search', 'repl_mm', '--config', 'retinanet_r50_repl_coco', cwd=clean.cwd)
    assert code == 0 and 'none published' in output, output[-3000:]


def test_the_metafile_names_every_config_once_and_no_results():
    index = yaml.safe_load((REPO / 'model-index.yml').read_text())
    models = [model for file in index['Import'] for model in yaml.safe_load((REPO / file).read_text())['Models']]
    shipped = [file for file in (REPO / 'configs').rglob('*.py') if '_base_' not in file.parts]
    assert sorted(model['Config'] for model in models) == sorted(str(file.relative_to(REPO)) for file in shipped)
    assert [model['Name'] for model in models] == [Path(model['Config']).stem for model in models]
    assert not any({'Weights', 'Results'} & set(model) for model in models)  # there are none yet
