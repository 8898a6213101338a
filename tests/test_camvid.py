"""CamVid's published form becomes folders that mmseg reads."""

import re

import camvid_to_mmseg
import cv2
import numpy as np
import pytest

LABEL = np.array([[0, 3, 11], [10, 11, 8]], np.uint8)


@pytest.fixture
def published(tmp_path):
    """Two training pictures, one of each other split."""
    for split, count in (('train', 2), ('val', 1), ('test', 1)):
        for folder in (split, f'{split}annot'):
            (tmp_path / 'CamVid' / folder).mkdir(parents=True)
        for i in range(count):
            cv2.imwrite(str(tmp_path / 'CamVid' / split / f'{i}.png'), np.full((2, 3, 3), 50 * i, np.uint8))
            cv2.imwrite(str(tmp_path / 'CamVid' / f'{split}annot' / f'{i}.png'), LABEL)
    return tmp_path / 'CamVid'


def test_void_becomes_ignored_and_nothing_else_changes(published, tmp_path):
    out = tmp_path / 'camvid'
    assert camvid_to_mmseg.convert(published, out) == dict(train=2, val=1, test=1)
    label = cv2.imread(str(out / 'ann_dir' / 'train' / '1.png'), cv2.IMREAD_UNCHANGED)
    assert label.tolist() == [[0, 3, 255], [10, 255, 8]]
    image = cv2.imread(str(out / 'img_dir' / 'train' / '1.jpg'))
    assert image.shape == (2, 3, 3) and abs(image.astype(int) - 50).max() <= 2


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (lambda root: (root / 'valannot' / '0.png').unlink(), r"valannot/0.png' is missing"),
        (lambda root: (root / 'test' / '0.png').unlink(), r"test' holds no .png"),
        (lambda root: cv2.imwrite(str(root / 'trainannot' / '0.png'), LABEL + 20), 'expected one channel with values'),
    ],
)
def test_a_wrong_folder_ends_in_one_line(published, tmp_path, capsys, spoil, message):
    spoil(published)
    with pytest.raises(SystemExit):
        camvid_to_mmseg.main([str(published), str(tmp_path / 'camvid')])
    assert re.search(message, capsys.readouterr().err)
