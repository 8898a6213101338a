"""The mini dataset: determinism, exact boxes and label maps, folders that official tools and mm packages read."""

from pathlib import Path

import cv2
import mini_dataset
import numpy as np
import pytest
from mini_dataset import CLASSES, scene, scenes
from mmengine.registry import DefaultScope
from pycocotools.coco import COCO

from repl_mm.classification import ImageNet

SIZE = (64, 96)


def test_a_scene_depends_on_seed_split_and_number_only():
    few, more = (list(scenes('train', num, SIZE, seed=1)) for num in (2, 3))
    for one, two in zip(few[1], more[1], strict=True):
        np.testing.assert_array_equal(one, two)
    others = [next(scenes(split, 1, SIZE, seed)) for split, seed in (('val', 1), ('train', 2))]
    assert not any(np.array_equal(few[0][0], other[0]) for other in others)


@pytest.mark.parametrize('seed', range(10))
def test_every_label_has_pixels_and_every_pixel_a_label(seed):
    rng = np.random.default_rng(seed)
    for labels in (None, range(len(CLASSES)), [0] * 7):
        image, instances, drawn = scene(rng, SIZE, labels)
        assert image.shape == (*SIZE, 3) and image.dtype == np.uint8
        assert 1 <= len(drawn) <= 7 and set(np.unique(instances)) - {0} == set(range(1, len(drawn) + 1))
        assert set(drawn) <= set(range(len(CLASSES)))
        # what is left of a circle is at least three quarters of the smallest one
        areas = np.bincount(instances.ravel())[1:]
        assert (areas[drawn == 0] > 0.75 * np.pi * (0.95 * 0.1 * min(SIZE)) ** 2 - 8).all()
        # the ground is pale and objects are not
        darkest = image.min(axis=2)
        assert np.median(darkest[instances == 0]) > 150 > np.median(darkest[instances > 0])


# share of the smallest circle around it that a shape fills, and of the smallest convex shape
SHARES = dict(circle=(1, 1), square=(2 / np.pi, 1), triangle=(0.75 * np.sqrt(3) / np.pi, 1), star=(0.4, 0.52))


@pytest.mark.parametrize('name', CLASSES)
def test_masks_have_the_area_that_geometry_says(name):
    _, instances, labels = scene(np.random.default_rng(0), (400, 400), [CLASSES.index(name)])
    (contour,), _ = cv2.findContours(instances, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    circle = np.pi * cv2.minEnclosingCircle(contour)[1] ** 2
    shares = instances.sum() / circle, instances.sum() / cv2.contourArea(cv2.convexHull(contour))
    assert [CLASSES[k] for k in labels] == [name] and shares == pytest.approx(SHARES[name], abs=0.04)


def test_coco_boxes_are_those_of_the_visible_pixels_and_mmdet_reads_them(tmp_path):
    mmdet_datasets = pytest.importorskip('mmdet.datasets')
    assert mini_dataset.write_coco(tmp_path / 'mini', num_train=3, num_val=4, size=SIZE, seed=3)
    for split, num in (('train', 3), ('val', 4)):
        annotations = f'annotations/instances_{split}.json'
        with DefaultScope.overwrite_default_scope('mmdet'):
            dataset = mmdet_datasets.CocoDataset(
                data_root=str(tmp_path / 'mini'),
                ann_file=annotations,
                data_prefix=dict(img=f'{split}/'),
                metainfo=dict(classes=CLASSES),
                pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)],
            )
        coco = COCO(tmp_path / 'mini' / annotations)
        assert len(dataset) == num
        for i, (image, instances, labels) in enumerate(scenes(split, num, SIZE, seed=3)):
            item = dataset[i]
            assert np.abs(item['img'].astype(int) - image).mean() < 6  # JPEG
            np.testing.assert_array_equal(item['gt_bboxes_labels'], labels)
            assert not item['gt_ignore_flags'].any()
            places = [np.argwhere(instances == value + 1)[:, ::-1] for value in range(len(labels))]
            boxes = [[*place.min(axis=0), *place.max(axis=0) + 1] for place in places]
            np.testing.assert_array_equal(item['gt_bboxes'].numpy(), boxes)
            assert [a['area'] for a in coco.imgToAnns[i + 1]] == [len(place) for place in places]


