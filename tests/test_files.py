"""What the tools write: nothing that they read, nothing by halves, and nowhere that cannot be written to."""

import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import _files
import _stages
import pytest
import torch
from small import REPO

TOOLS = REPO / 'tools'


def run(tool, *words, **more):
    command = [sys.executable, TOOLS / tool, *map(str, words)]
    return subprocess.run(command, env={**os.environ, 'PYTHONPATH': str(REPO)}, capture_output=True, text=True, **more)


@pytest.fixture
def trained(prepared, tmp_path):
    """The prepared folder with weights of its RepL model too."""
    from test_conversion import build_model

    torch.save(dict(state_dict=build_model(prepared).state_dict()), 'start.pth')
    (tmp_path / 'merged.py').write_text('a = 1\n')
    (tmp_path / 'inherits.py').write_text("_base_ = 'resnet.py'\n")
    return prepared


@pytest.mark.parametrize(
    'tool, words, said',
    [
        ('convert.py', 'stock.pth CONFIG ./stock.pth', "OUT 'stock.pth' would overwrite 'stock.pth', which is read"),
        ('convert.py', 'stock.pth CONFIG cut', "OUT 'cut' is a folder"),
        ('convert.py', 'stock.pth CONFIG out.py', "OUT 'out.py': expected a file name that ends with .pth"),
        ('convert.py', 'stock.pth CONFIG merged.py/x.pth', "OUT 'merged.py/x.pth': 'merged.py' cannot be"),
        ('heal.py', 'CONFIG stock.pth start.pth stock.pth --images data', 'would overwrite'),
        ('heal.py', 'CONFIG stock.pth start.pth data/../start.pth --images data', 'would overwrite'),
        ('merge.py', 'CONFIG start.pth start.pth', 'would overwrite'),
        ('merge.py', 'CONFIG start.pth resnet.pth', "would overwrite 'resnet.py', which is read"),
        ('merge.py', 'inherits.py start.pth resnet.pth', "'resnet.py', which is not of a merged model"),
        ('merge.py', 'CONFIG start.pth merged.pth', "'merged.py', which is not of a merged model"),
        ('plan.py', 'CONFIG stock.pth --images data --out merged.py', "--out 'merged.py': 'merged.py' cannot be"),
        ('compress.py', 'CONFIG stock.pth . --images data', "holds 'merged.py', which this command did not make"),
        ('compress.py', 'CONFIG stock.pth cut --images data', "OUT_DIR 'cut' holds a damaged took.json"),
    ],
)
def test_out_is_no_file_that_is_read_and_can_be_written(tool, words, said, trained, tmp_path):
    (tmp_path / 'cut').mkdir()
    (tmp_path / 'cut' / 'took.json').write_text('{"plan": {"seco')
    before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
    done = run(tool, *words.replace('CONFIG', Path(trained).name).split())
    lines = [line for line in done.stderr.splitlines() if 'Warning' not in line and not line.startswith('  ')]
    assert done.returncode and len(lines) == 1 and said in lines[0]
    (tmp_path / 'cut' / 'lock').unlink(missing_ok=True)
    (tmp_path / 'lock').unlink(missing_ok=True)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}


def test_what_cannot_be_written_whole_leaves_nothing(trained, tmp_path):
    """As on a full disk: what stood there stays, no part of the new file does, and one line says why."""
    before = (tmp_path / 'start.pth').read_bytes()
    limit = len(before) // 2
    done = run(
        'convert.py', 'stock.pth', trained, 'start.pth',
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == "convert.py: File too large: 'start.pth'"
    assert 'Traceback' not in done.stderr
    assert (tmp_path / 'start.pth').read_bytes() == before and not list(tmp_path.glob('*.part'))


def test_an_interruption_is_one_line_and_stays_one(trained, tmp_path):
    """A shell ends its loop where the process ends by the signal, not where it ends with an exit code."""

    def heed():  # where this runs in the background of a script, it would be ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    words = ['stock.pth', '--images', 'data', '--fit', '--block-steps', '100000', '--num', '16', '--out', 'plan']
    with open('said', 'w') as said:
        process = subprocess.Popen(
            [sys.executable, TOOLS / 'plan.py', trained, *words], stdout=said, stderr=said, preexec_fn=heed
        )
    deadline = time.monotonic() + 60
    while 'what counts' not in Path('said').read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert 'what counts' in Path('said').read_text()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == -signal.SIGINT
    text = Path('said').read_text()
    assert text.splitlines()[-1] == 'plan.py: interrupted' and 'Traceback' not in text


def test_a_fingerprint_is_that_of_the_content(tmp_path):
    file = tmp_path / 'x'
    file.write_bytes(bytes(range(256)) * 1000)
    assert _files.fingerprint(file) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_of_a_damaged_file_nothing_is_read(tmp_path):
    file = tmp_path / 'plan.json'
    assert _stages.read_json(file) is None
    for text, expected in {'{"a": 1}': dict(a=1), '{"a"': None, '': None, '[]': None}.items():
        file.write_text(text)
        assert _stages.read_json(file) == expected
