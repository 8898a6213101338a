"""Checkpoints: weights-only loading, plans that do not fit, and stock weights."""

import collections
import copy
import itertools
import json
import logging
import os
import pickle
import re
import subprocess
import sys
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import torch
from mmdet.apis import init_detector
from mmdet.models import CSPNeXt, ResNet
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from small import (
    BACKBONES,
    REPO,
    STOCK,
    SWIN,
    TRANSFORMERS,
    build,
    build_backbone,
    detector_config,
    images,
    official_stack,
)

import repl_mm
from repl_mm.checkpoint import FORMAT, PLAN_KEY, decode_plan, encode_plan, plan_record
from repl_mm.plan import PLAIN
from repl_mm.reading import read_checkpoint, read_weights_only
from repl_mm.stock_weights import load_backbone, read_stock

TABLE = pytest.mark.parametrize('name', BACKBONES)


@pytest.fixture
def log():
    """list[str]: Messages of the current mmengine logger, as they come."""
    logger = MMLogger.get_instance('test_checkpoint')
    messages = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


def train(cfg) -> Runner:
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


# ---- weights-only loading -----------------------------------------------------------------------------------------

PLAN = dict(every=2, mode='fuse', operator='separable', ratio=0.5, fusion=dict(type='mix', groups=2))
ONE_CYCLE = dict(type='OneCycleLR', eta_max=1e-3, total_steps=3, by_epoch=False)
SCHEDULERS = [
    dict(type='LinearLR', start_factor=0.5, by_epoch=False, begin=0, end=2),
    dict(type='CosineAnnealingLR', T_max=2, by_epoch=True, convert_to_iter_based=True),
    dict(type='MultiStepLR', milestones=[1], by_epoch=True),
]


def everything(cfg):
    """Settings which put as much into a checkpoint as mmengine and mmdet can."""
    cfg.param_scheduler = SCHEDULERS
    cfg.default_hooks.checkpoint.save_best = 'auto'
    cfg.custom_hooks.append(dict(type='EMAHook', ema_type='ExpMomentumEMA', update_buffers=True))


def one_cycle(cfg):
    cfg.param_scheduler = [ONE_CYCLE]


@pytest.fixture(scope='module')
def runs(mini_coco, tmp_path_factory):
    """dict: Work dirs of two short runs."""
    folders = {}
    for change in (everything, one_cycle):
        folders[change.__name__] = folder = tmp_path_factory.mktemp(change.__name__)
        cfg = detector_config(mini_coco, folder, replace=PLAN)
        cfg.train_cfg.update(max_epochs=1)
        change(cfg)
        train(cfg)
    return folders


@pytest.fixture
def default_allow_list():
    """Torch's own allow-list, for the time of a test."""
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.add_safe_globals(allowed)


def numpy_scores(path):
    """A message hub as mmseg fills it: its metric gives numpy numbers, and the best one is kept."""
    hub = dict(best_score=np.float32(0.5), history=HistoryBuffer([0.5], [1]), mean=np.float64(0.5))
    torch.save(dict(message_hub=hub), path)
    return path


def test_the_allow_list_is_complete_and_minimal(runs, tmp_path, default_allow_list):
    files = [runs['everything'] / 'epoch_1.pth', runs['one_cycle'] / 'epoch_1.pth', numpy_scores(tmp_path / 'hub.pth')]
    needed = set().union(*map(torch.serialization.get_unsafe_globals_in_checkpoint, files))
    with pytest.raises(pickle.UnpicklingError):
        torch.load(files[0])  # this is what the allow-list is for

    repl_mm.allow_mmengine_checkpoints()
    names = {
        entry[1] if isinstance(entry, tuple) else f'{entry.__module__}.{entry.__qualname__}'
        for entry in torch.serialization.get_safe_globals()
    }
    old_core = {name.replace('._core.', '.core.') for name in needed if '._core.' in name}  # numpy 1
    # the classes of dtypes are not named in a file, ``numpy.dtype(...)`` makes their objects
    codes = '?' + np.typecodes['AllInteger'] + np.typecodes['Float']
    dtypes = {f'numpy.dtypes.{type(np.dtype(code)).__name__}' for code in codes}
    assert names == needed | old_core | dtypes
    for file in files:
        torch.load(file, weights_only=True)


