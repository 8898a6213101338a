"""Classification: datasets against their files, augmentation, metric, runs, and what they hand to dense configs."""

import copy
import itertools
import math
import pickle
import re
import shutil
import sys
import time
from pathlib import Path

import _common
import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import train
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS, DefaultScope
from mmengine.runner import Runner
from scipy.io import savemat
from small import CIFAR_NAMES as NAMES
from small import REPO, detector_config, write_cifar, write_pickle
from test_tools import run_well
from torch import nn

import repl_mm
from repl_mm import cost
from repl_mm.checkpoint import PLAN_KEY
from repl_mm.classification import (
    CIFAR10,
    STL10,
    SVHN,
    Accuracy,
    BatchCrop,
    BatchErase,
    BatchFlip,
    BatchMix,
    CifarResNet,
    DataError,
    ImageClassifier,
    ImageNet,
)
from repl_mm.classification.transforms import OPERATIONS, LoadImage, RandAugment, RandomResizedCrop
from repl_mm.reading import read_checkpoint

CONFIGS = REPO / 'configs' / 'classification'
MEAN, STD = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])


# ---- files in the official forms ----------------------------------------------------------------------------------


def write_svhn(folder, num=4):
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True)
    for split in ('train', 'test'):
        labels = np.array([1, 10, 9, 2], np.uint8)[:num, None]
        savemat(folder / f'{split}_32x32.mat', dict(X=rng.integers(0, 256, (32, 32, 3, num), np.uint8), y=labels))


def write_stl(folder, num=3):
    rng = np.random.default_rng(2)
    folder.mkdir(parents=True)
    (folder / 'class_names.txt').write_text('\n'.join(NAMES) + '\n')
    for split in ('train', 'test'):
        rng.integers(0, 256, num * 3 * 96 * 96, np.uint8).tofile(folder / f'{split}_X.bin')
        np.array([10, 1, 5], np.uint8)[:num].tofile(folder / f'{split}_y.bin')


def write_imagenet(folder, classes=('n01', 'n02'), num=3):
    """Folders per class of JPEGs of different sizes, each class of one color, and a file that is no picture."""
    for split in ('train', 'val'):
        for label, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            (folder / split / name / 'notes.txt').touch()
            for i in range(num):
                picture = np.full((40 + 10 * i, 60, 3), 40 + 80 * label, np.uint8)
                cv2.imwrite(str(folder / split / name / f'{name}_{i}.JPEG'), picture)


WRITERS = {CIFAR10: write_cifar, SVHN: write_svhn, STL10: write_stl, ImageNet: write_imagenet}


@pytest.fixture(scope='module')
def cifar(tmp_path_factory):
    """pathlib.Path: CIFAR-10 of 40 + 8 images of noise, in the folder of the official archive; read only."""
    folder = tmp_path_factory.mktemp('cifar')
    write_cifar(folder / 'cifar-10-batches-py')
    return folder


@pytest.mark.parametrize('split, files', [('train', range(1, 6)), ('test', None)])
def test_cifar_is_what_its_files_hold(split, files, cifar):
    inner = cifar / 'cifar-10-batches-py'
    names = ['test_batch'] if files is None else [f'data_batch_{i}' for i in files]
    batches = [pickle.loads((inner / name).read_bytes()) for name in names]
    rows = [(row, label) for batch in batches for row, label in zip(batch[b'data'], batch[b'labels'], strict=True)]
    for folder in (cifar, inner):
        data = CIFAR10(folder, split)
        assert len(data) == len(rows) and data.metainfo == dict(classes=tuple(NAMES))
        for i, (row, label) in enumerate(rows):
            sample = data[i]
            assert sample['labels'] == label and sample['inputs'].dtype == torch.uint8
            # a row is red, green, blue, each row by row
            assert [int(sample['inputs'][c, y, x]) for c, y, x in [(0, 0, 0), (0, 0, 1), (1, 0, 0), (2, 31, 31)]] == [
                row[0], row[1], row[1024], row[3071]
            ]  # fmt: skip
    few = CIFAR10(cifar, split, indices=[5, 2])
    assert torch.equal(few[0]['inputs'], data[5]['inputs']) and len(few) == 2
    assert len(CIFAR10(cifar, split, indices=3)) == 3


def test_svhn_is_what_its_files_hold(tmp_path):
    from scipy.io import loadmat

    write_svhn(tmp_path / 'svhn')
    raw = loadmat(tmp_path / 'svhn' / 'train_32x32.mat')
    data = SVHN(tmp_path / 'svhn')
    assert data.labels.tolist() == [1, 0, 9, 2]  # the files' 10 is the digit 0
    for n, c, y, x in itertools.product(range(4), range(3), (0, 7, 31), (0, 5, 31)):
        assert int(data[n]['inputs'][c, y, x]) == raw['X'][y, x, c, n]


def test_stl_is_what_its_files_hold(tmp_path):
    write_stl(tmp_path / 'stl10_binary')
    raw = (tmp_path / 'stl10_binary' / 'test_X.bin').read_bytes()
    data = STL10(tmp_path, 'test')
    assert data.labels.tolist() == [9, 0, 4] and data.metainfo['classes'] == tuple(NAMES)
    for n, c, y, x in itertools.product(range(3), range(3), (0, 7, 95), (0, 5, 95)):
        assert int(data[n]['inputs'][c, y, x]) == raw[((n * 3 + c) * 96 + x) * 96 + y]  # column by column


def test_imagenet_is_a_folder_per_class(tmp_path):
    write_imagenet(tmp_path)
    with DefaultScope.overwrite_default_scope('repl_mm'):
        data = ImageNet(tmp_path, pipeline=[dict(type='LoadImage'), dict(type='PackImage')], num_classes=2)
    assert data.metainfo == dict(classes=('n01', 'n02'))
    assert [int(data[i]['labels']) for i in range(len(data))] == [0, 0, 0, 1, 1, 1]
    assert [tuple(data[i]['inputs'].shape) for i in range(3)] == [(3, 40, 60), (3, 50, 60), (3, 60, 60)]
    assert abs(float(data[5]['inputs'].float().mean()) - 120) < 2


def test_a_batch_is_its_samples_and_a_pipeline_sees_bgr(cifar):
    data = CIFAR10(cifar)
    batch = data.__getitems__([3, 1, 1])
    for i, index in enumerate([3, 1, 1]):
        assert torch.equal(batch['inputs'][i], data[index]['inputs']) and batch['labels'][i] == data[index]['labels']
    with DefaultScope.overwrite_default_scope('repl_mm'):
        piped = CIFAR10(cifar, pipeline=[dict(type='RandomFlip', prob=0.0), dict(type='PackImage')])
    assert (piped.sample(3)['img'][0, 0] == data[3]['inputs'][:, 0, 0].numpy()[::-1]).all()
    (sample,) = piped.__getitems__([3])
    assert torch.equal(sample['inputs'], data[3]['inputs']) and sample['labels'] == data[3]['labels']