def test_cityscapes_maps_agree_with_the_scenes_and_the_official_tools_read_them(tmp_path):
    mmseg_datasets = pytest.importorskip('mmseg.datasets')
    instances2dict = pytest.importorskip('cityscapesscripts.evaluation.instances2dict').instances2dict
    assert mini_dataset.write_cityscapes(tmp_path / 'mini', num_train=1, num_val=3, size=SIZE, seed=3)
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = mmseg_datasets.CityscapesDataset(
            data_root=str(tmp_path / 'mini'),
            data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'),
            pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')],
        )
    assert len(dataset) == 3
    # road, then vegetation, car, traffic sign and person for the shapes: as published with the dataset
    ids, train_ids = np.array([7, 21, 26, 20, 24]), np.array([0, 8, 13, 7, 11])
    inner = np.pad(np.ones((SIZE[0] - 4, SIZE[1] - 4), bool), 2)
    for item, (image, instances, labels) in zip(dataset, scenes('val', 3, SIZE, seed=3), strict=True):
        kinds = np.array([0, *labels + 1])[instances]
        np.testing.assert_array_equal(item['img'], image)
        np.testing.assert_array_equal(item['gt_seg_map'], np.where(inner, train_ids[kinds], 255))
        written = item['seg_map_path'].replace('labelTrainIds', '{}').format
        read = cv2.imread(written('labelIds'), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(read, np.where(inner, ids[kinds], 3))  # 3: out of roi
        ((_, found),) = instances2dict([written('instanceIds')]).items()
        for name, label in (('car', 1), ('person', 3)):
            sizes = [(inner & (instances == i + 1)).sum() for i, k in enumerate(labels) if k == label]
            assert sorted(i['pixelCount'] for i in found[name]) == sorted(sizes)


def test_imagenet_pictures_lie_in_the_folder_of_their_class(tmp_path):
    assert mini_dataset.write('imagenet', tmp_path / 'mini', num_train=9, num_val=4, size=SIZE, seed=3)
    with DefaultScope.overwrite_default_scope('repl_mm'):
        dataset = ImageNet(tmp_path / 'mini', 'train', pipeline=[dict(type='LoadImage')], num_classes=4)
    assert dataset.metainfo['classes'] == tuple(sorted(CLASSES))
    assert np.bincount(dataset.labels).tolist() == [3, 2, 2, 2]  # the classes take turns
    for i, (image, _, (label,)) in enumerate(scenes('train', 9, SIZE, 3, single=True)):
        written = cv2.imread(str(tmp_path / 'mini' / 'train' / CLASSES[label] / f'{i:06d}.jpg'))
        assert np.abs(written.astype(int) - image).mean() < 6


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.mark.parametrize('layout', mini_dataset.LAYOUTS)
def test_same_settings_are_skipped_others_replace_whole_or_not_at_all(layout, tmp_path, monkeypatch):
    out, settings = tmp_path / 'mini', dict(num_train=4, num_val=4, size=(40, 40))
    assert mini_dataset.write(layout, out, **settings) and not mini_dataset.write(layout, out, **settings)
    before = files(out)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(mini_dataset, 'scenes', lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
        mini_dataset.write(layout, out, **settings, seed=1)
    assert files(out) == before
    assert mini_dataset.write(layout, out, **settings, seed=1) and files(out) != before
    assert mini_dataset.write(layout, out, **settings) and files(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ['mini']


def test_wrong_settings_end_in_one_line_and_touch_nothing(tmp_path, capsys):
    (tmp_path / 'photos').mkdir()
    Path(tmp_path / 'photos' / 'cat.jpg').touch()
    for arguments, words in [
        (['photos'], 'left as it is'),
        (['x', '--num-val', '0'], 'num_val=0'),
        (['x', '--size', '8', '64'], 'size=(8, 64)'),
        (['x', '--layout', 'voc'], "'voc' (choose from"),
    ]:
        with pytest.raises(SystemExit):
            mini_dataset.main(['--out', str(tmp_path / arguments[0]), *arguments[1:]])
        assert words in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in tmp_path.rglob('*')] == ['photos', 'cat.jpg']