@pytest.mark.parametrize('code', '?' + np.typecodes['AllInteger'] + np.typecodes['Float'])
def test_numbers_of_every_kind_are_read(code, tmp_path):
    """On Windows and with an older numpy, the integers of a HistoryBuffer are of another kind."""
    number = np.dtype(code).type(1)
    history = HistoryBuffer(np.ones(2, code), np.ones(2, code))
    torch.save(dict(message_hub=dict(best_score=number, history=history)), tmp_path / 'hub.pth')
    hub = torch.load(tmp_path / 'hub.pth', weights_only=True)['message_hub']
    assert hub['best_score'] == 1 and hub['history'].data[0].tolist() == [1, 1]


def test_checkpoints_written_by_numpy_1_are_read(tmp_path):
    path = numpy_scores(tmp_path / 'new.pth')
    with zipfile.ZipFile(path) as new, zipfile.ZipFile(tmp_path / 'old.pth', 'w') as old:
        for item in new.infolist():
            data = new.read(item)
            old.writestr(
                item, data.replace(b'numpy._core.', b'numpy.core.') if item.filename.endswith('.pkl') else data
            )
    assert torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / 'old.pth') == []
    hub = torch.load(tmp_path / 'old.pth', weights_only=True)['message_hub']
    assert hub['best_score'] == 0.5 and hub['history'].mean() == 0.5


class Hostile:
    """Runs something when it is unpickled."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.fixture
def our_reader(reading_as_before):
    """Read checkpoints as our tools do."""
    read_weights_only()


@pytest.mark.parametrize('reader', [pytest.param('mmengine', marks=official_stack), 'ours'])
@pytest.mark.parametrize('way', ['resume', 'load_from', 'init_detector', 'init_cfg'])
def test_a_hostile_checkpoint_is_refused_and_does_nothing(way, reader, runs, mini_coco, tmp_path, request):
    if reader == 'ours':
        request.getfixturevalue('our_reader')
    checkpoint = read_checkpoint(runs['everything'] / 'epoch_1.pth')
    mark = tmp_path / 'it_ran'
    checkpoint['meta']['extra'] = Hostile(os.system, f'touch {mark}')
    file = str(tmp_path / 'hostile.pth')
    torch.save(checkpoint, file)

    cfg = detector_config(mini_coco, tmp_path / 'work')
    if way == 'init_cfg':
        cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=file, prefix='backbone.')
    elif way != 'init_detector':
        cfg.update(load_from=file, resume=way == 'resume')
    with pytest.raises(pickle.UnpicklingError, match='system'):
        if way == 'init_detector':
            init_detector(cfg, file, device='cpu')
        else:
            train(cfg)
    assert not mark.exists()
    os.environ.pop('TORCH_FORCE_WEIGHTS_ONLY_LOAD', None)
    torch.load(file, weights_only=False)
    assert mark.exists()  # it would have


@pytest.mark.parametrize('content', ['weights', 'hostile', 'no zip'])
def test_what_comes_by_http_is_read_as_weights_only(content, our_reader, tmp_path, monkeypatch):
    """mmengine 0.10.7 reads such files with weights_only=False."""
    mark = tmp_path / 'it_ran'
    saved = dict(weight=torch.ones(2), extra=Hostile(os.system, f'touch {mark}') if content != 'weights' else 1)
    torch.save(saved, tmp_path / 'net.pth', _use_new_zipfile_serialization=content != 'no zip')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(SimpleHTTPRequestHandler, directory=tmp_path))
    Thread(target=server.serve_forever, daemon=True).start()
    address = f'http://127.0.0.1:{server.server_port}/net.pth'
    try:
        if content == 'weights':
            assert CheckpointLoader.load_checkpoint(address)['weight'].tolist() == [1, 1]
        else:
            with pytest.raises(pickle.UnpicklingError, match='system'):
                CheckpointLoader.load_checkpoint(address)
    finally:
        server.shutdown()
    assert not mark.exists()


def test_every_other_way_is_made_safe_by_torch(our_reader, tmp_path):
    """``torchvision://`` and the like call torch.load themselves, with weights_only=False."""
    torch.save(Hostile(os.system, f'touch {tmp_path / "it_ran"}'), tmp_path / 'net.pth')
    with pytest.raises(pickle.UnpicklingError, match='system'):
        torch.load(tmp_path / 'net.pth', weights_only=False)
    assert not (tmp_path / 'it_ran').exists()


def test_names_that_others_take_away_come_back(runs, default_allow_list):
    """OneDL's loader allows the same names for as long as it reads, and then no longer."""
    with torch.serialization.safe_globals([HistoryBuffer, np.ndarray]):
        pass
    assert 'message_hub' in read_checkpoint(str(runs['everything'] / 'epoch_1.pth'))


