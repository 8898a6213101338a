"""The converter of Pascal VOC folders."""

import json

import cv2
import numpy as np
import pytest
import voc_to_coco
from pycocotools.coco import COCO

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