def cut(name, share=0.5):
    def damage(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return damage


def without(name):
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def pickled(name, content):
    return lambda folder: write_pickle(folder / name, content)


def mat(**arrays):
    return lambda folder: savemat(folder / 'train_32x32.mat', arrays)


def raw(name, numbers):
    return lambda folder: np.array(numbers, np.uint8).tofile(folder / name)


NOISE = np.zeros((8, 3072), np.uint8)
DIGITS = np.zeros((32, 32, 3, 2), np.uint8)
# dataset, what happens to its folder, what the message names
DAMAGE = [
    (CIFAR10, without('data_batch_3'), 'data_batch_3. not found; expected the official file'),
    (CIFAR10, without('batches.meta'), 'batches.meta. not found'),
    (CIFAR10, cut('data_batch_2'), 'data_batch_2. is cut off or no python batch of CIFAR-10'),
    (CIFAR10, cut('data_batch_2', 0), 'data_batch_2. is cut off or no python batch of CIFAR-10: Ran out of input'),
    (CIFAR10, pickled('data_batch_1', [1]), 'data_batch_1. holds list; expected the dict'),
    (CIFAR10, pickled('batches.meta', {}), 'batches.meta. does not name the classes'),
    (
        CIFAR10,
        pickled('data_batch_5', {b'data': NOISE[:7]}),
        r'data_batch_5. holds data of uint8 \(7, 3072\); expected',
    ),
    (CIFAR10, pickled('data_batch_5', {b'fine_labels': [1]}), 'data_batch_5. holds data of NoneType; expected uint8'),
    (CIFAR10, pickled('data_batch_5', {b'data': NOISE, b'labels': [1]}), 'data_batch_5. has 1 labels for 8 images'),
    (CIFAR10, pickled('data_batch_5', {b'data': NOISE, b'labels': 8 * [10]}), 'labels outside of 0..9: 10..10'),
    (SVHN, without('train_32x32.mat'), 'train_32x32.mat. not found'),
    (SVHN, cut('train_32x32.mat'), 'train_32x32.mat. is cut off or no MATLAB 5 file'),
    (SVHN, raw('train_32x32.mat', [7] * 300), 'train_32x32.mat. is cut off or no MATLAB 5 file'),
    (SVHN, mat(X=DIGITS), "no MATLAB 5 file with X and y: 'y'"),
    (SVHN, mat(X=DIGITS[0], y=[1, 2]), r'holds X of uint8 \(32, 3, 2\); expected uint8 \(32, 32, 3, N\)'),
    (SVHN, mat(X=DIGITS, y=[1, 2, 3]), 'has 3 labels for 2 images'),
    (SVHN, mat(X=DIGITS, y=[0, 1]), 'labels outside of 1..10: 0..1'),
    (STL10, without('train_X.bin'), 'train_X.bin. not found'),
    (STL10, cut('train_X.bin', 0.9), 'train_X.bin. has 74649 bytes; expected a multiple of 27648'),
    (STL10, cut('train_X.bin', 0), 'train_X.bin. has 0 bytes'),
    (STL10, cut('train_y.bin', 0.7), 'train_y.bin. has 2 labels for 3 images'),
    (STL10, raw('train_y.bin', [0, 1, 2]), 'train_y.bin. has labels outside of 1..10: 0..2'),
    (STL10, without('class_names.txt'), 'class_names.txt. not found'),
    (ImageNet, without('train'), 'train. not found; expected a folder with one folder of pictures per class'),
    (ImageNet, without('train/n01'), '1 classes found, expected 2'),
    (ImageNet, lambda f: [p.unlink() for p in f.glob('train/n02/*.JPEG')], "n02' has no pictures; expected files"),
]


@pytest.mark.parametrize('kind, damage, message', DAMAGE)
def test_a_wrong_file_is_named_in_one_line(kind, damage, message, tmp_path):
    folder = tmp_path / 'data'
    WRITERS[kind](folder)
    kind(folder, num_classes=2 if kind is ImageNet else None)
    damage(folder)
    with pytest.raises(DataError, match=message) as caught:
        kind(folder, num_classes=2 if kind is ImageNet else None)
    assert str(folder) in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'name, content, message',
    [
        ('none.jpg', None, 'none.jpg.: No such file or directory; expected a picture'),
        ('empty.jpg', b'', r'empty.jpg. is cut off or no picture \(0 bytes\)'),
        ('text.jpg', b'<html>', r'text.jpg. is cut off or no picture \(6 bytes\)'),
        ('half.jpg', 'half', r'half.jpg. is cut off: a JPEG without its end'),
        ('half.png', 'half', 'half.png. is cut off'),
    ],
)
def test_a_wrong_picture_is_named(name, content, message, tmp_path):
    if content == 'half':
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        encoded = cv2.imencode(Path(name).suffix, noise)[1].tobytes()
        content = encoded[: len(encoded) // 2]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        LoadImage()(dict(img_path=str(tmp_path / name)))


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_hostile_batch_is_refused_and_does_nothing(tmp_path):
    write_cifar(tmp_path / 'data')
    write_pickle(tmp_path / 'data' / 'data_batch_1', Hostile(tmp_path / 'it_ran'))
    with pytest.raises(DataError, match='data_batch_1.*is not allowed in a dataset'):
        CIFAR10(tmp_path / 'data')
    assert not (tmp_path / 'it_ran').exists()


def test_an_error_in_a_loaders_worker_ends_in_one_line(tmp_path):
    write_imagenet(tmp_path)
    cut('train/n02/n02_1.JPEG')(tmp_path)
    with DefaultScope.overwrite_default_scope('repl_mm'):
        data = ImageNet(tmp_path, pipeline=[dict(type='LoadImage'), dict(type='PackImage')])
    with pytest.raises(SystemExit) as stopped, _common.one_line_errors():
        list(torch.utils.data.DataLoader(data, batch_size=1, num_workers=1))
    assert re.fullmatch(r"\S+: '\S+n02_1.JPEG' is cut off: a JPEG without its end \(\d+ bytes\)", stopped.value.code)


@pytest.mark.parametrize('damage, message', [(without('test_batch'), 'test_batch'), (None, 'dataset not found')])
def test_train_py_ends_in_one_line(damage, message, tmp_path, monkeypatch):
    folder = tmp_path / 'data'
    if damage:
        write_cifar(folder)
        damage(folder)
    words = ['train.py', CONFIGS / 'resnet32_cifar10.py', '--data-root', folder, '--work-dir', tmp_path / 'work']
    monkeypatch.setattr(sys, 'argv', list(map(str, words)))
    with pytest.raises(SystemExit) as stopped:
        train.main()
    assert stopped.value.code.startswith('train.py: ') and '\n' not in stopped.value.code
    assert message in stopped.value.code and str(folder) in stopped.value.code


# ---- augmentation -------------------------------------------------------------------------------------------------


def pictures(num=64, size=8, seed=0):
    """Images whose values all differ, and labels of 4 classes."""
    torch.manual_seed(seed)
    return torch.rand(num, 3, size, size) + 1, torch.randint(4, (num,))


def test_a_crop_is_one_of_the_shifted_images():
    images, labels = pictures()
    out, same = BatchCrop(2)(images, labels)
    assert same is labels
    shifts = set()
    padded = F.pad(images, (2, 2, 2, 2))
    for one, image in zip(out, padded, strict=True):
        found = [(y, x) for y in range(5) for x in range(5) if torch.equal(one, image[:, y : y + 8, x : x + 8])]
        assert len(found) == 1
        shifts.update(found)
    assert len(shifts) > 15  # of 25, and 64 images
    assert torch.equal(BatchCrop(0)(images, labels)[0], images)


def test_a_flip_mirrors_about_half_of_the_images():
    images, labels = pictures(200)
    out, same = BatchFlip()(images, labels)
    mirrored = [torch.equal(one, image.flip(2)) for one, image in zip(out, images, strict=True)]
    kept = [torch.equal(one, image) for one, image in zip(out, images, strict=True)]
    assert same is labels and all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 60 < sum(mirrored) < 140
    for prob in (0, 1):
        assert torch.equal(BatchFlip(prob)(images, labels)[0], images.flip(3) if prob else images)


def test_erasing_touches_one_rectangle_of_the_size_it_should_have():
    images, labels = pictures(200, size=32)
    out, same = BatchErase(prob=0.5, area=(0.1, 0.2), aspect=0.5)(images, labels)
    changed = (out != images).any(1)
    assert same is labels and 60 < changed.any(2).any(1).sum() < 140
    for mask in changed[changed.any(2).any(1)]:
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        assert mask.sum() == height * width  # the whole rectangle
        assert 0.08 < height * width / 1024 < 0.23 and 0.45 < height / width < 2.2  # whole pixels


@pytest.mark.parametrize('settings', [dict(), dict(mixup=0), dict(cutmix=0), dict(prob=0.5)])
def test_mixed_images_and_labels_are_shares_of_two(settings):
    images, labels = pictures(128, size=16)
    out, soft = BatchMix(4, **settings)(images, labels)
    assert soft.shape == (128, 4) and soft.dtype == torch.float32
    torch.testing.assert_close(soft.sum(1), torch.ones(128))
    ways = []
    for i in range(128):
        one, two, mixed = images[i], images[127 - i], out[i]
        own = ((mixed - two) / (one - two)).median()
        pasted = (mixed == two).all(0)
        if torch.allclose(mixed, own * one + (1 - own) * two, atol=1e-3):
            ways.append('mixup' if 0.001 < own < 0.999 else 'whole')  # one of the two, as it is
        else:
            assert ((mixed == one).all(0) | pasted).all()
            rows, columns = pasted.any(1).nonzero().flatten(), pasted.any(0).nonzero().flatten()
            assert pasted.sum() == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
            own = 1 - pasted.float().mean()
            ways.append('cutmix')
        wanted = own * F.one_hot(labels[i], 4) + (1 - own) * F.one_hot(labels[127 - i], 4)
        torch.testing.assert_close(soft[i], wanted, atol=1e-3, rtol=0)
    seen = {way: ways.count(way) for way in ('whole', 'mixup', 'cutmix')}
    if settings.get('mixup') == 0:
        assert seen['mixup'] == 0 and seen['cutmix'] > 60
    elif settings.get('cutmix') == 0:
        assert seen['cutmix'] == 0 and seen['mixup'] > 60
    else:
        assert seen['mixup'] > 10 and seen['cutmix'] > 10 and (seen['whole'] > 40) == ('prob' in settings)


def test_all_augmentation_follows_the_seed():
    chain = [BatchCrop(2), BatchFlip(), BatchErase(), BatchMix(4)]
    results = []
    for seed in (3, 3, 4):
        images, labels = pictures()
        torch.manual_seed(seed)
        for augment in chain:
            images, labels = augment(images, labels)
        results.append((images, labels))
    assert all(torch.equal(*pair) for pair in zip(*results[:2], strict=True))
    assert not torch.equal(results[0][0], results[2][0])


@pytest.mark.parametrize(
    'build, message',
    [
        (lambda: BatchCrop(-1), 'BatchCrop.padding=-1 is not valid'),
        (lambda: BatchFlip(1.5), 'BatchFlip.prob=1.5 is not valid: expected a number from 0 to 1'),
        (lambda: BatchErase(area=(0.5, 0.1)), r'BatchErase.area=\(0.5, 0.1\) is not valid'),
        (lambda: BatchMix(10, mixup=0, cutmix=0), 'leave nothing to do'),
        (lambda: BatchMix(10, prob='1'), "BatchMix.prob='1' is not valid"),
        (lambda: Accuracy(topk=(0,)), r'Accuracy.topk=\(0,\) is not valid'),
        (lambda: CifarResNet(33), r'CifarResNet.depth=33 is not valid: expected 6n \+ 2'),
        (lambda: CifarResNet(32, shortcut='C'), "CifarResNet.shortcut='C' is not valid: expected 'A' or 'B'"),
        (lambda: CifarResNet(32, drop_path_rate=1), 'CifarResNet.drop_path_rate=1 is not valid: expected 0 <= number'),
        (lambda: CifarResNet(32, out_indices=(3,)), r'CifarResNet.out_indices=\(3,\) is not valid'),
        (lambda: ImageClassifier({}, 10, 64, label_smoothing=1), 'ImageClassifier.label_smoothing=1 is not valid'),
        (lambda: ImageClassifier({}, 10.0, 64), 'ImageClassifier.num_classes=10.0 is not valid'),
        (lambda: CIFAR10('x', 'val'), "CIFAR10.split='val' is not valid: expected 'train' or 'test'"),
        (lambda: RandAugment(magnitude=30), 'RandAugment.magnitude=30 is not valid'),
    ],
)
def test_wrong_settings_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize('name', OPERATIONS)
def test_operations_keep_an_image_an_image(name):
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(40, 200, (30, 40, 3), np.uint8), (5, 5), 2)
    before = image.copy()
    for magnitude in (-1.0, -0.5, 0.5, 1.0):
        out = OPERATIONS[name](image, magnitude)
        assert out.shape == image.shape and out.dtype == np.uint8
        assert (image == before).all()
        assert (out != image).any()
    if name not in ('auto_contrast', 'equalize', 'invert'):  # these have no magnitude
        np.testing.assert_allclose(OPERATIONS[name](image, 0.0), image, atol=1)


