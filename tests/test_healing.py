"""A network with computing layers learns what its stock network puts out: repl_mm/healing.py, tools/heal.py."""

import copy
import functools
import os
import pickle
import subprocess
import sys

import heal as tool
import numpy as np
import pytest
import torch
from heal import broken_pictures
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS
from scipy.special import log_softmax
from small import images, write_cifar
from test_classification import CONFIGS, resnet, train_config
from test_conversion import build_model, write_config
from test_tools import detector, run, run_well

import repl_mm
from repl_mm import config, heads, healing, pictures
from repl_mm.conversion import tensors
from repl_mm.reading import read_checkpoint

BACKBONE = dict(type='RepLCifarResNet', depth=20, base_channels=4)
CLOSE = dict(rtol=1e-4, atol=1e-6)
CLASSIFIER = dict(type='ImageClassifier', backbone=BACKBONE, num_classes=10, in_channels=16)


def healed(model, teacher, scope='repl_mm', **words):
    settings = dict(model, type='repl_mm.HealedModel', student=model['type'], teacher=str(teacher), **words)
    return config.build(Config(dict(model=settings)).model, scope)


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    """A stock classifier whose norms have statistics, and its checkpoint."""
    torch.manual_seed(0)
    model = config.build(dict(CLASSIFIER, backbone=dict(BACKBONE, type='CifarResNet')), 'repl_mm')
    model.init_weights()
    for _ in range(5):
        model(torch.randn(16, 3, 32, 32) * 2 + 1)
    file = tmp_path_factory.mktemp('teacher') / 'teacher.pth'
    torch.save(dict(state_dict=model.state_dict()), file)
    return model.eval(), str(file)


@pytest.mark.parametrize('temperature', [1, 4.0])
def test_the_losses_are_the_divergence_of_answers_and_the_distance_of_features(teacher, temperature):
    model, file = teacher
    student = healed(CLASSIFIER, file, temperature=temperature)
    x = images(6, 32)
    losses = student(x, torch.zeros(6), mode='loss')
    with torch.no_grad():
        pairs = list(zip(student.backbone(x), model.backbone(x), strict=True))
        log_q, log_p = (log_softmax(net(x).double().numpy() / temperature, 1) for net in (student, model))
    features = np.mean([((a - b).square().mean() / b.var()).item() for a, b in pairs])
    assert losses['loss_features'].item() == pytest.approx(features, rel=1e-4)
    expected = temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum(1).mean()
    assert losses['loss_outputs'].item() == pytest.approx(expected, rel=1e-4)


def test_a_copy_of_the_teacher_has_nothing_to_learn(teacher):
    student = healed(dict(CLASSIFIER, backbone=dict(BACKBONE, type='CifarResNet')), teacher[1], norm_eval=True)
    student.load_state_dict(teacher[0].state_dict())
    student.train()
    assert all(loss.item() == pytest.approx(0, abs=1e-6) for loss in student(images(4, 32), mode='loss').values())


def test_it_is_its_model_and_the_teacher_stays_as_it_is(teacher):
    model, file = teacher
    student, plain = healed(CLASSIFIER, file), config.build(CLASSIFIER, 'repl_mm')
    assert type(student).__name__ == 'ImageClassifier' and isinstance(student, type(plain))
    assert list(student.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in student.named_parameters()] == [name for name, _ in plain.named_parameters()]
    student.init_weights()
    student.train()
    optimizer = OptimWrapper(torch.optim.SGD(student.parameters(), 0.001))
    for _ in range(3):
        optimizer.update_params(sum(student(images(8, 32), mode='loss').values()))
    for key, value in student.teacher.model.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[key], rtol=0, atol=0)
    for twin in (copy.deepcopy(student), pickle.loads(pickle.dumps(student))):
        torch.testing.assert_close(twin(images(2, 32)), student(images(2, 32)))
        assert set(twin(images(2, 32), mode='loss')) == {'loss_features', 'loss_outputs'}
    assert copy.deepcopy(student).teacher is student.teacher  # an average of weights needs no second one
    assert sum(student.double()(images(2, 32).double(), mode='loss').values()).isfinite()


