"""Make a virtual environment and install a tested stack and this package into it.

``python requirements/install.py openmmlab .venv`` is what ``make install`` runs; a stack is a file of pinned versions
beside this one. The order of the steps matters: mmcv is compiled against the torch, setuptools and ninja that are
already in the environment, so these come first, and what imports mmcv comes after it. What is there is skipped.
"""

import argparse
import functools
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
STACKS = sorted(file.stem for file in HERE.glob('*.txt') if 'torch==' in file.read_text())
PYTHONS = ((3, 10), (3, 12))
MMCV_CORE_MINUTES = 16  # without CUDA


def stop(message):
    """End the installation with one line."""
    sys.exit(f'install: {message}')


def check_machine():
    """Stop if this Python or the compiler cannot build the stack."""
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        low, high = ('.'.join(map(str, version)) for version in PYTHONS)
        stop(f'Python {low} to {high} is needed, this is {sys.version.split()[0]} ({sys.executable}); set PYTHON=...')
    for tool in ('gcc', 'g++'):
        if not shutil.which(tool):
            stop(f'{tool} is needed to compile mmcv and was not found (Debian: apt-get install build-essential)')
    if not Path(sysconfig.get_paths()['include'], 'Python.h').is_file():
        stop('Python.h is needed to compile mmcv and was not found (Debian: apt-get install python3-dev)')


def make_venv(folder):
    """Make the virtual environment ``folder`` if it is not there and return its Python."""
    python = folder / 'bin' / 'python'
    if not python.exists():
        try:
            venv.create(folder, with_pip=True)
        except subprocess.CalledProcessError:
            shutil.rmtree(folder, ignore_errors=True)
            stop('this Python cannot make virtual environments (Debian: apt-get install python3-venv)')
    return python


def succeeds(python, code):
    """Whether ``code`` runs without an error in the environment."""
    return subprocess.run([python, '-c', code], capture_output=True).returncode == 0


def pip_install(python, stack, *args, env=None, report=None):
    """Run ``pip install`` with the tested versions as constraints and stop if it fails.

    Args:
        python (Path): Python of the environment.
        stack (Path): File of the tested versions.
        *args (str): Arguments of ``pip install``.
        env (dict): Environment variables to add. Defaults to None.
        report (callable): Returns a line to print every 15 seconds, for what pip does in silence. Defaults to None.
    """
    command = [python, '-m', 'pip', 'install', '--disable-pip-version-check', '-c', stack, *args]
    process = subprocess.Popen(command, env={**os.environ, **(env or {})})
    while process.poll() is None:
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            if report:
                print(report(), flush=True)
    if process.returncode:
        stop(f'pip failed with exit code {process.returncode} on: {" ".join(map(str, args))}')


def count_cores():
    """Return the number of cores that this process may use; of the machine, where the system cannot tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def distribution(stack, name):
    """Return what the package of a name is called in a stack: 'mmcv' or, in OneDL's, 'onedl-mmcv'."""
    lines = stack.read_text().splitlines()
    return next(line.partition('==')[0] for line in lines if line.partition('==')[0] in (name, f'onedl-{name}'))


def install_mmcv(python, stack, *args):
    """Compile mmcv with its operators and say meanwhile how far it is."""
    has_cuda = 'import sys, torch; sys.exit(not torch.cuda.is_available())'
    has_nvcc = 'import sys; from torch.utils.cpp_extension import CUDA_HOME; sys.exit(not CUDA_HOME)'
    if succeeds(python, has_cuda) and not succeeds(python, has_nvcc):
        stop(
            'this machine has a CUDA device but no nvcc to compile mmcv for it: install the CUDA toolkit of '
            'the version that torch was built with and set CUDA_HOME, or install for the CPU (CUDA_VISIBLE_DEVICES=-1)'
        )
    jobs = os.environ.get('MAX_JOBS') or str(count_cores())
    minutes = MMCV_CORE_MINUTES / int(jobs)
    print(f'mmcv is compiled now: about {minutes:.0f} minutes on {jobs} cores, longer with CUDA', flush=True)
    start = time.monotonic()
    build = python.parent.parent / 'mmcv_build'
    shutil.rmtree(build, ignore_errors=True)  # of an installation that was killed
    build.mkdir()
    pip_install(
        python,
        stack,
        *('-q', '--no-build-isolation', *args, distribution(stack, 'mmcv')),
        env={'MMCV_WITH_OPS': '1', 'MAX_JOBS': jobs, 'TMPDIR': str(build)},
        report=lambda: compiled(build, time.monotonic() - start),
    )
    shutil.rmtree(build)


def compiled(build, seconds):
    """One line on the compilation in the folder ``build`` that has run for ``seconds``; pip hides the compiler."""
    done = sum(1 for _ in build.glob('pip-*/*mmcv*/build/**/*.o'))
    total = sum(file.read_text().count('compile /') for file in build.glob('pip-*/*mmcv*/build/**/build.ninja'))
    line = f'  mmcv: {done} of {total} files compiled in {seconds / 60:.1f} min'
    return f'{line}, about {seconds / done * (total - done) / 60:.1f} min left' if done > 2 else line


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('stack', choices=STACKS, help='tested versions: the name of a file beside this one')
    parser.add_argument('venv', type=Path, help='folder of the virtual environment')
    args = parser.parse_args()
    check_machine()
    start = time.monotonic()
    stack = HERE / f'{args.stack}.txt'
    python = make_venv(args.venv.absolute())
    install = functools.partial(pip_install, python, stack)

    def step(number, what):
        print(f'== {number}/6 {what} ({(time.monotonic() - start) / 60:.1f} min so far)', flush=True)

    step(1, 'build tools')
    install('-q', '--upgrade', 'pip')
    install('-q', 'setuptools', 'wheel', 'ninja')
    step(2, 'torch')
    # together with torchvision, if the stack has it: one must fit the other
    install('setuptools', *(line for line in stack.read_text().splitlines() if line.startswith('torch')))
    step(3, 'mmengine')
    install(distribution(stack, 'mmengine'))
    if not succeeds(python, 'import cv2'):
        # mmengine asks for opencv-python, which needs libGL; the headless build puts the same module in its place
        install('--force-reinstall', '--no-deps', 'opencv-python-headless')
    step(4, 'mmcv')
    # the second time pip must not take the wheel from its cache: it may be of another torch, or without operators
    for extra in ([], ['--no-cache-dir', '--force-reinstall', '--no-deps']):
        if not succeeds(python, 'import mmcv.ops'):
            install_mmcv(python, stack, *extra)
    if not succeeds(python, 'import mmcv.ops'):
        stop(f"mmcv was compiled and does not work; {python} -c 'import mmcv.ops' says why")
    step(5, f'the rest of requirements/{stack.name}')
    install('-r', stack)
    step(6, 'repl_mm')
    install('--no-build-isolation', '-e', f'{HERE.parent}[test,lint]')
    print(f'== installed into {args.venv} in {(time.monotonic() - start) / 60:.1f} min', flush=True)


if __name__ == '__main__':
    main()