def test_rand_augment_and_resized_crop_follow_the_seed():
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    transform = Compose([RandomResizedCrop(24), RandAugment(prob=1.0)])
    results = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        results.append(transform(dict(img=image))['img'])
    assert results[0].shape == (24, 24, 3) and (results[0] == results[1]).all() and (results[0] != results[2]).any()


def test_windows_have_the_area_and_the_sides_that_they_should_have():
    crop = RandomResizedCrop(8, area=(0.1, 0.5), aspect=0.75)
    np.random.seed(0)
    windows = [crop.window(100, 200) for _ in range(300)]
    for top, left, height, width in windows:
        assert 0 <= top <= 100 - height and 0 <= left <= 200 - width
        assert 0.09 < height * width / 20000 < 0.51 and 0.72 < width / height < 1.4
    shares = [h * w / 20000 for _, _, h, w in windows]
    assert min(shares) < 0.15 and max(shares) > 0.4
    assert crop.window(10, 1000) == (0, 493, 10, 13)  # no such part: the middle


# ---- classifier and metric ----------------------------------------------------------------------------------------


def test_accuracy_by_counting():
    rng = np.random.default_rng(0)
    scores, labels = rng.random((50, 7)), rng.integers(0, 7, 50)
    metric = Accuracy(topk=(1, 3))
    for part in np.array_split(np.arange(50), 4):
        metric.process({}, [dict(scores=torch.tensor(scores[i]), label=torch.tensor(labels[i])) for i in part])
    ranks = [sorted(range(7), key=lambda c, row=row: -row[c]).index(label) for row, label in zip(scores, labels)]  # noqa: B905
    wanted = {f'accuracy/top{k}': 100 * sum(rank < k for rank in ranks) / 50 for k in (1, 3)}
    assert metric.evaluate(50) == pytest.approx(wanted)