def test_dense_heads_maps_are_learned(tmp_path):
    cfg = Config.fromfile(detector(tmp_path, 'every=2'))
    torch.manual_seed(0)
    stock = heads.stock_model(cfg)
    stock.init_weights()
    torch.save(stock.state_dict(), tmp_path / 'stock.pth')
    model = healed(cfg.model, tmp_path / 'stock.pth', cfg.default_scope)
    model.init_weights()
    stock.eval()
    model.eval()
    x = images(2)
    with torch.no_grad():
        pairs = list(zip(tensors(model(x, mode='tensor')), tensors(stock(x, mode='tensor')), strict=True))
    assert len(pairs) == 6  # classes and boxes of three levels
    expected = np.mean([((a - b).square().mean() / b.var()).item() for a, b in pairs])
    losses = model(x, None, mode='loss')
    assert losses['loss_outputs'].item() == pytest.approx(expected, rel=1e-3)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize('convert_weights', [True, False])
def test_a_swin_of_mmdet_teaches_what_it_was_trained_to(convert_weights, tmp_path):
    """Its own code would take the names of a whole detector's weights for those of the authors."""
    cfg = config.read_config('mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py')
    cfg.model.backbone.update(embed_dims=8, depths=[2, 2, 2, 2], num_heads=[1, 2, 2, 4])
    cfg.model.backbone.update(convert_weights=convert_weights, init_cfg=None)
    cfg.model.neck.in_channels = [16, 32, 64]
    stock = heads.stock_model(cfg)
    stock.init_weights()
    torch.save(dict(state_dict=stock.state_dict()), tmp_path / 'stock.pth')
    cfg.model.backbone.update(type='RepLSwinTransformer', replace=dict())
    model = healed(cfg.model, tmp_path / 'stock.pth', cfg.default_scope)
    assert model.teacher.what == 'outputs'
    torch.testing.assert_close(model.teacher.model.state_dict(), stock.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ('name', 'what', 'idle'),
    [
        ('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', 'neck', ('rpn_head.', 'roi_head.')),
        ('mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py', 'outputs', ('auxiliary_head.',)),
        ('mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', 'outputs', ()),
    ],
)
def test_what_images_alone_do_not_reach_is_left_alone(name, what, idle):
    cfg = config.read_config(name)
    model = heads.stock_model(cfg)
    frozen = {key for key, p in model.named_parameters() if not p.requires_grad}
    found, unused = healing.learnable(model, 'backbone')
    assert found == what
    assert unused == {key for key, _ in model.named_parameters() if idle and key.startswith(idle)} - frozen


def test_a_backbones_weights_alone_teach_the_backbone(teacher, tmp_path):
    state = {f'backbone.{key}': value for key, value in teacher[0].backbone.state_dict().items()}
    other = dict(state, **{'head.weight': torch.zeros(7, 16), 'head.bias': torch.zeros(7)})
    for tensors_of in (state, other):  # the latter are of other classes
        torch.save(tensors_of, tmp_path / 'b.pth')
        student = healed(CLASSIFIER, tmp_path / 'b.pth')
        assert student.teacher.what == 'backbone' and set(student(images(2, 32), mode='loss')) == {'loss_features'}
        assert not any(p.requires_grad for p in student.head.parameters())
        assert all(p.requires_grad for p in student.backbone.parameters())


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (dict(temperature=0), r'HealedModel\.temperature=0 is not valid: expected a number above 0'),
        (dict(norm_eval=1), r'HealedModel\.norm_eval=1 is not valid: expected True or False'),
        (dict(teacher=None), r'HealedModel\.teacher=None is not valid: expected the stock'),
        (dict(teacher='nowhere.pth'), r"HealedModel\.teacher='nowhere.pth' cannot be had: .*nowhere"),
        (dict(backbone=dict(BACKBONE, depth=32)), r"HealedModel\.teacher='.*' has no values for .* tensors of"),
        (dict(second_backbone=BACKBONE), r'HealedModel\.student=.*several backbones \(backbone, second_backbone\)'),
    ],
)
def test_wrong_settings_are_named_in_one_line(teacher, words, message):
    settings = {**CLASSIFIER, 'student': 'ImageClassifier', 'teacher': teacher[1], **words}
    with pytest.raises(ValueError, match=message) as error:
        config.build(dict(settings, type='repl_mm.HealedModel'), 'repl_mm')
    assert '\n' not in str(error.value)


# ---- pictures -------------------------------------------------------------------------------------------------------