def test_no_tool_runs_what_a_file_holds(runs, tmp_path):
    """Every one that reads a checkpoint, as a user starts it."""
    checkpoint, mark = read_checkpoint(runs['everything'] / 'epoch_1.pth'), tmp_path / 'it_ran'
    checkpoint['meta']['extra'] = Hostile(os.system, f'touch {mark}')
    file, config = tmp_path / 'hostile.pth', next(runs['everything'].glob('*.py'))
    torch.save(checkpoint, file)
    commands = {
        'train.py': [config, '--resume', file, '--work-dir', tmp_path],
        'test.py': [config, file, '--work-dir', tmp_path],
        'convert.py': [file, config, tmp_path / 'out.pth'],
        'demo/pictures.py': [config, file, tmp_path / 'out.jpg'],
    }
    running = {
        tool: subprocess.Popen(
            [sys.executable, REPO / 'tools' / tool, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for tool, args in commands.items()
    }
    for tool, process in running.items():
        output = process.communicate(timeout=300)[0].decode()
        assert process.returncode and 'holds more than weights' in output.splitlines()[-1], f'{tool}: {output[-2000:]}'
    assert not mark.exists()


@pytest.mark.parametrize('content', ['hostile', 'cut off', 'no weights at all', 'a = dict()'])
def test_a_refused_file_is_named_in_one_line(content, tmp_path):
    file = tmp_path / 'net.pth'
    torch.save(Hostile(os.system, 'true') if content == 'hostile' else dict(a=torch.ones(9)), file)
    if content != 'hostile':
        file.write_bytes(file.read_bytes()[:200] if content == 'cut off' else content.encode())
    with pytest.raises(pickle.UnpicklingError, match=rf"checkpoint '{file}' was not loaded: it is damaged or holds"):
        read_checkpoint(str(file))
    with pytest.raises(FileNotFoundError, match="checkpoint '/no/where' not found"):
        read_checkpoint('/no/where')


@pytest.mark.parametrize(
    'owner, name, reason',
    [
        (HistoryBuffer, 'register_statistics', 'is not allowed in a checkpoint'),
        (OneCycleParamScheduler, '__init__', 'is not allowed in a checkpoint'),
        (collections.OrderedDict, 'mean', 'is not allowed in a checkpoint'),
        (subprocess.Popen, 'wait', 'Popen'),
    ],
)
def test_a_checkpoint_gets_no_other_attribute(owner, name, reason, tmp_path):
    torch.save(Hostile(getattr, owner, name), tmp_path / 'getattr.pth')
    with pytest.raises(pickle.UnpicklingError, match=reason):
        torch.load(tmp_path / 'getattr.pth')


def test_loading_works_where_only_the_config_names_repl_mm(runs):
    """A fresh process, in which nothing but the config brings in the allow-list."""
    code = (
        'import sys; from mmdet.apis import init_detector; '
        "model = init_detector(sys.argv[1], sys.argv[2], device='cpu'); "
        "print('classes', len(model.dataset_meta['classes']), 'slots', len(model.backbone.repl.slots))"
    )
    folder = runs['one_cycle']
    config = next(folder.glob('*.py'))
    done = subprocess.run(
        [sys.executable, '-c', code, str(config), str(folder / 'epoch_1.pth')],
        env={**os.environ, 'PYTHONPATH': str(REPO)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    classes = read_checkpoint(folder / 'epoch_1.pth')['meta']['dataset_meta']['classes']
    assert f'classes {len(classes)} slots 3' in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]


# ---- plans that do not fit ----------------------------------------------------------------------------------------

# what differs from PLAN, and the message
CHANGED = {
    'slots': (dict(every=None, slots=[(1, 1), (3, 1)]), r'slots only in the checkpoint: \[\(2, 1\)\]'),
    'mode': (dict(mode='own'), "mode: 'fuse' in the checkpoint, 'own' in the model"),
    'remove': (dict(mode='remove'), "mode: 'fuse' in the checkpoint, 'remove' in the model"),
    'operator': (dict(operator='conv'), "operator: 'separable' in the checkpoint, 'conv' in the model"),
    'ratio': (dict(ratio=0.25), 'ratio: 0.5 in the checkpoint, 0.25 in the model'),
    'fusion': (dict(fusion='channel'), "fusion: .*'mix'.* in the checkpoint, .*'channel'.* in the model"),
    'depth': (dict(), r'depths: \[2, 2, 2, 2\] in the checkpoint, \[3, 4, 6, 3\] in the model'),
}


def other_plan(cfg, change):
    cfg.model.backbone.replace = PLAN | CHANGED[change][0]
    if change == 'depth':
        cfg.model.backbone.depth = 34
    return CHANGED[change][1]


def untouched(model, before):
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize('change', CHANGED)
def test_another_plan_is_refused_whatever_loads_it(change, runs, mini_coco, tmp_path):
    file = str(runs['everything'] / 'epoch_1.pth')
    cfg = detector_config(mini_coco, tmp_path)
    message = other_plan(cfg, change)
    with pytest.raises(repl_mm.PlanError, match=message):
        init_detector(copy.deepcopy(cfg), file, device='cpu')
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(repl_mm.PlanError, match=message):
            load_checkpoint(model, file)
        untouched(model, before)

        cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=file, prefix='backbone.')
        model = MODELS.build(cfg.model)
        before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
        with pytest.raises(repl_mm.PlanError, match=message):
            model.init_weights()
        untouched(model.backbone, before)


@pytest.mark.parametrize('resume, hook', [(True, True), (False, True), (False, False)])
def test_another_plan_is_refused_by_the_runner(resume, hook, runs, mini_coco, tmp_path):
    file = str(runs['everything'] / 'epoch_1.pth')
    cfg = detector_config(mini_coco, tmp_path)
    message = other_plan(cfg, 'slots')
    if not hook:
        cfg.custom_hooks = []
    cfg.update(load_from=file, resume=resume, randomness=dict(seed=5))
    runner = Runner.from_cfg(cfg)
    with pytest.raises(repl_mm.PlanError, match=message):
        runner.train()
    saved = read_checkpoint(file)['state_dict']
    for name, parameter in runner.model.named_parameters():
        if name in saved and parameter.dim() == 4:  # what starts with random numbers
            assert (parameter != saved[name]).all(), name


def test_detach_may_change(log):
    saved, model = build_backbone('basic'), build_backbone('basic', seed=3, replace=dict(detach=True))
    model.load_state_dict(saved.state_dict())
    torch.testing.assert_close(model(images()), saved(images()), rtol=0, atol=0)
    assert decode_plan(model.state_dict()[PLAN_KEY])['detach'] is True  # what is saved next tells the truth


def test_the_plan_of_a_state_dict_reads_back():
    backbone = build_backbone('adjacent')
    plan = repl_mm.plan_of(backbone)
    assert decode_plan(backbone.state_dict()[PLAN_KEY]) == decode_plan(encode_plan(plan)) == plan_record(plan)
    assert [s['index'] for s in plan.to_dict()['slots']] == [1, 2, 5, 2]


def test_a_damaged_plan_is_named():
    backbone = build_backbone('basic')
    state = backbone.state_dict()
    state[PLAN_KEY] = torch.tensor([255, 1], dtype=torch.uint8)
    with pytest.raises(repl_mm.PlanError, match="'repl_plan' does not hold a RepL plan"):
        backbone.load_state_dict(state)


def as_format(backbone, number):
    """The state of a backbone as another format of files would have it; the first was a plan of bytes."""
    state = {
        key: value.clone() + 1 if value.is_floating_point() else value for key, value in backbone.state_dict().items()
    }
    record = {**repl_mm.plan_of(backbone).to_dict(), **({} if number == 1 else dict(format=number))}
    kind = torch.uint8 if number == 1 else torch.float32
    return {**state, PLAN_KEY: torch.tensor(list(json.dumps(record).encode()), dtype=kind)}


@TABLE
@pytest.mark.parametrize('number', [1, 2])
def test_files_of_earlier_formats_are_loaded_where_nothing_changed(name, number):
    """The first had no number. The coefficients of language models had 30 times their effect."""
    backbone = build_backbone(name)
    state = as_format(backbone, number)
    plan = repl_mm.plan_of(backbone)
    if number == 1 and plan.mode not in PLAIN and plan.operator in ('separable', 'conv', 'full') and not plan.merged:
        with pytest.raises(repl_mm.PlanError, match=f'format 1, which were not loaded: expected {FORMAT}; '):
            backbone.load_state_dict(state)
        return
    backbone.load_state_dict(state)
    found = backbone.state_dict()
    assert decode_plan(found.pop(PLAN_KEY))['format'] == FORMAT
    state.pop(PLAN_KEY)
    if hasattr(backbone, 'get_input_embeddings') and plan.operator in ('mlp', 'mixer'):
        state = {
            key: value * 30 if '.repl.' in key and 'coefficients' in key else value for key, value in state.items()
        }
    torch.testing.assert_close(dict(found), state, rtol=0, atol=0)


@pytest.mark.parametrize('number', [1, 2])
def test_files_of_earlier_formats_cannot_be_averaged_with_those_of_today(number):
    backbone = build_backbone('basic')
    assert len(as_format(backbone, number)[PLAN_KEY]) != len(backbone.state_dict()[PLAN_KEY])


@pytest.mark.parametrize('number', [FORMAT + 1, 0, 'new'])
def test_files_of_another_format_are_refused_in_one_line_and_nothing_is_loaded(number, tmp_path, log):
    backbone = build_backbone('basic')
    before = copy.deepcopy(backbone.state_dict())
    torch.save(as_format(backbone, number), tmp_path / 'weights.pth')
    for load in (
        lambda: backbone.load_state_dict(torch.load(tmp_path / 'weights.pth')),
        lambda: load_checkpoint(backbone, str(tmp_path / 'weights.pth'), logger='current'),
    ):
        with pytest.raises(
            repl_mm.PlanError, match=f'format {number!r}, which were not loaded: expected {FORMAT};'
        ) as error:
            load()
        assert '\n' not in str(error.value)
        untouched(backbone, dict(before))


@pytest.mark.parametrize('type_', ['ResNet', 'ResNeXt'])
def test_an_equal_plan_for_other_widths_is_refused(type_):
    settings = dict(BACKBONES['bottleneck'][0], type=type_, base_channels=16)
    backbone, saved = build_backbone('bottleneck'), build(settings)
    repl_mm.apply_repl(saved, **BACKBONES['bottleneck'][1])
    before = copy.deepcopy(backbone.state_dict())
    with pytest.raises(repl_mm.PlanError, match='same plan for wider or narrower blocks; it was not loaded'):
        backbone.load_state_dict(saved.state_dict())
    untouched(backbone, dict(before))


# ---- stock weights ------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def stock_file(tmp_path_factory):
    """pathlib.Path: Weights of a stock ResNet-18 of an eighth of its width, in torchvision's layout."""
    torch.manual_seed(7)
    stock = ResNet(depth=18, base_channels=8)
    state = {
        key: torch.rand_like(value) if value.is_floating_point() else value
        for key, value in stock.state_dict().items()
    }
    state |= {'fc.weight': torch.rand(10, 64), 'fc.bias': torch.rand(10)}
    path = tmp_path_factory.mktemp('stock') / 'resnet18.pth'
    torch.save(state, path)
    return path


def pretrained(path, **changes):
    with DefaultScope.overwrite_default_scope('mmdet'):
        backbone = MODELS.build(
            dict(
                type='RepLResNet',
                depth=18,
                base_channels=8,
                frozen_stages=1,
                replace=dict(),
                init_cfg=dict(type='Pretrained', checkpoint=str(path)),
            )
            | changes
        )
    start = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone.init_weights()
    return backbone, start


def test_stock_weights_load_with_one_line_of_counts(stock_file, log):
    backbone, start = pretrained(stock_file)
    stock = torch.load(stock_file)
    replaced = ('layer2.1.', 'layer3.1.', 'layer4.1.')  # the default plan of a ResNet-18 whose layer1 is frozen
    survived = [key for key in stock if not key.startswith((*replaced, 'fc.'))]
    for key, value in backbone.state_dict().items():
        if '.coefficients.' not in key:  # they follow the scale of their neighbours
            torch.testing.assert_close(value, stock[key] if key in survived else start[key], rtol=0, atol=0)

    block = 2 * 6  # a BasicBlock: two convolutions, and five tensors of each of their batch norms
    layers = sum('.repl.' in key for key in backbone.state_dict())
    assert len(stock) == 6 + 8 * block + 3 * 6 + 2  # stem, blocks, downsamples, classifier
    text = '\n'.join(log)
    counts = re.findall(r'(\d+) tensors loaded, (\d+) dropped \((\d+) replaced blocks\), (\d+) missing', text)
    assert counts == [(str(6 + 5 * block + 3 * 6), str(3 * block), '3', str(layers))]
    assert len(survived) == 6 + 5 * block + 3 * 6
    assert 'missing keys' not in text
    unexpected = re.findall(r'unexpected key in source state_dict: (.*)', text)
    assert unexpected == ['fc.weight, fc.bias']  # as for a stock backbone


# ---- through the initialization code of each transformer ----


def of_a_detector(state):
    return dict(state_dict={f'backbone.{key}': value for key, value in state.items()})


def of_another_window(state):
    """A published checkpoint without what depends on the window size alone."""
    return of_a_detector({key: value for key, value in state.items() if 'relative_position_index' not in key})


def of_the_authors(state):
    """Names as in the original repository of Swin."""
    renamed = {}
    for key, value in state.items():
        for ours, theirs in (('w_msa.', ''), ('ffn.layers.0.0.', 'mlp.fc1.'), ('ffn.layers.1.', 'mlp.fc2.')):
            key = key.replace(ours, theirs)
        renamed[key.replace('stages.', 'layers.').replace('projection', 'proj')] = value
    return dict(model=renamed)


# name: settings of the backbone, what else is different where the checkpoint comes from, how it is stored
PRETRAINED = {name: (settings, {}, dict) for name, settings in TRANSFORMERS.items()} | {
    'vit of larger pictures': (TRANSFORMERS['vit'], dict(img_size=96), dict),
    'swin': (SWIN, {}, of_a_detector),
    'swin of smaller windows': (SWIN, dict(window_size=2), of_another_window),
    'swin of the authors': (dict(SWIN, convert_weights=True), {}, of_the_authors),
    'mmseg swin of smaller windows': (TRANSFORMERS['mmseg swin'], dict(window_size=2), of_another_window),
    'pvt': (dict(TRANSFORMERS['pvt'], convert_weights=False), {}, dict),
    'pvtv2': (dict(TRANSFORMERS['pvtv2'], convert_weights=False), {}, dict),
}
SWINS = [name for name in PRETRAINED if 'swin' in name]


def random_weights(backbone) -> dict:
    """A backbone's state with all its numbers drawn anew."""
    state = backbone.state_dict()
    return {key: torch.rand_like(value) if value.is_floating_point() else value for key, value in state.items()}


@pytest.mark.parametrize(
    ('name', 'operator'),
    [pair for pair in itertools.product(PRETRAINED, ('mlp', 'mixer', 'full')) if pair != ('svt', 'full')],  # refused
)
def test_stock_transformer_weights_load_as_into_the_stock_backbone(name, operator, tmp_path, log):
    settings, source, stored = PRETRAINED[name]
    weights = random_weights(build(settings, **source))
    torch.save(stored(weights), tmp_path / 'stock.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'stock.pth'))

    stock = build(settings, init_cfg=init_cfg)
    stock.init_weights()
    wanted = stock.state_dict()
    same = [key for key, value in weights.items() if value.shape == wanted[key].shape and 'downsample' not in key]
    assert len(same) > 0.8 * len(weights) and all(torch.equal(wanted[key], weights[key]) for key in same)

    backbone = build(settings, init_cfg=init_cfg, type=f'RepL{settings["type"]}', replace=dict(operator=operator))
    places = tuple(f'{name}.' for name, _ in repl_mm.computing_layers(backbone))
    log.clear()
    backbone.init_weights()
    state = backbone.state_dict()
    kept = [key for key in wanted if not key.startswith(places)]
    assert [key for key in state if not key.startswith(places) and key != PLAN_KEY] == kept
    for key in kept:
        torch.testing.assert_close(state[key], wanted[key], rtol=0, atol=0)
    assert all(value.isfinite().all() for value in state.values())

    # BEiT and MAE drop these themselves, and a checkpoint for another window size comes without them
    given = [key for key in wanted if 'relative_position_index' not in key or (name in SWINS and not source)]
    loaded, dropped = (len([key for key in given if key.startswith(places) == gone]) for gone in (False, True))
    missing = len([key for key in state if key.startswith(places)])
    counts = re.findall(
        r'(\d+) tensors loaded, (\d+) dropped \((\d+) replaced blocks\), (\d+) missing', '\n'.join(log)
    )
    assert counts == [tuple(map(str, (loaded, dropped, len(places), missing)))]
    assert 'Error' not in '\n'.join(log)


@pytest.mark.parametrize('name', PRETRAINED)
def test_tools_read_stock_weights_as_the_stock_backbone_does(name, tmp_path):
    settings, source, stored = PRETRAINED[name]
    torch.save(stored(random_weights(build(settings, **source))), tmp_path / 'stock.pth')
    stock = build(settings, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'stock.pth')))
    stock.init_weights()
    state, _ = read_stock(str(tmp_path / 'stock.pth'), 'backbone.')
    found, _ = load_backbone(settings, 'mmdet', state)
    torch.testing.assert_close(found.state_dict(), stock.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize('name', ['swin of the authors', 'pvt', 'pvtv2', 'pidnet'])
def test_tools_read_a_backbones_own_names_where_its_own_code_does_not(name):
    """It would convert them once more, or look for them in another place."""
    settings = PRETRAINED[name][0] if 'swin' in name else STOCK[name]
    weights = random_weights(build(settings))
    found, unused = load_backbone(settings, 'mmdet', weights)
    torch.testing.assert_close(dict(found.state_dict()), dict(weights), rtol=0, atol=0)
    assert not unused


@pytest.mark.parametrize('replace', [dict(), dict(operator='full'), dict(operator='full', mode='own')])
@pytest.mark.parametrize('name', ['vit', 'beit', 'mae', 'swin', 'mmseg swin', 'mit', 'pvt'])
def test_weights_of_a_transformer_with_repl_load_through_its_initialization(name, replace, tmp_path):
    settings, _, stored = PRETRAINED[name]
    settings = dict(settings, type=f'RepL{settings["type"]}', replace=replace)
    weights = {key: value for key, value in random_weights(build(settings)).items() if key != PLAN_KEY}
    trained = build(settings)
    trained.load_state_dict(weights, strict=False)
    torch.save(stored(trained.state_dict()), tmp_path / 'repl.pth')
    backbone = build(settings, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'repl.pth')))
    backbone.init_weights()
    torch.testing.assert_close(backbone.state_dict(), trained.state_dict(), rtol=0, atol=0)


