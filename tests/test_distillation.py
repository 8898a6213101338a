"""Learning from a trained classifier: repl_mm/classification/distillation.py."""

import copy

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, DefaultScope
from scipy.special import log_softmax
from test_classification import CONFIGS, resnet, train_config, write_cifar
from test_tools import run, run_well

import repl_mm
from repl_mm.reading import read_checkpoint

TEACHER = dict(
    type='ImageClassifier',
    backbone=dict(type='CifarResNet', depth=20, base_channels=4),
    num_classes=10,
    in_channels=16,
)
STUDENT = dict(
    TEACHER,
    type='DistilledClassifier',
    backbone=dict(type='RepLCifarResNet', depth=20, base_channels=4),
    teacher_config=dict(model=TEACHER),
)


def build(settings):
    with DefaultScope.overwrite_default_scope('repl_mm'):
        return MODELS.build(copy.deepcopy(settings))


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    """A teacher whose norms have statistics, and its checkpoint."""
    torch.manual_seed(0)
    model = build(TEACHER)
    model.init_weights()
    for _ in range(5):
        model(torch.randn(16, 3, 32, 32) * 2 + 1)
    file = tmp_path_factory.mktemp('teacher') / 'teacher.pth'
    torch.save(dict(state_dict=model.state_dict()), file)
    return model.eval(), str(file)


@pytest.mark.parametrize('temperature', [1, 4.0])
def test_the_loss_is_the_divergence_of_the_softened_answers(teacher, temperature):
    model, file = teacher
    student = build(dict(STUDENT, teacher_ckpt=file, temperature=temperature))
    images = torch.randn(6, 3, 32, 32)
    logits = torch.randn(6, 10)
    log_p, log_q = (log_softmax(x.detach().double().numpy() / temperature, 1) for x in (model(images), logits))
    expected = temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum(1).mean()
    assert student.loss(images, logits, None).item() == pytest.approx(expected, rel=1e-4)
    assert student.loss(images, model(images), None).item() == pytest.approx(0, abs=1e-5)


def test_the_teacher_stays_as_it_is_and_is_no_part_of_the_student(teacher):
    model, file = teacher
    student = build(dict(STUDENT, teacher_ckpt=file))
    plain = build(
        {key: value for key, value in STUDENT.items() if key != 'teacher_config'} | dict(type=TEACHER['type'])
    )
    assert set(student.state_dict()) == set(plain.state_dict())
    assert [name for name, _ in student.named_parameters()] == [name for name, _ in plain.named_parameters()]
    student.init_weights()
    student.train()
    optimizer = OptimWrapper(torch.optim.SGD(student.parameters(), 0.1))
    for _ in range(3):
        loss = student(torch.randn(8, 3, 32, 32), torch.zeros(8), mode='loss')['loss']
        optimizer.update_params(loss)
    for key, value in student.teacher[0].state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[key], rtol=0, atol=0)
    assert student.double()(torch.randn(2, 3, 32, 32).double(), mode='loss')['loss'].isfinite()


@pytest.mark.slow
def test_a_run_learns_what_the_teacher_answers_and_resumes(teacher, tmp_path):
    model, file = teacher
    write_cifar(tmp_path / 'data', num=40)
    cfg = resnet(tmp_path / 'data', tmp_path / 'work')
    (tmp_path / 'teacher.py').write_text(Config(dict(model=TEACHER, default_scope='repl_mm')).pretty_text)
    cfg.model.update(type='DistilledClassifier', teacher_config=str(tmp_path / 'teacher.py'), teacher_ckpt=file)
    cfg.model.channels_last = True
    cfg.default_hooks.ema = dict(type='EMAHook', momentum=0.1)
    cfg.default_hooks.logger = dict(type='LoggerHook', interval=1)
    cfg.optim_wrapper = dict(type='CPUAmpOptimWrapper', optimizer=dict(type='AdamW', lr=1e-2))
    cfg.param_scheduler = []
    cfg.train_cfg.max_epochs = 4
    runner = train_config(cfg)
    losses = runner.message_hub.get_scalar('train/loss').data[0]
    assert len(losses) == runner.iter == 4 * 13 and losses[-5:].mean() < 0.5 * losses[:5].mean()
    assert len(repl_mm.plan_of(runner.model.backbone).slots) == 3

    cfg.train_cfg.max_epochs = 5
    cfg.update(resume=True, load_from=str(tmp_path / 'work' / 'epoch_4.pth'), experiment_name='resumed')
    assert train_config(cfg).iter == 5 * 13


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(temperature=0), r'DistilledClassifier\.temperature=0 is not valid: expected a number above 0'),
        (
            dict(teacher_config=dict(backbone=1)),
            r'DistilledClassifier\.teacher_config=.* is not valid: it has no model',
        ),
        (dict(teacher_ckpt='nowhere.pth'), r"DistilledClassifier\.teacher_ckpt='nowhere.pth' is not valid: .*nowhere"),
        (
            dict(
                teacher_config=dict(model=dict(TEACHER, backbone=dict(type='CifarResNet', depth=32, base_channels=4)))
            ),
            r'DistilledClassifier\.teacher_ckpt=.* is not valid: .*layer1\.3\.conv1\.weight.* expected a checkpoint',
        ),
        (dict(num_classes=5), r'DistilledClassifier\.num_classes=5 is not valid: the teacher has 10'),
    ],
)
def test_wrong_settings_are_named_in_one_line(teacher, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        build({**STUDENT, 'teacher_ckpt': teacher[1], **changes})
    assert '\n' not in str(error.value)


@pytest.mark.slow
def test_the_chain_from_stock_weights_to_an_epoch_of_distillation(tmp_path):
    """The shipped config, after tools/convert.py has made its teacher and its start; without them it says so."""
    write_cifar(tmp_path / 'data')
    config = CONFIGS / 'resnet32_repl_cifar10_converted.py'
    options = ['--data-root', 'data', '--cfg-options', 'custom_hooks.0.shape=None', 'load_from=start.pth']
    done = run('train.py', config, *options, cwd=tmp_path)
    assert done.returncode and done.stderr.splitlines()[-1] == "train.py: checkpoint 'start.pth' not found"

    torch.manual_seed(0)
    stock = build(Config.fromfile(CONFIGS / 'resnet32_cifar10.py').model)
    stock.init_weights()
    torch.save(dict(state_dict=stock.state_dict()), tmp_path / 'stock.pth')
    fit = ['--fit', 'data', '--num', 16, '--steps', 1, '--block-steps', 1]
    run_well('convert.py', 'stock.pth', config, 'start.pth', *fit, cwd=tmp_path)
    done = run('train.py', config, *options, cwd=tmp_path)
    message = "DistilledClassifier.teacher_ckpt='work_dirs/converted/e2e.pth' is not valid: "
    assert done.returncode and done.stderr.splitlines()[-1].startswith(f'train.py: {message}')

    log = run_well('train.py', config, *options, 'model.teacher_ckpt=stock.pth', cwd=tmp_path)
    assert 'RepL: weights of the same plan' in log and 'accuracy/top1' in log
    saved = read_checkpoint(next((tmp_path / 'work_dirs').glob('*/epoch_1.pth')))['state_dict']
    assert any('.repl.' in key for key in saved) and not any('teacher' in key for key in saved)
