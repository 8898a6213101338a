"""The mini dataset: determinism, exact masks, folders that official tools and mm packages read; the VOC converter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import layouts
import mini_dataset
import numpy as np
import pytest
import scenes
import shapes
import voc_to_coco
from mmengine.registry import DefaultScope
from pycocotools.coco import COCO

from repl_mm.classification import ImageNet

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def coco_dir(tmp_path_factory):
    out = tmp_path_factory.mktemp('data') / 'mini'
    assert mini_dataset.write_coco(out, num_train=6, num_val=4, size=(64, 96), seed=3)
    return out


def _scene(seed=0, size=(72, 120), **kwargs):
    return scenes.scene(np.random.default_rng(seed), size, **kwargs)


def test_scene_is_deterministic_and_seeds_differ():
    for one, two in zip(_scene(5), _scene(5), strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(_scene(5)[0], _scene(6)[0])


def test_scenes_do_not_depend_on_their_number_and_splits_differ():
    few = list(scenes.scenes('train', 2, (48, 48), seed=1))
    more = list(scenes.scenes('train', 3, (48, 48), seed=1))
    other = list(scenes.scenes('val', 2, (48, 48), seed=1))
    np.testing.assert_array_equal(few[1][0], more[1][0])
    assert not np.array_equal(few[0][0], other[0][0])


@pytest.mark.parametrize('seed', range(20))
def test_every_label_has_pixels_and_every_pixel_a_label(seed):
    image, instances, labels = _scene(seed)
    assert image.shape == (72, 120, 3) and image.dtype == np.uint8
    assert set(np.unique(instances)) - {0} == set(range(1, len(labels) + 1))
    assert all(0 <= label < len(shapes.CLASSES) for label in labels)


def test_objects_hide_each_other():
    hidden = 0
    for seed in range(10):
        _, instances, labels = _scene(seed, num_objects=12, min_visible=0.0)
        sides = [np.ptp(np.argwhere(instances == i + 1), axis=0) + 1 for i in range(len(labels))]
        # a whole convex shape fills at least half of its box; what is far below has been cut
        hidden += sum((instances == i + 1).sum() < 0.25 * np.prod(side) for i, side in enumerate(sides))
    assert hidden > 0
    few, many = (_scene(0, num_objects=40, min_visible=share)[2] for share in (0.9, 0.0))
    assert len(few) < len(many)


def _inside(contours, x, y):
    """Even-odd rule: how often a ray to the right crosses the contours."""
    inside = np.zeros(np.broadcast_shapes(x.shape, y.shape), bool)
    for contour in contours:
        for (x1, y1), (x2, y2) in zip(contour, np.roll(contour, -1, axis=0), strict=True):
            if y1 != y2:
                inside ^= ((y1 > y) != (y2 > y)) & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)
    return inside


def _distance(contours, x, y):
    """Distance of every pixel to the nearest edge of the contours."""
    pixels = np.stack(np.broadcast_arrays(x, y), axis=-1).astype(float)
    nearest = np.inf
    for contour in contours:
        for start, end in zip(contour, np.roll(contour, -1, axis=0), strict=True):
            along = np.clip((pixels - start) @ (end - start) / ((end - start) @ (end - start)), 0, 1)
            nearest = np.minimum(nearest, np.linalg.norm(pixels - start - along[..., None] * (end - start), axis=-1))
    return nearest


@pytest.mark.parametrize('name', shapes.CLASSES)
def test_masks_are_the_shapes_up_to_the_border_pixels(name):
    contours = shapes.place(shapes.outline(name), (41.3, 30.8), 22.0, 0.7, squeeze=0.8)
    mask = shapes.fill(contours, (64, 80))
    x, y = np.arange(80)[None], np.arange(64)[:, None]
    clear = _distance(contours, x, y) > 1
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(mask[clear], _inside(contours, x, y)[clear])


def test_an_object_changes_its_own_pixels_only():
    rng = np.random.default_rng(0)
    mask = rng.random((30, 40)) < 0.3
    image = np.full((30, 40, 3), -1000, np.float32)
    scenes._paint(rng, image, mask, center=(20, 15), radius=10, color=np.array([10, 20, 30]))
    np.testing.assert_array_equal((image != -1000).all(axis=2), mask)
    np.testing.assert_array_equal((image != -1000).any(axis=2), mask)


def test_outlines_have_the_area_that_geometry_says():
    expected = dict(
        square=2 * 1.15**2,
        triangle=1.2**2 * 3 * np.sqrt(3) / 4,
        star=5 * 1.2 * 0.5 * np.sin(np.pi / 5),
        ring=np.pi * (1 - 0.55**2),
    )
    for name in shapes.CLASSES:
        x, y = np.meshgrid(*[np.linspace(-1.3, 1.3, 521)] * 2)
        inside = _inside(shapes.outline(name), x, y)
        assert inside.mean() * 2.6**2 == pytest.approx(expected[name], rel=0.02), name
    with pytest.raises(ValueError, match="unknown shape 'hexagon', valid are square"):
        shapes.outline('hexagon')


@pytest.mark.parametrize('split', ['train', 'val'])
def test_annotations_agree_with_the_scenes_pixel_by_pixel(coco_dir, split):
    coco = COCO(coco_dir / 'annotations' / f'instances_{split}.json')
    num = dict(train=6, val=4)[split]
    assert sorted(coco.imgs) == list(range(1, num + 1))
    assert [coco.cats[i]['name'] for i in sorted(coco.cats)] == list(shapes.CLASSES)
    for i, (image, instances, labels) in enumerate(scenes.scenes(split, num, (64, 96), seed=3)):
        entry = coco.imgs[i + 1]
        written = cv2.imread(str(coco_dir / split / entry['file_name']))
        assert written.shape == (entry['height'], entry['width'], 3) == image.shape
        assert np.abs(written.astype(int) - image).mean() < 10  # JPEG
        annotations = coco.imgToAnns[i + 1]
        assert [a['category_id'] - 1 for a in annotations] == list(labels)
        for value, annotation in enumerate(annotations, 1):
            pixels = [(r, c) for r in range(64) for c in range(96) if instances[r, c] == value]
            mask = coco.annToMask(annotation)
            assert [tuple(map(int, p)) for p in np.argwhere(mask)] == pixels
            rows, cols = zip(*pixels, strict=True)
            box = [min(cols), min(rows), max(cols) - min(cols) + 1, max(rows) - min(rows) + 1]
            assert annotation['bbox'] == box
            assert annotation['area'] == len(pixels)
            assert annotation['iscrowd'] == 0


def test_mmdet_reads_boxes_and_masks(coco_dir):
    mmdet_datasets = pytest.importorskip('mmdet.datasets')
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True)]
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = mmdet_datasets.CocoDataset(
            data_root=str(coco_dir),
            ann_file='annotations/instances_val.json',
            data_prefix=dict(img='val/'),
            metainfo=dict(classes=shapes.CLASSES),
            pipeline=pipeline,
        )
    assert len(dataset) == 4
    _, instances, labels = list(scenes.scenes('val', 4, (64, 96), seed=3))[2]
    item = dataset[2]
    np.testing.assert_array_equal(item['gt_bboxes_labels'], labels)
    assert not item['gt_ignore_flags'].any()
    for i, mask in enumerate(item['gt_masks'].masks):
        np.testing.assert_array_equal(mask.astype(bool), instances == i + 1)


# ---- the Cityscapes layout ----

IDS = dict(road=7, car=26, sign=20, person=24, vegetation=21)  # as published with the dataset
TRAIN_IDS = {7: 0, 26: 13, 20: 7, 24: 11, 21: 8, 3: 255}
OBJECTS = dict(square='car', triangle='sign', star='person', ring='vegetation')


@pytest.fixture(scope='module')
def cityscapes_dir(tmp_path_factory):
    pytest.importorskip('cityscapesscripts')
    out = tmp_path_factory.mktemp('data') / 'mini'
    assert mini_dataset.write_cityscapes(out, num_train=3, num_val=2, size=(48, 64), seed=3)
    return out


@pytest.mark.parametrize(('split', 'num'), [('train', 3), ('val', 2)])
def test_label_maps_agree_with_the_scenes_pixel_by_pixel(cityscapes_dir, split, num):
    images = sorted((cityscapes_dir / 'leftImg8bit' / split / f'mini{split}').iterdir())
    assert [path.name for path in images] == [f'mini{split}_{i:06d}_000000_leftImg8bit.png' for i in range(num)]
    labels_of = cityscapes_dir / 'gtFine' / split / f'mini{split}'
    assert len(list(labels_of.iterdir())) == 3 * num
    for path, (image, instances, labels) in zip(images, scenes.scenes(split, num, (48, 64), seed=3), strict=True):
        np.testing.assert_array_equal(cv2.imread(str(path)), image)
        name = path.name.removesuffix('_leftImg8bit.png')
        ids, train_ids, instance_ids = (
            cv2.imread(str(labels_of / f'{name}_gtFine_{kind}.png'), cv2.IMREAD_UNCHANGED)
            for kind in ('labelIds', 'labelTrainIds', 'instanceIds')
        )
        assert (ids.dtype, train_ids.dtype, instance_ids.dtype) == (np.uint8, np.uint8, np.uint16)
        kinds = ['road'] + [OBJECTS[shapes.CLASSES[label]] for label in labels]
        for row, column in np.ndindex(48, 64):
            frame = row < 2 or row >= 46 or column < 2 or column >= 62
            i = instances[row, column]
            wanted = 3 if frame else IDS[kinds[i]]  # 3: out of roi
            assert ids[row, column] == wanted
            assert train_ids[row, column] == TRAIN_IDS[wanted]
            if not frame and kinds[i] in ('car', 'person'):
                wanted = wanted * 1000 + kinds[:i].count(kinds[i])
            assert instance_ids[row, column] == wanted


def test_the_classes_that_stand_for_shapes_are_the_official_ones(cityscapes_dir):
    from cityscapesscripts.helpers.labels import name2label

    used = [name2label[name] for name in layouts.CITYSCAPES.values()]
    assert {label.id: label.trainId for label in used} == TRAIN_IDS
    learned = [label for label in used if not label.ignoreInEval]
    assert len({label.category for label in learned}) == 5
    assert {label.name for label in learned if label.hasInstances} == {'car', 'person'}


def test_the_official_tools_read_the_instances(cityscapes_dir):
    from cityscapesscripts.evaluation.instances2dict import instances2dict

    files = sorted(map(str, cityscapes_dir.glob('gtFine/train/*/*_instanceIds.png')))
    found = [instances for _, instances in sorted(instances2dict(files).items())]
    for read, (_, instances, labels) in zip(found, scenes.scenes('train', 3, (48, 64), seed=3), strict=True):
        inner = instances[2:-2, 2:-2]
        for name, shape in (('car', 'square'), ('person', 'star')):
            sizes = [(inner == i + 1).sum() for i, k in enumerate(labels) if k == shapes.CLASSES.index(shape)]
            assert sorted(i['pixelCount'] for i in read[name]) == sorted(size for size in sizes if size)


def test_mmseg_reads_images_and_train_ids(cityscapes_dir):
    mmseg_datasets = pytest.importorskip('mmseg.datasets')
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = mmseg_datasets.CityscapesDataset(
            data_root=str(cityscapes_dir),
            data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'),
            pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')],
        )
    assert len(dataset) == 2
    image, instances, _ = list(scenes.scenes('val', 2, (48, 64), seed=3))[1]
    item = dataset[1]
    np.testing.assert_array_equal(item['img'], image)
    assert set(np.unique(item['gt_seg_map'])) <= set(TRAIN_IDS.values())
    np.testing.assert_array_equal((item['gt_seg_map'] == 0)[2:-2, 2:-2], (instances == 0)[2:-2, 2:-2])


# ---- the ImageNet layout ----


def test_every_picture_is_a_closeup_in_the_folder_of_its_class(tmp_path):
    out, size = tmp_path / 'mini', (40, 48)
    assert mini_dataset.write('imagenet', out, num_train=10, num_val=5, size=size, seed=3)
    for split, num in (('train', 10), ('val', 5)):
        with DefaultScope.overwrite_default_scope('repl_mm'):
            pipeline = [dict(type='LoadImage'), dict(type='PackImage')]
            dataset = ImageNet(out, split, pipeline=pipeline, num_classes=4)
        assert dataset.metainfo['classes'] == ('ring', 'square', 'star', 'triangle')
        assert len(dataset) == num
        read = {Path(os.fsdecode(path)).stem: dataset[i] for i, path in enumerate(dataset.images)}
        for i, (image, instances, labels) in enumerate(scenes.scenes(split, num, (60, 72), 3, single=True)):
            sample = read[f'{i:06d}']
            assert len(labels) == 1 and set(np.unique(instances)) == {0, 1}
            assert dataset.metainfo['classes'][sample['labels']] == shapes.CLASSES[labels[0]]
            written = sample['inputs'].permute(1, 2, 0).flip(2).numpy()
            assert np.abs(written.astype(int) - scenes.closeup(image, instances, size)).mean() < 10  # JPEG
        counts = np.bincount(dataset.labels, minlength=4)
        assert counts.max() - counts.min() <= 1  # the classes take turns


@pytest.mark.parametrize('size', [(64, 64), (40, 48)])
@pytest.mark.parametrize(('top', 'left'), [(20, 30), (0, 0), (76, 60)])  # in the middle and in the corners
def test_a_closeup_shows_all_of_the_object(size, top, left):
    instances = np.zeros((96, 96), np.uint8)
    instances[top : top + 20, left : left + 30] = 1
    image = np.repeat(255 * instances[..., None], 3, axis=2)
    shown = scenes.closeup(image, instances, size)
    assert shown.shape == (*size, 3)
    places = np.argwhere(shown[..., 0] > 127)
    height, width = np.ptp(places, axis=0) + 1
    # the object's longer side takes four fifths of the picture's
    assert width == pytest.approx(0.8 * size[1], abs=2)
    assert height / width == pytest.approx(20 / 30, rel=0.08)
    middle = (places.min(axis=0) + places.max(axis=0) + 1) / 2
    if (top, left) == (20, 30):
        assert middle == pytest.approx(np.divide(size, 2), abs=1.5)


# ---- writing ----


@pytest.mark.parametrize('layout', layouts.LAYOUTS)
def test_same_settings_are_skipped_others_replace(layout, tmp_path):
    out = tmp_path / 'mini'
    settings = dict(num_train=2, num_val=1, size=(40, 40))
    assert mini_dataset.write(layout, out, **settings)
    before = {path: path.read_bytes() for path in out.rglob('*') if path.is_file()}
    assert not mini_dataset.write(layout, out, **settings)
    (out / 'left.txt').touch()
    assert mini_dataset.write(layout, out, **settings, seed=1)
    assert not (out / 'left.txt').exists()
    other = next(name for name in layouts.LAYOUTS if name != layout)
    assert mini_dataset.write(other, out, **settings)
    assert mini_dataset.write(layout, out, **settings)
    assert before == {path: path.read_bytes() for path in out.rglob('*') if path.is_file()}
    assert [path.name for path in tmp_path.iterdir()] == ['mini']


def test_a_cut_off_start_leaves_nothing_that_looks_finished(tmp_path, monkeypatch):
    def fail(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(layouts, 'coco_annotations', fail)
        with pytest.raises(KeyboardInterrupt):
            mini_dataset.write_coco(tmp_path / 'mini', num_train=2, num_val=1, size=(40, 40))
    assert not (tmp_path / 'mini').exists()
    assert mini_dataset.write_coco(tmp_path / 'mini', num_train=2, num_val=1, size=(40, 40))


def test_wrong_settings_end_in_one_line(tmp_path):
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / 'cat.jpg').touch()
    for arguments, words in [
        (['--out', tmp_path / 'photos'], 'left as it is'),
        (['--out', tmp_path / 'x', '--num-val', 0], 'num_val=0'),
        (['--out', tmp_path / 'x', '--size', 8, 64], 'size=(8, 64)'),
        (['--out', tmp_path / 'x', '--layout', 'voc'], "'voc' (choose from"),
    ]:
        command = [sys.executable, ROOT / 'tools' / 'demo' / 'mini_dataset.py', *arguments]
        run = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert run.returncode == 2
        assert words in run.stderr.splitlines()[-1]
    assert (tmp_path / 'photos' / 'cat.jpg').exists()


# ---- the VOC converter ----

VOC = """<annotation><filename>{name}.jpg</filename><size><width>60</width><height>40</height><depth>3</depth></size>
{objects}</annotation>"""
OBJECT = (
    '<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>'
)


@pytest.fixture
def voc_dir(tmp_path):
    objects = dict(
        a=[('RBC', 3, 5, 23, 15), ('WBC', 10, 10, 60, 40)],
        b=[('RBC', 0, 0, 10, 10), ('RBC', 7, 7, 7, 20)],  # the second has no extent
        c=[],
    )
    voc = tmp_path / 'voc'
    for folder in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (voc / folder).mkdir(parents=True)
    for name, boxes in objects.items():
        text = VOC.format(name=name, objects=''.join(OBJECT.format(*box) for box in boxes))
        (voc / 'Annotations' / f'{name}.xml').write_text(text)
        cv2.imwrite(str(voc / 'JPEGImages' / f'{name}.jpg'), np.zeros((40, 60, 3), np.uint8))
    (voc / 'ImageSets/Main/train.txt').write_text('b\na\n')
    (voc / 'ImageSets/Main/val.txt').write_text('c\n')
    return voc


def test_voc_becomes_coco(voc_dir, tmp_path):
    out = tmp_path / 'coco'
    assert voc_to_coco.convert(voc_dir, out, ['RBC', 'WBC']) == dict(train=(2, 3, 1), val=(1, 0, 0))
    coco = COCO(out / 'annotations' / 'instances_train.json')
    assert [coco.imgs[i]['file_name'] for i in (1, 2)] == ['b.jpg', 'a.jpg']
    assert all((entry['width'], entry['height']) == (60, 40) for entry in coco.imgs.values())
    found = [(a['image_id'], coco.cats[a['category_id']]['name'], a['bbox'], a['area']) for a in coco.anns.values()]
    assert found == [
        (1, 'RBC', [0, 0, 10, 10], 100),
        (2, 'RBC', [3, 5, 20, 10], 200),
        (2, 'WBC', [10, 10, 50, 30], 1500),
    ]
    assert sorted(path.name for path in (out / 'images').iterdir()) == ['a.jpg', 'b.jpg', 'c.jpg']
    assert json.loads((out / 'annotations' / 'instances_val.json').read_text())['annotations'] == []


def test_voc_errors_name_what_is_wrong(voc_dir, tmp_path):
    with pytest.raises(ValueError, match=r"a\.xml: class 'WBC', valid are RBC"):
        voc_to_coco.convert(voc_dir, tmp_path / 'coco', ['RBC'])
    (tmp_path / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match=r'no train\.txt, val\.txt or test\.txt in'):
        voc_to_coco.convert(tmp_path / 'empty', tmp_path / 'coco', ['RBC'])