@pytest.mark.parametrize('value', [0.0, float('nan')])
def test_scores_without_a_winner_are_no_hits(value):
    metric = Accuracy(topk=(1,))
    metric.process({}, [dict(scores=torch.full((10,), value), label=torch.tensor(i)) for i in range(10)])
    assert metric.evaluate(10)['accuracy/top1'] == pytest.approx(10)


def test_more_than_all_classes_are_refused():
    with pytest.raises(ValueError, match=r'Accuracy.topk=\(1, 5\) is not valid for 3 classes'):
        Accuracy().process({}, [dict(scores=torch.rand(3), label=torch.tensor(0))])


@MODELS.register_module(force=True)
class Constant(nn.Module):
    """A backbone of given outputs."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, x):
        return self.outputs


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('soft', [False, True])
def test_the_loss_is_the_cross_entropy_of_the_pooled_features(smoothing, soft):
    torch.manual_seed(0)
    feature, token, labels = torch.randn(5, 6, 3, 3), torch.randn(5, 6), torch.randint(4, (5,))
    targets = torch.rand(5, 4).softmax(1) if soft else F.one_hot(labels, 4).float()
    cases = [((torch.randn(5, 2, 6, 6), feature), feature.mean((2, 3))), ([[feature, token]], token), (token, token)]
    for outputs, pooled in cases:
        model = ImageClassifier(dict(type='Constant', outputs=outputs), 4, 6, smoothing)
        logits = pooled @ model.head.weight.T + model.head.bias
        torch.testing.assert_close(model(torch.zeros(5, 3, 8, 8)), logits)
        smooth = targets * (1 - smoothing) + smoothing / 4
        wanted = -(smooth * (logits - logits.logsumexp(1, keepdim=True))).sum(1).mean()
        loss = model(torch.zeros(5, 3, 8, 8), targets if soft else labels, mode='loss')['loss']
        torch.testing.assert_close(loss, wanted)
        samples = model(torch.zeros(5, 3, 8, 8), labels, mode='predict')
        assert [int(sample['label']) for sample in samples] == labels.tolist()
        torch.testing.assert_close(torch.stack([sample['scores'] for sample in samples]), logits.softmax(1))


def test_a_linear_layer_that_does_not_fit_is_named():
    model = ImageClassifier(dict(type='Constant', outputs=(torch.zeros(2, 32, 1, 1),)), 10, 64)
    with pytest.raises(
        ValueError, match='in_channels=64 does not fit the backbone, whose last output has 32 channels'
    ):
        model(torch.zeros(2, 3, 8, 8))


def test_the_preprocessor_normalizes_and_augments_in_training_only():
    with DefaultScope.overwrite_default_scope('repl_mm'):
        augments = [dict(type='BatchCrop'), dict(type='BatchMix', num_classes=10)]
        settings = dict(type='ClsDataPreprocessor', mean=MEAN.tolist(), std=STD.tolist(), augments=augments)
        preprocessor = MODELS.build(settings)
    batch = dict(inputs=torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8), labels=torch.arange(4))
    out = preprocessor(batch, False)
    wanted = torch.stack([(batch['inputs'][:, c].float() - MEAN[c]) / STD[c] for c in range(3)], 1)
    torch.testing.assert_close(out['inputs'], wanted)
    assert torch.equal(out['labels'], batch['labels'])
    out = preprocessor(batch, True)
    assert out['labels'].shape == (4, 10) and not torch.equal(out['inputs'], wanted)


@pytest.mark.parametrize('training', [False, True])
def test_the_preprocessor_resizes_every_image_to_a_square(training):
    settings = dict(mean=[0, 0, 0], std=[1, 1, 1], augments=[dict(type='BatchFlip', prob=1)], size=8)
    with DefaultScope.overwrite_default_scope('repl_mm'):
        preprocessor = MODELS.build(dict(type='ClsDataPreprocessor', **settings))
    # a slope from left to right: bilinear values lie on it, but for half a pixel at the borders
    images = torch.arange(4, dtype=torch.uint8).mul(40).expand(2, 3, 5, 4)
    out = preprocessor(dict(inputs=images, labels=torch.arange(2)), training)['inputs']
    wanted = ((torch.arange(8) + 0.5) / 2 - 0.5).clamp(0, 3) * 40
    torch.testing.assert_close(out, (wanted.flip(0) if training else wanted).expand(2, 3, 8, 8))


@pytest.mark.parametrize('size', [0, -3, 2.5, '64', True])
def test_a_size_that_is_none_is_named(size):
    with (
        DefaultScope.overwrite_default_scope('repl_mm'),
        pytest.raises(ValueError, match=r'ClsDataPreprocessor\.size=.* is not valid: expected None or an integer'),
    ):
        MODELS.build(dict(type='ClsDataPreprocessor', mean=[0], std=[1], size=size))


# ---- CIFAR ResNets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('depth, params', [(20, 269722), (32, 464154), (56, 853018), (110, 1727962)])
def test_cifar_resnets_have_the_published_number_of_parameters(depth, params):
    model = ImageClassifier(dict(type='repl_mm.CifarResNet', depth=depth), 10, 64)
    assert sum(p.numel() for p in model.parameters()) == params  # with option A, in the public PyTorch version


def test_shortcuts():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 16)
    for shortcut in 'AB':
        net = CifarResNet(20, shortcut, out_indices=(0, 1, 2)).eval()
        assert [tuple(out.shape) for out in net(x)] == [(2, 16, 16, 16), (2, 32, 8, 8), (2, 64, 4, 4)]
        block = net.layer2[0]
        nn.init.zeros_(block.bn2.weight)  # what is left is the shortcut
        y = torch.rand(2, 16, 8, 8)
        if shortcut == 'A':
            wanted = torch.zeros(2, 32, 4, 4)
            wanted[:, 8:24] = y[:, :, ::2, ::2]
        else:
            conv, norm = block.shortcut
            wanted = F.relu(F.conv2d(y, conv.weight, stride=2) / math.sqrt(1 + norm.eps))
        torch.testing.assert_close(block(y), wanted)


def resnet20(replace=None, **settings):
    """A ResNet-20 in train mode, with RepL if ``replace`` is given; of one seed."""
    torch.manual_seed(0)
    net = CifarResNet(20, **settings)
    net.init_weights()
    if replace is not None:
        repl_mm.apply_repl(net, **replace)
    return net.train()


@pytest.mark.parametrize('replace', [None, dict(), dict(operator='full'), dict(mode='own'), dict(mode='remove')])
def test_with_cp_gives_the_same_gradients_for_less_memory(replace):
    nets = [resnet20(replace, with_cp=with_cp, drop_path_rate=0.5) for with_cp in (False, True)]
    x = torch.rand(4, 3, 32, 32)
    plain, checkpointed = [], []
    for net, found in zip(nets, (plain, checkpointed), strict=True):
        torch.manual_seed(1)  # the same branches are dropped, in the recomputation too
        net(x)[0].square().sum().backward()
        found += [p.grad for p in net.parameters()]
    assert all(grad is not None for grad in plain)
    torch.testing.assert_close(checkpointed, plain)
    costs = [cost.measure(net, cost.ImageInput((32, 32), 4)) for net in nets]
    assert costs[1].activation_bytes < 0.5 * costs[0].activation_bytes and costs[1].flops > costs[0].flops


def test_settings_that_are_off_cost_nothing():
    off, on = (resnet20(dict(), drop_path_rate=rate) for rate in (0.0, 0.3))
    assert not [m for m in off.modules() if type(m).__name__ == 'DropPath']
    assert list(off.state_dict()) == list(on.state_dict())
    x = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(off.eval()(x), on.eval()(x), rtol=0, atol=0)  # nothing is dropped in eval mode


@pytest.mark.parametrize('replace', [None, dict(), dict(mode='share'), dict(operator='full')])
def test_stochastic_depth_grows_and_stays_in_replaced_blocks(replace):
    net = resnet20(replace, drop_path_rate=0.9)
    blocks = [*net.layer1, *net.layer2, *net.layer3]
    rates = [[m.drop_prob for m in block.modules() if type(m).__name__ == 'DropPath'] for block in blocks]
    assert rates == [[pytest.approx(0.1 * (i + 1))] for i in range(9)]


@pytest.mark.parametrize('replace', [None, dict(slots=[(2, 1)])])
def test_stochastic_depth_drops_the_branches_of_whole_images(replace):
    """In a block that drops 8 / 9 of 0.45; its shortcut is the identity."""
    block = resnet20(replace, drop_path_rate=0.45).layer3[1]
    x = torch.rand(1, 64, 8, 8).expand(4000, -1, -1, -1)
    with torch.no_grad():
        block.eval()
        branch = (block(x[:1]) - x[:1]) / 0.6
        for module in block.modules():
            module.train(not isinstance(module, nn.BatchNorm2d))
        out = block(x)
    kept = [bool((one != x[0]).any()) for one in out]
    assert 0.55 < sum(kept) / len(kept) < 0.65
    positive = (x[0] + branch[0] > 0) & (x[0] + 0.6 * branch[0] > 0)  # elsewhere the last ReLU cuts
    assert all(torch.allclose((one - x[0])[positive], branch[0][positive], atol=1e-5) for one in out[kept][:50])
    torch.testing.assert_close(out.mean(0)[positive], (x[0] + 0.6 * branch[0])[positive], rtol=0.1, atol=0.05)


@pytest.mark.real_data
def test_public_weights_reach_their_accuracy(shared_data):
    """92.63 % on all 10,000 test images; here on 100 of each class (standard error 0.8)."""
    state = torch.load(shared_data / 'weights' / 'cifar10_resnet32-d509ac18.th', map_location='cpu')['state_dict']
    state = {key.removeprefix('module.'): value for key, value in state.items()}
    model = ImageClassifier(dict(type='repl_mm.CifarResNet', depth=32), 10, 64).eval()
    names = [key for key in model.backbone.state_dict() if 'num_batches' not in key]
    assert [key for key in state if not key.startswith('linear.')] == names
    model.backbone.load_state_dict(state, strict=False)
    model.head.load_state_dict(dict(weight=state['linear.weight'], bias=state['linear.bias']))
    hits = 0
    for label, name in enumerate(NAMES):
        mosaic = cv2.imread(str(shared_data / 'cifar10' / f'test_{label}_{name}.webp'))[..., ::-1]
        tiles = mosaic.reshape(mosaic.shape[0] // 32, 32, 50, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)
        images = (torch.tensor(tiles[:100]).float() - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
        with torch.no_grad():
            hits += int((model(images).argmax(1) == label).sum())
    assert 900 < hits < 955


# ---- runs ---------------------------------------------------------------------------------------------------------


def tiny(config, data_root, work_dir, **backbone):
    """A shipped config, by its name, on small data: 16 images in a step."""
    cfg = Config.fromfile(CONFIGS / f'{config}.py')
    _common.set_data_root(cfg, str(data_root))
    cfg.model.backbone.update(backbone)
    cfg.train_dataloader.update(batch_size=16)
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    cfg.custom_hooks[0].shape = None
    cfg.work_dir = str(work_dir)
    cfg.visualizer = dict(type='Visualizer', name=str(work_dir), vis_backends=[dict(type='LocalVisBackend')])
    return cfg


def resnet(data_root, work_dir):
    cfg = tiny('resnet32_repl_cifar10', data_root, work_dir, depth=20, base_channels=4)
    cfg.model.in_channels = 16
    return cfg


RUNS = itertools.count()


def train_config(cfg) -> Runner:
    cfg = copy.deepcopy(cfg)
    # by default the second is a run's name, and two runs in one share their scope and their message hub
    cfg.setdefault('experiment_name', f'run {next(RUNS)}')
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def test_a_run_trains_evaluates_and_resumes(cifar, tmp_path):
    cfg = resnet(cifar, tmp_path)
    cfg.default_hooks.ema = dict(type='EMAHook', momentum=0.1)
    cfg.optim_wrapper.accumulative_counts = 2
    cfg.model.channels_last = True
    runner = train_config(cfg)
    assert runner.iter == 3 and len(repl_mm.plan_of(runner.model.backbone).slots) == 3
    assert runner.model.backbone.layer3[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    tops = [runner.message_hub.get_scalar(f'val/accuracy/top{k}').current() for k in (1, 5)]
    assert 0 <= tops[0] <= tops[1] <= 100 and {top / 12.5 % 1 for top in tops} == {0}  # of 8 images
    saved = read_checkpoint(tmp_path / 'epoch_1.pth')
    assert {'repl_plan', 'dataset_meta'} <= set(saved['meta']) and 'ema_state_dict' in saved
    assert saved['meta']['dataset_meta']['classes'] == tuple(NAMES)

    cfg = resnet(cifar, tmp_path / 'more')
    cfg.default_hooks.ema = dict(type='EMAHook', momentum=0.1)
    cfg.train_cfg.max_epochs = 2
    cfg.update(resume=True, load_from=str(tmp_path / 'epoch_1.pth'))
    runner = train_config(cfg)
    assert runner.epoch == 2 and runner.iter == 6

    cfg = resnet(cifar, tmp_path / 'test')
    cfg.load_from = str(tmp_path / 'epoch_1.pth')
    cfg.default_hooks.ema = dict(type='EMAHook', momentum=0.1)
    runner = Runner.from_cfg(cfg)
    assert [runner.test()[f'accuracy/top{k}'] for k in (1, 5)] == pytest.approx(tops)


def test_the_seed_decides_everything(cifar, tmp_path):
    states = []
    for number, seed in enumerate((5, 5, 6)):
        cfg = resnet(cifar, tmp_path / str(number))
        cfg.randomness.seed = seed
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
        states.append(train_config(cfg).model.state_dict())
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    assert not torch.equal(states[0]['head.weight'], states[2]['head.weight'])


def test_training_learns(tmp_path):
    """Ten classes of one color each, from the first row of a batch's files to the accuracy."""
    folder = tmp_path / 'cifar-10-batches-py'
    write_cifar(folder, num=32)
    colors = np.random.default_rng(3).integers(0, 256, (10, 3), np.uint8)
    for path in folder.glob('*_batch*'):
        batch = pickle.loads(path.read_bytes())
        write_pickle(path, {**batch, b'data': colors[batch[b'labels']].repeat(1024, axis=1)})
    cfg = resnet(tmp_path, tmp_path / 'work')
    cfg.train_cfg.update(max_epochs=12, val_interval=12)
    cfg.optim_wrapper.optimizer.update(lr=0.02)
    runner = train_config(cfg)
    # 53 to 81 by seed and machine; always the same answer gives less than 20
    assert runner.message_hub.get_scalar('val/accuracy/top1').current() > 40