def test_a_model_of_another_plan_is_refused_by_the_initialization_of_a_transformer(tmp_path):
    settings = dict(TRANSFORMERS['beit'], type='RepLBEiT')
    torch.save(build(settings, replace=dict(slots=[(0, 2)])).state_dict(), tmp_path / 'repl.pth')
    backbone = build(settings, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'repl.pth')), replace=dict())
    with pytest.raises(repl_mm.PlanError, match=r'slots only in the checkpoint: \[\(0, 2\)\]'):
        backbone.init_weights()


def test_stock_detector_weights_load_into_a_detector(mini_coco, tmp_path, log):
    cfg = detector_config(mini_coco, tmp_path)
    with DefaultScope.overwrite_default_scope('mmdet'):
        config = copy.deepcopy(cfg.model)
        config.backbone.type = 'ResNet'
        config.backbone.pop('replace')
        stock = MODELS.build(config)
        torch.save(dict(state_dict=stock.state_dict()), tmp_path / 'detector.pth')
        model = MODELS.build(cfg.model)
        load_checkpoint(model, str(tmp_path / 'detector.pth'), logger='current')
    text = '\n'.join(log)
    assert 'tensors loaded' in text and 'do not match' not in text
    for key, value in stock.state_dict().items():
        if not re.match(r'backbone\.layer[234]\.1\.', key):
            torch.testing.assert_close(model.state_dict()[key], value, rtol=0, atol=0)


