"""All stages in one command: tools/compress.py, repl_mm/compression.py."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import _stages
import compress as tool
import pytest
import torch
from test_healing import write_pictures
from test_tools import run_well

from repl_mm import compression
from repl_mm.healing import last_checkpoint
from repl_mm.reading import read_checkpoint

STAGES = ['plan', 'convert', 'heal', 'merge', 'stock', 'test stock', 'test converted', 'test healed', 'test merged']
WORDS = ['--images', 'data', '--shape', 32, 32, '--merge', '--cfg-options', 'model.backbone.replace.mode=own']


class Pretended:
    """Stands for the processes of the stages: each writes what the stage writes, but the one that is to be killed."""

    def __init__(self):
        self.ran, self.kill, self.code, self.words = [], None, -9, {}

    def __call__(self, command, lock):
        name, words = Path(command[1]).name, command[2:]
        self.ran.append(name)
        self.words[name] = list(map(str, words))
        if len(self.ran) == self.kill:
            return self.code, None
        if name == 'plan.py':
            out = Path(words[words.index('--out') + 1])
            out.mkdir(parents=True)
            (out / 'resnet_chosen.py').write_text('')
            step, shape = dict(slots=[[1, 1]], distance=0.1, left=0.75), dict(shape=[32, 32], batch=2)
            plan = dict(backbone='CifarResNet', measure='flops', limit=0.8, words=dict(mode='own'), share='1 own')
            plan['counted'] = "the classifier's logits"
            (out / 'plan.json').write_text(json.dumps(dict(plan, slots=[[1, 1]], steps=[step], **shape)))
        elif name == 'test.py':
            work = Path(words[words.index('--work-dir') + 1]) / '1'
            work.mkdir(parents=True)
            (work / '1.json').write_text(json.dumps({'time': 1.0, 'accuracy/top1': 50.0 + len(self.ran)}))
        else:
            for word in words:
                if word.endswith(('healed.pth', 'merged.pth', 'stock.pth', 'converted.pth')) and 'out' in word:
                    Path(word).touch()
                    if word.endswith('merged.pth'):
                        Path(word).with_suffix('.py').write_text('')
        return 0, 10**9


def call(config, *words, stock='stock.pth'):
    tool.main([str(word) for word in (config, stock, 'out', *words)])


def test_what_was_done_is_not_done_again(prepared, tmp_path, monkeypatch, capsys):
    """Killed at every stage in turn, it runs that one again and no other."""
    processes = Pretended()
    monkeypatch.setattr(_stages, 'run_measured', processes)
    order = ['plan.py', 'convert.py', 'heal.py', 'merge.py', 'convert.py', *4 * ['test.py']]
    for stage in range(len(order)):
        processes.ran, processes.kill = [], 1 if stage == 0 else 2
        with pytest.raises(SystemExit) as stopped:
            call(prepared, *WORDS)
        killed = STAGES[stage]
        assert f'{killed} was killed by SIGKILL; the same command goes on from here' in stopped.value.code
        assert processes.ran == (order[:1] if stage == 0 else order[stage - 1 : stage + 1])
    processes.ran, processes.kill = [], None
    call(prepared, *WORDS)
    assert processes.ran == order[-1:]
    assert list(json.loads(Path('out/took.json').read_text())) == STAGES
    report = Path('out/report.md').read_text()
    assert "Distances are those of the classifier's logits" in report
    assert '0.750 of its flops are left, at most 0.8 were wanted' in report
    assert [line.split('|')[2].strip() for line in report.splitlines() if line.startswith('| healed')] != ['-']
    for words, change in (
        (['--heal-steps', 5], "heal was done with '--steps 400', now with '--steps 5'"),
        (['--amp'], "heal was done with nothing more, now with '--amp'"),
        (['--flops', 0.7], "plan was done with '--flops 0.8', now with '--flops 0.7'"),
    ):
        with pytest.raises(SystemExit, match=f"OUT_DIR 'out': {change}: expected the same, or another folder"):
            call(prepared, *WORDS[:5], *words, *WORDS[5:])
    Path('out/converted.pth').write_text('of another fit')
    with pytest.raises(SystemExit, match=r"heal was done with another content of '.*out/converted.pth': expected"):
        call(prepared, *WORDS)


def test_a_word_that_no_finished_stage_had_may_be_changed(prepared, monkeypatch):
    processes = Pretended()
    monkeypatch.setattr(_stages, 'run_measured', processes)
    processes.kill, processes.code = 3, 1  # healing ends with an error
    with pytest.raises(SystemExit):
        call(prepared, *WORDS, '--lr', 1)
    processes.ran, processes.kill = [], None
    call(prepared, *WORDS, '--lr', 1e-3)
    assert processes.ran[0] == 'heal.py' and '0.001' in processes.words['heal.py']


def test_other_data_may_be_named_where_no_test_was_done(prepared, monkeypatch):
    """The config of the stock network, which the command writes itself, is another one then."""
    processes = Pretended()

    def without_tests(command, lock):
        return (1, None) if Path(command[1]).name == 'test.py' else processes(command, lock)

    monkeypatch.setattr(_stages, 'run_measured', without_tests)
    configs = []
    for root in ('data', 'data/.'):
        call(prepared, *WORDS[:5], '--data-root', root, *WORDS[5:])
        configs.append(Path('out/stock.py').read_text())
    assert configs[0] != configs[1]
    assert processes.ran == ['plan.py', 'convert.py', 'heal.py', 'merge.py', 'convert.py']
    assert '`tools/test.py` failed on stock.pth' in Path('out/report.md').read_text()


def test_a_report_is_written_without_a_test_that_fails(prepared, monkeypatch):
    processes = Pretended()
    monkeypatch.setattr(_stages, 'run_measured', processes)
    processes.kill, processes.code = 7, 1  # the test of converted.pth
    call(prepared, *WORDS, '--lr', 1e-3, '--heal-options', 'model.norm_eval=False')
    report = Path('out/report.md').read_text()
    assert '`tools/test.py` failed on converted.pth: the same command tests it again.' in report
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in report.splitlines() if line[:1] == '|']
    assert ['blocks replaced, layers fitted', '-', 'converted.pth'] in rows and ['healed', '58', 'healed.pth'] in rows
    words = processes.words['heal.py']
    assert words[words.index('--lr') + 1] == '0.001' and words[-2:] == ['--cfg-options', 'model.norm_eval=False']
    processes.ran, processes.kill = [], None
    call(prepared, *WORDS, '--lr', 1e-3, '--heal-options', 'model.norm_eval=False')
    assert processes.ran == ['test.py'] and 'failed' not in Path('out/report.md').read_text()


def test_layers_can_learn_a_classifiers_answers(prepared, monkeypatch):
    """The fit takes them, all layers together; what is planned is fitted block by block all the same."""
    processes = Pretended()
    monkeypatch.setattr(_stages, 'run_measured', processes)
    processes.kill = 3  # before convert.py runs a second time, for the stock network
    for words, answers, steps in (([], False, '150'), (['--answers'], True, '0')):
        processes.ran = []
        with pytest.raises(SystemExit):
            tool.main([str(word) for word in (prepared, 'stock.pth', f'out{steps}', *words, *WORDS)])
        fit, plan = processes.words['convert.py'], processes.words['plan.py']
        assert ('--answers' in fit) == answers and fit[fit.index('--block-steps') + 1] == steps
        assert '--answers' not in plan and plan[plan.index('--block-steps') + 1] == '150'


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--images', 'nowhere'], "--images 'nowhere': no such folder"),
        (['--cfg-options', 'model.backbone.replace.mode=no', 'a=1'], "replace.mode='no' is not valid"),
        (['--cfg-options', 'model.backbone.type=VGG'], "does not support backbone type 'VGG'"),
        (['--cfg-options', 'model.second_backbone.type=RepLCifarResNet'], 'expected one backbone, the model has'),
        (['--cfg-options', 'model.backbone.depth=32'], "'stock.pth' has no values for"),
        (['--answers'], "--answers: 'no_head.pth' has no head of the config's classifier"),
        (['--flops', 0.01], 'flops=0.01 is out of reach'),
        (['--heal-options', 'model.temprature=2'], "unexpected keyword argument 'temprature'"),
        (['--heal-options', 'model.temperature=-2'], 'HealedModel.temperature=-2 is not valid'),
        (['--images', 'few'], "few': 10 images, expected at least 16"),
        (['--images', 'broken'], "broken': 15 images, expected at least 16; 1 cannot be read, first: "),
    ],
)
def test_it_ends_in_one_line(prepared, words, message, capfd, monkeypatch):
    write_pictures(Path('few'), 10)
    write_pictures(Path('broken'), 15)
    Path('broken/x.png').write_text('no picture')

    def plan_here(command, lock):  # in this process, which has imported everything
        import plan

        plan.main([str(word) for word in command[2:]])

    monkeypatch.setattr(_stages, 'run_measured', plan_here)
    stock = 'stock.pth'
    if '--answers' in words:
        stock = 'no_head.pth'
        state = torch.load('stock.pth')
        torch.save({key: value for key, value in state.items() if not key.startswith('head.')}, stock)
    with pytest.raises(SystemExit) as stopped:
        call(prepared, '--images', 'data', '--shape', 32, 32, *words, stock=stock)
    assert message in str(stopped.value) and '\n' not in str(stopped.value)
    assert not list(Path('out').rglob('*.pth'))


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ([], 'the following arguments are required: --images'),
        (['--images', 'data', '--flops', 1.2], 'argument --flops: 1.2 is not valid'),
        (['--images', 'data', '--shape', 0, 8], 'argument --shape: 0 is not valid: expected a number of pixels'),
        (
            ['--images', 'data', '--flops', 0.8, '--params', 0.7],
            'argument --params: not allowed with argument --flops',
        ),
        (['--images', 'data', '--heal-steps', -1], '--heal-steps -1: must be at least 0'),
        (['--images', 'data', '--num', 5], '--num 5: must be at least 16'),
        (['--images', 'data', '--lr', 0], 'argument --lr: 0 is not valid: expected a number above 0'),
        (['--images', 'data', '--seed', -1], 'argument --seed: -1 is not valid: expected a whole number from 0 to'),
        (['--images', 'data', '--flops', '80%'], 'argument --flops: 80% is not valid: expected what may be left'),
    ],
)
def test_words_that_contradict_are_named(words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        call('config.py', *words)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_why_nothing_is_tested(prepared, tmp_path):
    cfg = tool.config.read_config(str(prepared))
    assert 'has the weights of the backbone alone, or those of other classes' in tool.test_note(cfg, False, 'x.pth')
    assert 'Nothing was tested: dataset not found' in tool.test_note(cfg, True, 'x.pth')
    cfg.test_dataloader = None
    assert tool.test_note(cfg, True, 'x.pth') == 'Nothing was tested: the config has no test set.'


def test_what_a_process_took():
    """Its own peak, not that of this process, nor that of one that was larger before it."""
    program = "x = b'1' * {}; import time; time.sleep(1); raise SystemExit({})"
    ours = b'1' * 2**29
    with open(os.devnull) as lock:
        (code, most), (other, least) = (
            _stages.run_measured([sys.executable, '-c', program.format(*words)], lock.fileno())
            for words in ((2**30, 3), (1, 0))
        )
    assert (code, other) == (3, 0)
    assert most > 2**30 > len(ours) > least


def test_an_interrupted_stage_is_ended_and_what_it_took_is_kept(tmp_path, monkeypatch):
    def interrupt(pid):
        pids.append(pid)
        if len(pids) == 3:
            raise KeyboardInterrupt
        return 7

    pids = []
    monkeypatch.setattr(_stages, 'TOOLS', tmp_path)
    (tmp_path / 'sleep.py').write_text('import time; time.sleep(60)')
    (tmp_path / 'quick.py').write_text('import time; time.sleep(0.3); raise SystemExit(2)')
    monkeypatch.setattr(_stages, 'peak_memory', interrupt)
    with _stages.Stages(tmp_path) as stages:
        with pytest.raises(KeyboardInterrupt, match='heal was interrupted; the same command goes on from here'):
            stages.run('heal', bool, 'sleep.py')
        with pytest.raises(ProcessLookupError):
            os.kill(pids[0], 0)
        first = stages.took['heal']['seconds']
        with pytest.raises(SystemExit) as stopped:
            stages.run('heal', bool, 'quick.py')
        assert stopped.value.code == 2
    with _stages.Stages(tmp_path) as stages:
        assert stages.took['heal']['seconds'] >= first + 0.3 and stages.took['heal']['peak'] == 7
        assert not stages.run('test', bool, 'quick.py', needed=False) and stages.run('test', lambda: True, 'quick.py')


@pytest.mark.parametrize('sign', [signal.SIGTERM, signal.SIGKILL])
def test_a_folder_has_one_process(sign, tmp_path, monkeypatch):
    """A command that is ended takes its stage along; one that is killed cannot, and no second one starts beside it."""
    monkeypatch.setattr(_stages, 'WAIT', 0)
    (tmp_path / 'stage.py').write_text(
        f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )
    program = (
        f'import sys; sys.path.insert(0, {str(Path(_stages.__file__).parent)!r})\nimport _stages, pathlib\n'
        f'_stages.TOOLS = out = pathlib.Path({str(tmp_path)!r})\n'
        'with _stages.Stages(out) as stages: stages.run("a", bool, "stage.py")'
    )
    with open(tmp_path / 'errors', 'w') as errors:
        process = subprocess.Popen([sys.executable, '-c', program], stderr=errors)
    pid = tmp_path / 'pid'
    while not pid.is_file() or not pid.read_text():
        assert process.poll() is None, (tmp_path / 'errors').read_text()
        time.sleep(0.02)
    with pytest.raises(SystemExit, match='is in use'), _stages.Stages(tmp_path):
        pass
    process.send_signal(sign)
    process.wait()
    error, stage = (tmp_path / 'errors').read_text(), int(pid.read_text())
    if sign == signal.SIGTERM:
        assert 'a was interrupted; the same command goes on from here' in error
        with pytest.raises(ProcessLookupError):
            os.kill(stage, 0)
    else:
        with pytest.raises(SystemExit, match='by a stage that one left behind'), _stages.Stages(tmp_path):
            pass
        os.kill(stage, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while True:
        with suppress(SystemExit), _stages.Stages(tmp_path):
            break
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_scores_are_those_that_were_tested_last(tmp_path):
    assert compression.score(tmp_path) is None
    for stamp, value in (('20260101_1', 0.1), ('20260101_2', 0.2)):
        (tmp_path / stamp).mkdir()
        (tmp_path / stamp / f'{stamp}.json').write_text(json.dumps({'coco/bbox_mAP_50': 0.9, 'coco/bbox_mAP': value}))
        (tmp_path / stamp / 'other.json').write_text('{}')
    assert compression.score(tmp_path) == ('coco/bbox_mAP', 0.2)


@pytest.mark.slow
def test_the_whole_chain(prepared, tmp_path):
    few = ['--num', 24, '--block-steps', 2, '--fit-steps', 2, '--heal-steps', 4, '--batch', 8, '--flops', 0.9]
    log = run_well('compress.py', prepared, 'stock.pth', 'out', *few, *WORDS, cwd=tmp_path)
    assert 'load_from=' in log
    saved = {name: read_checkpoint(f'out/{name}.pth')['state_dict'] for name in ('converted', 'healed', 'merged')}
    assert list(saved['converted']) == list(saved['healed']) and len(saved['merged']) <= len(saved['healed'])
    report = Path('out/report.md').read_text()
    assert report.count('accuracy/top1') == 1 and 'plan/plan.png' in report and 'healing.png' in report
    assert Path('out/healing.png').is_file() and Path('out/plan/plan.png').is_file()


@pytest.mark.slow
def test_killed_while_it_heals_it_goes_on_from_the_checkpoint(prepared, tmp_path):
    write_pictures(tmp_path / 'pictures', 20, (32, 32))
    steps = 200  # a checkpoint every 50
    words = ['--images', 'pictures', '--shape', 32, 32, '--num', 20, '--block-steps', 1, '--fit-steps', 1]
    words += ['--flops', 0.9, '--heal-steps', steps, '--batch', 8, '--cfg-options', 'test_dataloader=None']
    words = [prepared, 'stock.pth', 'out', *words, 'train_dataloader.num_workers=0']
    words += ['train_dataloader.persistent_workers=False']
    out, mark = tmp_path / 'out', tmp_path / 'out' / 'heal' / 'last_checkpoint'
    with open('log', 'w') as log:
        command = [sys.executable, tool.__file__, *map(str, words)]
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        while process.poll() is None and last_checkpoint(mark.parent) is None:
            time.sleep(0.02)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, Path('log').read_text()[-3000:]
    done = int(Path(mark.read_text()).stem.removeprefix('iter_'))
    assert 0 < done < steps and not (out / 'healed.pth').exists()
    files = out / 'plan' / 'plan.json', out / 'converted.pth'
    before = [file.stat().st_mtime_ns for file in files]

    log = run_well('compress.py', *words, cwd=tmp_path)
    assert [file.stat().st_mtime_ns for file in files] == before
    assert f'resumed epoch: 0, iter: {done}' in log
    logged = [int(step) for step in re.findall(rf'Iter\(train\) \[ *(\d+)/{steps}\]', log)]
    assert done < logged[0] <= done + 20 and logged[-1] == steps
    assert (out / 'healed.pth').is_file() and (out / 'report.md').is_file()