@pytest.mark.slow
def test_a_compiled_step_trains_alike(cifar, tmp_path):
    losses = []
    for name, compiled in (('plain', False), ('compiled', dict(backend='eager'))):
        cfg = resnet(cifar, tmp_path / name)
        cfg.compile = compiled
        cfg.experiment_name = name  # by default the second is its name, and two runs in one share their message hub
        losses.append(train_config(cfg).message_hub.get_scalar('train/loss').data[0])
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.slow
def test_the_tools_train_test_and_resume(cifar, tmp_path):
    options = ['--data-root', cifar, '--work-dir', tmp_path / 'work', '--cfg-options', 'custom_hooks.0.shape=None']
    options += ['model.backbone.depth=20', 'model.backbone.base_channels=4', 'model.in_channels=16']
    config = CONFIGS / 'resnet32_repl_cifar10.py'
    log = run_well('train.py', config, '--amp', *options, 'train_cfg.max_epochs=1', cwd=tmp_path)
    assert '3 of 9 blocks replaced' in log and 'accuracy/top1' in log and 'Failed to' not in log
    assert "type='CPUAmpOptimWrapper'" in (tmp_path / 'work' / 'resnet32_repl_cifar10.py').read_text()
    log = run_well('train.py', config, '--resume', *options, 'train_cfg.max_epochs=2', cwd=tmp_path)
    assert 'resumed epoch: 1' in log and 'Epoch(train) [1]' not in log
    checkpoint, out = tmp_path / 'work' / 'epoch_2.pth', tmp_path / 'out.pkl'
    log = run_well('test.py', config, checkpoint, '--out', out, *options, cwd=tmp_path)
    assert 'accuracy/top5' in log
    predictions = pickle.loads(out.read_bytes())
    assert len(predictions) == 8 and predictions[0]['scores'].shape == (10,)