@TABLE
def test_weights_of_an_equal_plan_load_with_one_line(name, tmp_path, log):
    saved, model = build_backbone(name), build_backbone(name, seed=3)
    torch.save(saved.state_dict(), tmp_path / 'weights.pth')
    load_checkpoint(model, str(tmp_path / 'weights.pth'), strict=True, logger='current')
    torch.testing.assert_close(model.state_dict(), saved.state_dict(), rtol=0, atol=0)
    others = ('Loads checkpoint', 'backbone ')  # mmengine's, and those of mmpretrain's TIMMBackbone
    (line,) = [line for line in log if not line.startswith(others)]
    num = len(model.state_dict()) - 1
    assert f'{num} of {num} tensors loaded' in line


@TABLE
def test_stock_weights_load_strictly_into_every_row(name):
    """Whatever the family and the operator: a stock state dict of the same backbone needs no ``strict=False``."""
    state = build(BACKBONES[name][0]).state_dict()
    backbone = build_backbone(name)
    start = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone.load_state_dict(state)
    for key, value in backbone.state_dict().items():
        if '.coefficients.' in key or key.endswith('.gain'):
            continue  # they follow the scale of their neighbours
        wanted = start[key] if '.repl.' in key or key == PLAN_KEY else state[key]
        torch.testing.assert_close(value, wanted, rtol=0, atol=0)