def write_pictures(folder, num, size=(40, 56)):
    import cv2

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(num):
        cv2.imwrite(str(folder / f'{i}.png'), rng.integers(0, 256, (*size, 3), np.uint8))


def test_pictures_of_a_folder(tmp_path):
    write_pictures(tmp_path / 'deep' / 'er', 3)
    (tmp_path / '1.jpg').write_text('no picture')
    dataset = DATASETS.build(dict(type='repl_mm.PictureFolder', folder=str(tmp_path), shape=(16, 24)))
    found = [dataset[i]['inputs'] for i in range(4)]
    assert all(x.shape == (3, 16, 24) and x.dtype == torch.uint8 and x.float().std() > 20 for x in found)
    whole = DATASETS.build(
        dict(type='repl_mm.PictureFolder', folder=str(tmp_path), shape=(40, 56), zoom=1, flip=False)
    )
    expected = pictures.read_image(tmp_path / 'deep' / 'er' / '0.png').transpose(2, 0, 1)
    assert torch.equal(whole[1]['inputs'], torch.from_numpy(expected))
    assert torch.equal(whole[0]['inputs'], whole[1]['inputs'])  # the broken one is left out


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (dict(folder='nothing'), "folder='nothing': no pictures"),
        (dict(shape=(3,)), r'PictureFolder.shape=\(3,\) is not valid'),
        (dict(zoom=0.5), 'PictureFolder.zoom=0.5 is not valid'),
    ],
)
def test_wrong_words_of_a_folder(words, message, tmp_path):
    write_pictures(tmp_path, 1)
    with pytest.raises(ValueError, match=message):
        pictures.PictureFolder(**{**dict(folder=str(tmp_path), shape=(8, 8)), **words})


# ---- trainings ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_learns_with_averages_and_mixed_precision_and_resumes(teacher, tmp_path):
    write_cifar(tmp_path / 'data', num=40)
    cfg = resnet(tmp_path / 'data', tmp_path / 'work')
    cfg.model.update(type='HealedModel', student='ImageClassifier', teacher=teacher[1])
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


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A folder with a tiny classifier's config, stock weights, a start, CIFAR-10 of noise, and pictures."""
    monkeypatch.chdir(tmp_path)
    file = write_config(tmp_path, 'resnet')
    torch.save(build_model(file, stock=True).state_dict(), 'stock.pth')
    torch.save(dict(state_dict=build_model(file).state_dict()), 'start.pth')
    write_cifar(tmp_path / 'data' / 'cifar-10-batches-py')
    write_pictures(tmp_path / 'pictures', 6)
    return file


@pytest.mark.slow
@pytest.mark.parametrize('folder', ['pictures', 'data'])
def test_the_tool_writes_a_checkpoint_and_goes_on(prepared, folder, tmp_path):
    words = [prepared, 'stock.pth', 'start.pth', 'out.pth', '--images', folder, '--shape', 32, 32, '--batch', 4]
    options = ['--cfg-options', 'default_hooks.checkpoint.interval=2', 'default_hooks.logger.interval=1']
    log = run_well('heal.py', *words, '--steps', 4, *options, cwd=tmp_path)
    assert 'loss_features' in log and 'loss_outputs' in log and 'eta' in log
    whole = read_checkpoint('out.pth')['state_dict']
    assert list(whole) == list(read_checkpoint('start.pth')['state_dict'])
    model = build_model(prepared)
    model.load_state_dict(whole)

    work = tmp_path / 'work_dirs' / 'heal' / 'out'
    (work / 'iter_4.pth').unlink()
    (work / 'last_checkpoint').write_text(str(work / 'iter_2.pth'))  # as if it had been killed then
    (tmp_path / 'out.pth').unlink()
    log = run_well('heal.py', *words, '--steps', 4, *options, cwd=tmp_path)
    assert 'Iter(train) [3/4]' in log and 'Iter(train) [2/4]' not in log
    again = read_checkpoint('out.pth')['state_dict']
    assert list(again) == list(whole)
    log = run_well('heal.py', *words, '--steps', 4, *options, cwd=tmp_path)
    assert 'Iter(train)' not in log
    done = run('heal.py', *words, '--steps', 5, *options, cwd=tmp_path)
    change = 'holds a healing with param_scheduler.0.T_max=4, now it is 5: expected the same, or remove that folder'
    assert done.returncode and change in done.stderr.splitlines()[-1]
    start = tmp_path / 'start.pth'
    os.utime(start)  # of another age, with the same content
    run_well('heal.py', *words, '--steps', 4, *options, cwd=tmp_path)
    torch.save(torch.load(start) | dict(more=torch.zeros(1)), start)
    done = run('heal.py', *words, '--steps', 4, *options, cwd=tmp_path)
    assert done.returncode and 'holds a healing with start.pth=' in done.stderr.splitlines()[-1]
    (work / 'heal.py').unlink()
    done = run('heal.py', *words, '--steps', 4, *options, cwd=tmp_path)
    assert done.returncode and 'holds a training that is no healing' in done.stderr.splitlines()[-1]