@pytest.mark.slow
def test_data_and_augmentation_take_less_than_a_tenth_of_a_step(tmp_path):
    """ResNet-32 on CIFAR-10 at batch 128: what the loader and the preprocessor need, and the rest of the step."""
    write_cifar(tmp_path / 'data', num=200)
    cfg = Config.fromfile(CONFIGS / 'resnet32_cifar10.py')
    _common.set_data_root(cfg, str(tmp_path / 'data'))
    with DefaultScope.overwrite_default_scope('repl_mm'):
        model = MODELS.build(cfg.model).train()
        loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)

    def timed(function, *args):
        begin = time.process_time()
        return function(*args), time.process_time() - begin

    data, step = [], []
    for _ in range(2):
        batches = iter(loader)
        for _ in range(7):
            batch, read = timed(next, batches)
            batch, augmented = timed(model.data_preprocessor, batch, True)
            data.append(read + augmented)
        _, computed = timed(lambda batch=batch: model(**batch, mode='loss')['loss'].backward())
        step.append(computed)
    share = float(np.median(data) / (np.median(data) + min(step)))
    print(f'\ndata and augmentation {1e3 * np.median(data):.1f} ms, compute {1e3 * min(step):.0f} ms: {share:.1%}')
    assert share < 0.1


# ---- the shipped configs ------------------------------------------------------------------------------------------