@pytest.mark.parametrize('way', ['torch', 'mmengine', 'init_cfg', 'from scratch', 'before the plan'])
@pytest.mark.parametrize('mode', ['fuse', 'share', 'random'])
def test_computing_layers_start_at_their_length_whatever_weights_their_neighbours_get(mode, way, tmp_path):
    """Hidden units of length sqrt(2), which the neighbours' are not; trained coefficients stay with their weights."""
    settings = dict(depth=50, base_channels=8)
    stock = ResNet(**settings)
    for parameter in stock.parameters():
        parameter.data *= 5
    torch.save(stock.state_dict(), tmp_path / 'stock.pth')
    pretrained = dict(type='Pretrained', checkpoint=str(tmp_path / 'stock.pth'))
    backbone = ResNet(**settings, **(dict(init_cfg=pretrained) if way == 'init_cfg' else {}))
    if way == 'before the plan':
        backbone.load_state_dict(stock.state_dict())
    repl_mm.apply_repl(backbone, mode=mode, fusion='channel')
    if way == 'torch':
        backbone.load_state_dict(stock.state_dict())
    elif way == 'mmengine':
        load_checkpoint(backbone, str(tmp_path / 'stock.pth'))
    elif way != 'before the plan':
        backbone.init_weights()
    layers = dict(repl_mm.computing_layers(backbone))
    assert layers
    for layer in layers.values():
        lengths = layer.synthesize()[0][0].flatten(1).norm(dim=1)
        torch.testing.assert_close(lengths, torch.full_like(lengths, 2**0.5))

    other = ResNet(**settings)  # as another process may have been seeded, which DDP makes like the first one
    repl_mm.apply_repl(other, mode=mode, fusion='channel')
    alike = ResNet(**settings)
    repl_mm.apply_repl(alike, mode=mode, fusion='channel')
    for pair in zip((*alike.parameters(), *alike.buffers()), (*other.parameters(), *other.buffers()), strict=True):
        pair[1].data.copy_(pair[0].data)
    for network in (alike, other):
        network.load_state_dict(stock.state_dict())
    torch.testing.assert_close(other.state_dict(), alike.state_dict(), rtol=0, atol=0)

    for parameter in backbone.parameters():  # as a training does
        parameter.data *= 1 + 0.1 * torch.rand_like(parameter)
    again = ResNet(**settings)
    repl_mm.apply_repl(again, mode=mode, fusion='channel')
    again.load_state_dict(backbone.state_dict())
    for (name, layer), other in zip(repl_mm.computing_layers(again), layers.values(), strict=True):
        for mine, theirs in zip(layer.synthesize(), other.synthesize(), strict=True):
            torch.testing.assert_close(mine[0], theirs[0], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize('make', [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net)), lambda net: net])