FRCNN = dict(
    backbone=dict(depth=18, base_channels=8),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(bbox_roi_extractor=dict(out_channels=16), bbox_head=dict(in_channels=16, fc_out_channels=16)),
)
# mmcv 2.1 writes the ``dropout`` of an attention into a default that all later attentions of the process share
ATTENTION = dict(embed_dims=16, dropout=0.0)
QUERIES = dict(self_attn_cfg=ATTENTION, ffn_cfg=dict(embed_dims=16, feedforward_channels=16))
DETR = dict(
    num_queries=5,
    backbone=dict(depth=18, base_channels=8),
    neck=dict(in_channels=[64], out_channels=16),
    encoder=dict(num_layers=1, layer_cfg=QUERIES),
    decoder=dict(num_layers=1, layer_cfg=dict(QUERIES, cross_attn_cfg=ATTENTION)),
    positional_encoding=dict(num_feats=8),
    bbox_head=dict(embed_dims=16),
)
FCN = dict(
    backbone=dict(base_channels=8),
    decode_head=dict(in_channels=64, channels=8),
    auxiliary_head=dict(in_channels=32, channels=8),
)
BISENET = 'mmseg::bisenetv1/bisenetv1_r18-d32_4xb4-160k_cityscapes-1024x1024.py'
# all of ICNet but its backbone, which it does not run as a whole
ICNET = ('auxiliary_head.', 'neck.', 'decode_head.', 'backbone.psp_', 'backbone.conv_sub')
EMA = ['--cfg-options', 'default_hooks.ema.type=EMAHook', 'default_hooks.ema.momentum=0.02']


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'changes', 'options', 'what', 'idle'),
    [
        ('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', FRCNN, [], 'neck', ('rpn_head.', 'roi_head.')),
        (
            'mmdet::detr/detr_r50_8xb2-150e_coco.py',
            DETR,
            [],
            'neck',
            ('encoder.', 'decoder.', 'query_embedding.', 'bbox_head.'),
        ),
        ('mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py', FCN, [], 'outputs', ('auxiliary_head.',)),
        (BISENET, {}, [], 'outputs', ('auxiliary_head.',)),
        ('mmseg::icnet/icnet_r18-d8_4xb2-80k_cityscapes-832x832.py', {}, [], 'backbone', ICNET),
        ('vit', {}, ['--amp'], 'outputs', ()),
        ('resnet', {}, EMA, 'outputs', ()),
    ],
    ids=['two stages', 'queries', 'auxiliary head', 'in a backbone', 'run in parts', 'amp', 'averages'],
)
def test_any_kind_of_model_heals(name, changes, options, what, idle, tmp_path, monkeypatch):
    """What is learned moves, all else is as it was, and what is written is the model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    cfg = config.read_config(name if '::' in name else str(write_config(tmp_path, name)))
    cfg.merge_from_dict(dict(model=changes, train_dataloader=dict(num_workers=0, persistent_workers=False)))
    (path,) = config.find_backbones(cfg.model)
    backbone = functools.reduce(getattr, path, cfg.model)
    backbone.update(type=f'RepL{backbone.type.removeprefix("RepL")}', replace=dict())
    cfg.pop('visualizer', None)  # those of one name are one object
    cfg.experiment_name = tmp_path.name  # two runs of one second and one name would share their log
    cfg.dump('tiny.py')
    write_pictures(tmp_path / 'pictures', 6)
    torch.manual_seed(0)
    stock, model = heads.stock_model(cfg), config.build(cfg.model, cfg.default_scope)
    with torch.no_grad():
        for parameter in (*stock.parameters(), *model.parameters()):
            if parameter.dim() == 1:  # no norm that is zero
                parameter.add_(torch.randn_like(parameter) * 0.1)
    torch.save(stock.state_dict(), 'stock.pth')
    start = copy.deepcopy(model.state_dict())
    torch.save(dict(state_dict=start), 'start.pth')

    words = ['tiny.py', 'stock.pth', 'start.pth', 'out.pth', '--images', 'pictures', '--shape', '64', '64']
    tool.main([*words, '--steps', '2', '--batch', '2', *options])
    saved = read_checkpoint('out.pth')['state_dict']
    assert list(saved) == list(start)  # no teacher
    model.load_state_dict(saved)
    work = tmp_path / 'work_dirs' / 'heal' / 'out'
    assert f'beside the outputs of the backbone: {what}' in next(work.glob('*/*.log')).read_text()
    moved = {key for key, parameter in model.named_parameters() if not torch.equal(start[key], parameter)}
    assert moved == {key for key, p in model.named_parameters() if p.requires_grad and not key.startswith(idle)}
    assert any('.repl.' in key for key in moved)
    assert all(torch.equal(start[key], value) for key, value in saved.items() if key.startswith(idle))

    first, last = (read_checkpoint(work / f'iter_{step}.pth') for step in (1, 2))
    torch.testing.assert_close(saved, last['state_dict'], rtol=0, atol=0)
    if '--amp' in options:
        assert 'AmpOptimWrapper' in (work / 'heal.py').read_text()
    if options == EMA:  # the averages, not what was trained last
        for key in moved:
            one, two = (checkpoint['ema_state_dict'][f'module.{key}'] for checkpoint in (first, last))
            torch.testing.assert_close(saved[key], torch.lerp(one, two, 0.02), rtol=1e-6, atol=1e-8)
            assert not torch.equal(saved[key], two)


@pytest.mark.slow
def test_two_processes_heal_as_one_and_frozen_stages_stay(tmp_path):
    """As one process that accumulates the gradients of two steps: each process sees other pictures."""
    file = detector(tmp_path, 'every=2')
    cfg = Config.fromfile(file)
    torch.manual_seed(0)
    stock = heads.stock_model(cfg)
    stock.init_weights()
    torch.save(stock.state_dict(), tmp_path / 'stock.pth')
    cfg.model.backbone.frozen_stages = 2
    start = config.build(cfg.model, cfg.default_scope).state_dict()
    torch.save(dict(state_dict=start), tmp_path / 'start.pth')
    write_pictures(tmp_path / 'pictures', 6)
    options = [
        '--cfg-options',
        'model.backbone.frozen_stages=2',
        'train_dataloader.dataset.zoom=1',
        'param_scheduler=[]',
    ]
    options += ['train_dataloader.dataset.flip=False', 'optim_wrapper.optimizer.type=SGD']  # Adam magnifies roundings

    def words(name, steps):
        heal = [file, 'stock.pth', 'start.pth', f'{name}.pth', '--images', 'pictures', '--shape', 40, 56]
        return [*map(str, heal), '--steps', str(steps), '--batch', '1', '--lr', '0.1', *options]

    run_well('heal.py', *words('one', 6), 'optim_wrapper.accumulative_counts=2', cwd=tmp_path)
    run_well('heal.py', *words('half', 3), cwd=tmp_path)
    launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', tool.__file__]
    launch += [*words('two', 3), '--launcher', 'pytorch']
    done = subprocess.run(launch, cwd=tmp_path, capture_output=True, text=True, timeout=570)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("load_from='two.pth'") == 1
    one, two, half = (read_checkpoint(tmp_path / f'{name}.pth')['state_dict'] for name in ('one', 'two', 'half'))
    torch.testing.assert_close(two, one, **CLOSE)
    with pytest.raises(AssertionError, match='not close'):  # a process that learned from its own pictures alone
        torch.testing.assert_close(half, one, **CLOSE)
    changed = {key for key, value in start.items() if not torch.equal(value, two[key])}
    frozen = ('backbone.conv1', 'backbone.bn1', 'backbone.layer1.', 'backbone.layer2.')  # as of mmdet's ResNet
    assert not any(key.startswith(frozen) for key in changed)
    assert any('.repl.' in key for key in changed) and any(key.startswith('backbone.layer4.0.') for key in changed)


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--images', 'nowhere'], "--images 'nowhere': no such folder"),
        (['--cfg-options', 'train_dataloader.dataset.ann_file=a.json'], '--images FOLDER names another place'),
        (['--images', 'pictures', '--cfg-options', 'model.second_backbone.type=RepLCifarResNet'], 'several backbones'),
        (['--images', 'pictures', '--cfg-options', 'model.backbone.replace.mode=no'], "replace.mode='no'"),
        (['--images', 'pictures', '--cfg-options', 'model.num_classes=5'], None),  # other classes: the backbone alone
        (['--images', 'pictures', '--cfg-options', 'model.data_preprocessor.size=40'], None),  # of images with labels
    ],
)
def test_the_tool_ends_in_one_line(prepared, words, message, monkeypatch):
    monkeypatch.setattr(tool, 'build_runner', lambda cfg: config.build(cfg.model, cfg.default_scope) and exit(0))
    with pytest.raises(SystemExit) as stopped:
        tool.main([str(word) for word in (prepared, 'stock.pth', 'start.pth', 'out.pth', *words)])
    assert (message is None and stopped.value.code == 0) or message in str(stopped.value)
    assert '\n' not in str(stopped.value)


@pytest.mark.parametrize('content', [b'no picture', b''])
def test_a_broken_picture_of_the_configs_own_data_is_named(content, tmp_path):
    file = tmp_path / 'broken.png'
    file.write_bytes(content)
    with pytest.raises(SystemExit, match="of the config's training data cannot be read") as stopped, broken_pictures():
        LoadImageFromFile()(dict(img_path=str(file)))
    assert ('broken.png' in str(stopped.value)) == bool(content)
    with pytest.raises(AssertionError, match='another'), broken_pictures():
        raise AssertionError('another')


@pytest.mark.parametrize('start', ['stock', 'other'])
def test_a_start_of_another_network_is_refused(start, prepared):
    """Else what does not fit would be left at random, and healed in silence."""
    if start == 'other':
        torch.save(config.build(dict(BACKBONE, depth=20, base_channels=2), 'repl_mm').state_dict(), 'other.pth')
    with pytest.raises(SystemExit) as stopped:
        tool.main([str(prepared), 'stock.pth', f'{start}.pth', 'out.pth', '--images', 'pictures', '--steps', '1'])
    message = str(stopped.value)
    assert f"START '{start}.pth' has no values for" in message and 'expected what tools/convert.py writes' in message
    assert not list(prepared.parent.rglob('out.pth'))


@pytest.mark.slow
def test_the_chain_from_stock_weights_to_an_epoch_of_healing(tmp_path):
    """The shipped config, after tools/convert.py has made its teacher and its start; without them it says so."""
    write_cifar(tmp_path / 'data')
    shipped = CONFIGS / 'resnet32_repl_cifar10_converted.py'
    options = ['--data-root', 'data', '--cfg-options', 'custom_hooks.0.shape=None', 'load_from=start.pth']
    done = run('train.py', shipped, *options, cwd=tmp_path)
    assert done.returncode and done.stderr.splitlines()[-1] == "train.py: checkpoint 'start.pth' not found"

    torch.manual_seed(0)
    stock = config.build(Config.fromfile(CONFIGS / 'resnet32_cifar10.py').model, 'repl_mm')
    stock.init_weights()
    torch.save(dict(state_dict=stock.state_dict()), tmp_path / 'stock.pth')
    fit = ['--fit', 'data', '--num', 16, '--steps', 1, '--block-steps', 1]
    run_well('convert.py', 'stock.pth', shipped, 'start.pth', *fit, cwd=tmp_path)
    done = run('train.py', shipped, *options, cwd=tmp_path)
    message = "HealedModel.teacher='work_dirs/converted/e2e.pth' cannot be had: "
    assert done.returncode and done.stderr.splitlines()[-1].startswith(f'train.py: {message}')

    log = run_well('train.py', shipped, *options, 'model.teacher=stock.pth', cwd=tmp_path)
    assert 'RepL: weights of the same plan' in log and 'accuracy/top1' in log
    saved = read_checkpoint(next((tmp_path / 'work_dirs').glob('*/epoch_1.pth')))['state_dict']
    assert any('.repl.' in key for key in saved) and not any('teacher' in key for key in saved)