SIZES = dict(cifar10=32, svhn=32, stl10=96, imagenet=224)
SMALL, LARGE = ('resnet32', 'resnet110', 'vit-s', 'vit-b'), ('resnet50', 'resnet101', 'vit-s', 'vit-b')
SHIPPED = [f'{model}_{data}' for data in SIZES for model in (LARGE if data == 'imagenet' else SMALL)]
SHIPPED += ['vit-t_cifar10', 'deit-t_cifar10']


def test_every_shipped_config_is_tested():
    names = [*SHIPPED, *(name.replace('_', '_repl_') for name in SHIPPED)]
    others = ('mini', 'converted', '16px')
    assert {path.stem for path in CONFIGS.glob('*.py') if not path.stem.endswith(others)} == set(names)


def test_the_comparison_of_minutes_holds_images_out():
    cfg = Config.fromfile(CONFIGS / 'resnet20_repl_cifar10_16px.py')
    train, val = (cfg[f'{phase}_dataloader'].dataset for phase in ('train', 'val'))
    assert train.split == val.split == 'train' and set(range(train.indices)).isdisjoint(val.indices)
    assert train.indices + len(val.indices) == 50000
    model = repl_mm.config.build(cfg.model, 'repl_mm')
    assert sum(p.numel() for p in model.head.parameters()) == 330
    assert [(s.stage, s.index) for s in repl_mm.plan_of(model.backbone).slots] == [(0, 1), (1, 1), (2, 1)]


@pytest.mark.parametrize('name', SHIPPED)
def test_the_words_of_the_backbone_are_all_that_differs(name):
    stock, repl = (Config.fromfile(CONFIGS / f'{n}.py').to_dict() for n in (name, name.replace('_', '_repl_')))
    assert repl['model']['backbone'].pop('type') == f'RepL{stock["model"]["backbone"].pop("type")}'
    assert repl['model']['backbone'].pop('replace', None) in (None, dict(stages=(1, 2, 3)))
    assert stock == repl