def test_layers_in_a_plain_sequential_begin_with_initialized_neighbours(make):
    """Where mmengine's ``init_weights`` ends; in a copy of the network as well, and not in the original then."""
    network = CSPNeXt(deepen_factor=0.67, widen_factor=0.125)
    repl_mm.apply_repl(network)
    before = copy.deepcopy(network.state_dict())
    found = make(network)
    found.init_weights()
    assert not torch.equal(found.stem[0].conv.weight, before['stem.0.conv.weight'])
    lengths = torch.cat(
        [layer.synthesize()[0][0].flatten(1).norm(dim=1) for _, layer in repl_mm.computing_layers(found)]
    )
    torch.testing.assert_close(lengths, lengths[:1].expand_as(lengths))
    if found is not network:
        torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


def test_loading_undoes_folding():
    backbone, other = build_backbone('basic'), build_backbone('basic', seed=3)
    backbone.eval()
    other.eval()
    repl_mm.fold(backbone)
    backbone.load_state_dict(other.state_dict())
    torch.testing.assert_close(backbone(images()), other(images()), rtol=0, atol=0)


@TABLE
def test_weights_that_lost_their_plan_are_not_taken_for_stock_weights(name):
    """A checkpoint cut down to its parameters, as some tools publish them, still fills the computing layers."""
    trained, other = build_backbone(name), build_backbone(name)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.1)
    state = {key: value for key, value in trained.state_dict().items() if key != PLAN_KEY}
    other.load_state_dict(state)
    torch.testing.assert_close(other.state_dict(), trained.state_dict(), rtol=0, atol=0)