@pytest.mark.parametrize('name', [*SHIPPED, *(name.replace('_', '_repl_') for name in SHIPPED)])
def test_every_shipped_config_runs_a_step(name):
    """At a sixteenth of the width of the transformers, an eighth of that of ResNet-50 and ResNet-101."""
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    data = name.rpartition('_')[2]
    backbone, narrow = cfg.model.backbone, dict(CifarResNet=1, ResNet=8, VisionTransformer=16)
    factor = narrow[backbone.type.removeprefix('RepL')]
    cfg.model.in_channels //= factor
    backbone.init_cfg = None
    if 'embed_dims' in backbone:
        backbone.update(embed_dims=backbone.embed_dims // factor, num_heads=2)
    elif factor > 1:
        backbone.base_channels = 64 // factor
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('repl_mm'):
        model = MODELS.build(cfg.model)
    model.init_weights()
    model.train()
    assert (repl_mm.plan_of(model.backbone) is not None) == ('_repl_' in name)
    num_classes = 1000 if data == 'imagenet' else 10
    size, num = SIZES[data], 2
    batch = dict(inputs=torch.randint(256, (num, 3, size, size), dtype=torch.uint8), labels=torch.arange(num))
    out = model.data_preprocessor(batch, True)
    assert ('vit' in name) == (out['labels'].shape == (num, num_classes))
    assert out['inputs'].shape[-1] == cfg.model.data_preprocessor.get('size', size)
    loss = model(**out, mode='loss')['loss']
    loss.backward()
    assert 0.5 < float(loss.detach()) / math.log(num_classes) < 3  # it knows nothing yet
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize('name', ['resnet50_imagenet', 'vit-s_repl_imagenet'])
def test_the_pipelines_of_imagenet_make_batches(name, tmp_path):
    write_imagenet(tmp_path)
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    _common.set_data_root(cfg, str(tmp_path))
    for split, loader in (('train', cfg.train_dataloader), ('val', cfg.val_dataloader)):
        assert loader.dataset.split == split
        loader.dataset.num_classes = 2
        loader.update(num_workers=0, persistent_workers=False)
        with DefaultScope.overwrite_default_scope('repl_mm'):
            (batch,) = Runner.build_dataloader(loader, seed=0)
        assert batch['inputs'].shape == (6, 3, 224, 224) and batch['inputs'].dtype == torch.uint8
        assert sorted(batch['labels'].tolist()) == [0, 0, 0, 1, 1, 1]
        if split == 'val':
            assert (batch['inputs'].float().mean((1, 2, 3)) - 40 - 80 * batch['labels']).abs().max() < 2


@pytest.mark.real_data
def test_real_photographs_in_folders(shared_data, tmp_path):
    lines = (shared_data / 'imagenet_sample' / 'meta.txt').read_text().split('\n')[:12]
    for path, _, index in (line.rpartition(' ') for line in lines):
        folder = tmp_path / 'val' / f'{int(index):04}'
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(shared_data / 'imagenet_sample' / 'images' / path, folder)
    cfg = Config.fromfile(CONFIGS / 'resnet50_imagenet.py').val_dataloader
    cfg.dataset.update(data_root=str(tmp_path), num_classes=len(list((tmp_path / 'val').iterdir())))
    cfg.update(num_workers=1, batch_size=5)
    with DefaultScope.overwrite_default_scope('repl_mm'):
        batches = list(Runner.build_dataloader(cfg, seed=0))
    assert [tuple(batch['inputs'].shape) for batch in batches] == [
        (5, 3, 224, 224),
        (5, 3, 224, 224),
        (2, 3, 224, 224),
    ]
    assert torch.cat([batch['labels'] for batch in batches]).tolist() == list(range(12))


# ---- feeding ------------------------------------------------------------------------------------------------------


@HOOKS.register_module(force=True)
class Begin(Hook):
    """Keeps the weights with which training begins."""

    state: dict = {}

    def before_train(self, runner):
        self.state.clear()
        self.state.update({key: value.clone() for key, value in runner.model.state_dict().items()})


RESNET = dict(type='RepLResNet', depth=18, base_channels=8, replace=dict(stages=(1, 2, 3)))
VIT = dict(type='RepLVisionTransformer', img_size=32, patch_size=8, embed_dims=32, num_layers=6, num_heads=2)


def pretrain(cfg, num_channels, **backbone) -> str:
    """Train a backbone for an epoch; the checkpoint."""
    scope = cfg.model.backbone._scope_
    cfg.model.backbone = dict(backbone, _scope_=scope)
    cfg.model.in_channels = num_channels
    train_config(cfg)
    return f'{cfg.work_dir}/epoch_1.pth'


@pytest.fixture(scope='module')
def pretrained(cifar, tmp_path_factory):
    """dict[str, str]: Checkpoints of short pretraining runs."""
    folder = tmp_path_factory.mktemp('pretrained')
    files = {}
    for scope in ('mmdet', 'mmseg'):
        cfg = tiny('resnet50_repl_imagenet', cifar, folder / scope, _scope_=scope)
        other = tiny('resnet32_repl_cifar10', cifar, folder / scope)
        for key in ('train_dataloader', 'val_dataloader'):
            cfg[key] = other[key]
        cfg.model.num_classes = 10
        files[scope] = pretrain(cfg, 64, **RESNET, norm_eval=False, out_indices=(3,))
    cfg = tiny('vit-s_repl_cifar10', cifar, folder / 'vit')
    files['vit'] = pretrain(cfg, 32, **VIT, output_cls_token=True, final_norm=True)
    return files


def segmentor_config(folder, backbone, head) -> Config:
    """A segmentor of mmseg on four pictures of 64x64 pixels, one epoch of two steps."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 32:] = 255
    for kind, content in (('img', image), ('ann', image[..., 0] // 255)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for name in 'abcd':
            cv2.imwrite(str(folder / kind / f'{name}.png'), content)
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
    dataset = dict(
        type='BaseSegDataset',
        data_root=str(folder),
        data_prefix=dict(img_path='img', seg_map_path='ann'),
        img_suffix='.png',
        seg_map_suffix='.png',
        metainfo=dict(classes=('a', 'b')),
        pipeline=pipeline,
    )
    common = dict(num_classes=2, channels=8, norm_cfg=dict(type='BN'))
    return Config(
        dict(
            default_scope='mmseg',
            custom_imports=dict(imports=['repl_mm']),
            model=dict(
                type='EncoderDecoder',
                data_preprocessor=dict(type='SegDataPreProcessor', mean=[0] * 3, std=[255] * 3, size=(64, 64)),
                backbone=backbone,
                decode_head=dict(common, **head),
            ),
            train_dataloader=dict(batch_size=2, dataset=dataset, sampler=dict(type='DefaultSampler'), num_workers=0),
            train_cfg=dict(by_epoch=True, max_epochs=1),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
            custom_hooks=[dict(type='RepLHook', shape=None)],
            work_dir=str(folder / 'work'),
            randomness=dict(seed=1),
        )
    )


SEGMENTORS = {
    'resnet to fcn': ('mmseg', RESNET, dict(type='FCNHead', in_channels=64, in_index=3, num_convs=1)),
    'vit to fcn': ('vit', dict(VIT, out_indices=(5,)), dict(type='FCNHead', in_channels=32, in_index=0, num_convs=1)),
    'vit to upernet': (
        'vit',
        dict(VIT, out_indices=(2, 3, 4, 5)),
        dict(type='UPerHead', in_channels=[32] * 4, in_index=[0, 1, 2, 3], pool_scales=(1, 2)),
    ),
}


def source(way) -> str:
    return 'mmdet' if way == 'resnet to retinanet' else SEGMENTORS[way][0]


def dense_config(way, pretrained, mini_coco, folder, **changes) -> Config:
    """A dense config that is fed with a pretraining run."""
    changes['init_cfg'] = dict(type='Pretrained', checkpoint=pretrained[source(way)], prefix='backbone.')
    if way in SEGMENTORS:
        cfg = segmentor_config(folder, dict(SEGMENTORS[way][1], **changes), SEGMENTORS[way][2])
    else:
        cfg = detector_config(mini_coco, folder, **changes)
        cfg.train_cfg.update(max_epochs=1)
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.custom_hooks.append(dict(type='Begin'))
    return cfg


WAYS = ['resnet to retinanet', *SEGMENTORS]


@pytest.mark.parametrize('way', WAYS)
def test_a_pretraining_run_feeds_a_dense_config(way, pretrained, mini_coco, tmp_path):
    """A ViT of 32x32 pixels goes on with pictures of 64x64: its positions are interpolated."""
    runner = train_config(dense_config(way, pretrained, mini_coco, tmp_path))
    saved = read_checkpoint(pretrained[source(way)])['state_dict']
    own = {key: value for key, value in Begin.state.items() if key.startswith('backbone.')}
    assert len(repl_mm.plan_of(runner.model.backbone).slots) == (2 if 'vit' in way else 3)
    assert any('.repl.' in key for key in own)
    for key, value in own.items():
        torch.testing.assert_close(value, saved[key], rtol=0, atol=0)
    extra = {key for key in saved if key.startswith('backbone.')} - own.keys()
    assert extra == ({'backbone.ln1.weight', 'backbone.ln1.bias'} if 'vit' in way else set())  # of the class token


@pytest.mark.parametrize('way', WAYS)
def test_a_dense_config_of_another_plan_is_refused(way, pretrained, mini_coco, tmp_path):
    slots = [(0, 3)] if 'vit' in way else [(2, 1)]
    cfg = dense_config(way, pretrained, mini_coco, tmp_path, replace=dict(slots=slots))
    runner = Runner.from_cfg(cfg)
    with pytest.raises(repl_mm.PlanError, match='slots only in the checkpoint'):
        runner.train()


def test_a_stock_backbone_is_fed_alike(cifar, tmp_path):
    cfg = tiny('vit-s_cifar10', cifar, tmp_path / 'pre')
    file = pretrain(cfg, 32, **dict(VIT, type='VisionTransformer'), output_cls_token=True, final_norm=True)
    # in brackets: the stock class reads no prefix from a dict
    init_cfg = [dict(type='Pretrained', checkpoint=file, prefix='backbone.')]
    backbone = dict(VIT, type='VisionTransformer', out_indices=(5,), init_cfg=init_cfg)
    cfg = segmentor_config(tmp_path / 'dense', backbone, SEGMENTORS['vit to fcn'][2])
    cfg.custom_hooks.append(dict(type='Begin'))
    train_config(cfg)
    saved = read_checkpoint(file)['state_dict']
    for key, value in Begin.state.items():
        if key.startswith('backbone.'):
            torch.testing.assert_close(value, saved[key], rtol=0, atol=0)
    assert PLAN_KEY not in ''.join(saved)
