"""Networks off the training machine: files that give what the model gave, through the config's own test loop."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import mini_dataset
import numpy as np
import pytest
import small
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch.utils import _pytree as pytree

from repl_mm import config
from repl_mm.data_checks import DataError
from repl_mm.deployment import ExportError, export, find_network, open_file, serve
from repl_mm.deployment.end_to_end import find_end_to_end
from repl_mm.deployment.serving import rest_file
from repl_mm.deployment.writing import preprocessing

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')
mmdet = pytest.importorskip('mmdet')
mmcv_nms = pytest.importorskip('mmcv.ops').nms
ROOT = Path(__file__).resolve().parent.parent
R18 = dict(type='RepLResNet', depth=18, base_channels=8)
SEG_HEAD = dict(type='FCNHead', in_channels=64, in_index=3, channels=8, num_convs=1, num_classes=3)
PRE = dict(mean=[123.0, 116.0, 103.0], std=[58.0, 57.0, 56.0], bgr_to_rgb=True)


def built(cfg, scope):
    torch.manual_seed(0)
    model = config.build(ConfigDict(cfg), scope)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
    model.eval()
    return model


def segmentor(**settings):
    cfg = dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64), **PRE),
        backbone=dict(R18),
        decode_head=dict(SEG_HEAD),
        test_cfg=dict(mode='whole'),
    )
    return built({**cfg, **settings}, 'mmseg')


SWIN = dict(small.SWIN, type='RepLSwinTransformer', replace=None)


def detector(head=None, whole=None, **backbone):
    cfg = small.detector_config('data', 'work').model
    cfg.backbone.update(backbone)
    if whole:
        cfg.backbone = ConfigDict(whole)
    if head:
        cfg.bbox_head = ConfigDict(head)
    model = built(cfg, 'mmdet')
    with torch.no_grad():  # scores that differ, so that something is found
        for name, parameter in model.bbox_head.named_parameters():
            if parameter.dim() == 4 and ('cls' in name or 'reg' in name):
                parameter.normal_(0, 0.2)
            elif name.endswith('_cls.bias'):
                parameter.fill_(-1)
    return model


def two_stage():
    cfg = Config.fromfile(ROOT / 'configs' / 'faster-rcnn_r50_repl_coco.py').model
    cfg.backbone = ConfigDict(R18)
    cfg.neck.update(in_channels=[8, 16, 32, 64], out_channels=8)
    cfg.rpn_head.update(in_channels=8, feat_channels=8)
    cfg.roi_head.bbox_roi_extractor.out_channels = 8
    cfg.roi_head.bbox_head.update(in_channels=8, fc_out_channels=16, num_classes=2)
    return built(cfg, 'mmdet')


def classifier(**backbone):
    cfg = dict(
        type='ImageClassifier',
        backbone=dict(type='RepLCifarResNet', depth=20, base_channels=4, **backbone),
        num_classes=10,
        in_channels=16,
        data_preprocessor=dict(type='ClsDataPreprocessor', mean=[125.3, 123.0, 113.9], std=[63.0, 62.1, 66.7]),
    )
    return built(cfg, 'repl_mm')


def predict(model, images):
    """What the model itself makes of normalized images: metas of pictures that fill them."""
    if type(model).__name__ == 'ImageClassifier':
        return [result['scores'] for result in model(images, mode='predict')]
    shape = tuple(images.shape[-2:])
    meta = dict(img_shape=shape, ori_shape=shape, pad_shape=shape, batch_input_shape=shape, scale_factor=(1.0, 1.0))
    if hasattr(model, 'decode_head'):
        return [model.inference(images, [dict(meta, padding_size=[0] * 4)] * len(images))]
    from mmdet.structures import DetDataSample

    samples = [DetDataSample(metainfo=dict(meta, img_id=i)) for i in range(len(images))]
    found = [sample.pred_instances for sample in model.predict(images, samples)]
    return [torch.cat([f.bboxes, f.scores[:, None], f.labels[:, None]], 1) for f in found]


def check_alike(found, wanted):
    """Tensors are close; of boxes almost all, because rounding decides the order of almost equal scores."""
    if found.dim() != 2 or found.shape[1] != 6:
        return torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert abs(len(found) - len(wanted)) <= 2
    near = (found[:, None] - wanted[None]).abs().amax(2) < 1e-2
    assert near.any(1).float().mean() > 0.95


def stock_detector():
    return detector(whole=config.stock_config(small.detector_config('data', 'work').model.backbone))


MODELS = {
    'detector': detector,
    'half': lambda: detector(replace=dict(operator='half')),
    'stock': stock_detector,
    'two stages': two_stage,
    'swin': lambda: detector(whole=SWIN),
    'segmentor': segmentor,
    'slide': lambda: segmentor(test_cfg=dict(mode='slide', crop_size=(48, 48), stride=(32, 32))),
    'classifier': classifier,
}


def make(name):
    return MODELS[name]()


@pytest.mark.slow
@pytest.mark.parametrize(
    ('which', 'name'), [(which, 'net.onnx') for which in MODELS] + [(w, 'net.pt2') for w in ('half', 'two stages')]
)
def test_a_file_stands_in_for_the_network(which, name, tmp_path):
    model, other = make(which), make(which)
    size = 32 if which == 'classifier' else 96
    record = export(model, tmp_path / name, (size, size), dynamic=which != 'classifier', classes=['a', 'b'])
    for images in [torch.randn(3, 3, size, size)] + ([torch.randn(1, 3, 128, 160)] if which != 'classifier' else []):
        with torch.no_grad():
            expected = predict(model, images)
            if images.shape[0] == 3:
                with torch.no_grad():
                    for parameter in other.parameters():  # its own weights do not matter
                        parameter.zero_()
                serve(other, open_file(tmp_path / name))
            found = predict(other, images)
        assert len(found) == len(expected) and any(part.numel() for part in expected)
        for part, wanted in zip(found, expected, strict=True):
            check_alike(part, wanted)
    assert record['kind'] == find_network(model).kind
    assert (tmp_path / f'{name}.heads.pth').exists() == (which == 'two stages')


def test_what_a_file_says_of_itself(tmp_path):
    model = detector()
    written = export(model, tmp_path / 'net.onnx', (64, 96), classes=['cell', 'dot'], config='model = dict()')
    record = open_file(tmp_path / 'net.onnx').record
    assert record == json.loads(json.dumps(written))
    assert (
        record['classes'] == ['cell', 'dot'] and record['config'] == 'model = dict()' and record['shape'] == [64, 96]
    )
    assert record['plans']['backbone']['merged'] and record['plans']['backbone']['operator'] == 'separable'
    mean = model.data_preprocessor.mean.flatten().tolist()
    assert record['preprocessing']['mean'] == mean and record['preprocessing']['bgr_to_rgb'] is True
    tree = pytree.treespec_loads(record['outputs'])
    with torch.no_grad():
        nested = model.bbox_head(model.extract_feat(torch.randn(1, 3, 64, 96)))
    assert tree == pytree.tree_structure(nested)


def test_a_file_serves_test_time_augmentation(tmp_path):
    export(segmentor(), tmp_path / 'net.pt2', (64, 64))
    from mmseg.models import SegTTAModel
    from mmseg.structures import SegDataSample

    shape = dict.fromkeys(('ori_shape', 'img_shape', 'pad_shape', 'batch_input_shape'), (64, 64)) | dict(img_path='')
    picture = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    views = [
        (picture, dict(shape, flip=False)),
        (picture.flip(2), dict(shape, flip=True, flip_direction='horizontal')),
    ]
    batch = dict(
        inputs=[[image] for image, _ in views], data_samples=[[SegDataSample(metainfo=meta)] for _, meta in views]
    )
    models = [SegTTAModel(module=segmentor()) for _ in range(2)]
    for parameter in models[1].parameters():
        parameter.data.zero_()
    serve(models[1], open_file(tmp_path / 'net.pt2'))
    wanted, found = (model.eval().test_step(batch)[0].pred_sem_seg.data for model in models)
    # the parameters of 0 would give class 0 everywhere
    assert wanted.any() and (found == wanted).float().mean() > 0.999


@pytest.mark.parametrize(('model', 'swapped'), [(detector, True), (segmentor, True), (classifier, True)])
def test_the_network_takes_rgb_and_the_file_says_so(model, swapped):
    assert preprocessing(model())['bgr_to_rgb'] is swapped
    other = model()
    other.data_preprocessor = None
    assert preprocessing(other) == dict(mean=None, std=None, bgr_to_rgb=False, pad_size_divisor=1)


def test_a_file_of_one_size_says_so(tmp_path):
    export(segmentor(), tmp_path / 'net.onnx', (64, 64))
    model = segmentor()
    serve(model, open_file(tmp_path / 'net.onnx'))
    with pytest.raises(
        DataError, match='takes images of 64x64 only, and the data has one of 96x64: export it with --dyn'
    ):
        model.encode_decode(torch.randn(1, 3, 96, 64), [dict(img_shape=(96, 64))])


# ---- what cannot be -----------------------------------------------------------------------------------------------


def test_operators_of_mmcv_are_refused_by_name_and_no_file_is_left(tmp_path):
    model = detector(dcn=small.DCN, stage_with_dcn=(False, True, False, False), depth=50)
    (tmp_path / 'net.onnx').write_text('what stands there')
    with pytest.raises(
        ExportError, match=r"^ModulatedDeformConv2dPack \('layer2.*is an operator of mmcv that neither"
    ):
        export(model, tmp_path / 'net.onnx', (64, 64))
    assert (tmp_path / 'net.onnx').read_text() == 'what stands there' and len(list(tmp_path.iterdir())) == 1


def test_a_file_that_gives_something_else_is_not_kept(tmp_path, monkeypatch):
    module = sys.modules['repl_mm.deployment.writing']
    write = module._write_onnx

    def wrong(network, images, part, record, dynamic):
        head = network.model.decode_head.conv_seg
        head.bias.data += 1
        write(network, images, part, record, dynamic)
        head.bias.data -= 1

    monkeypatch.setattr(module, '_write_onnx', wrong)
    with pytest.raises(ExportError, match='gives other outputs than the model'):
        export(segmentor(), tmp_path / 'net.onnx', (64, 64))
    assert not list(tmp_path.iterdir())


def test_files_that_are_none_or_of_another_model_are_refused(tmp_path):
    export(segmentor(), tmp_path / 'net.onnx', (64, 64))
    export(segmentor(), tmp_path / 'final.onnx', (64, 64), end2end=True)
    (tmp_path / 'text.onnx').write_text('text')
    (tmp_path / 'text.pt2').write_text('text')
    torch.onnx.export(
        torch.nn.Conv2d(3, 3, 1), (torch.randn(1, 3, 8, 8),), tmp_path / 'conv.onnx', dynamo=True, verbose=False
    )
    old = onnx.load(tmp_path / 'net.onnx')
    onnx.helper.set_model_props(old, dict(repl_mm=json.dumps(dict(format=0))))
    onnx.save(old, tmp_path / 'old.onnx')
    for name, wanted in (
        ('none.onnx', 'no such file'),
        ('text.onnx', 'is no ONNX file'),
        ('text.pt2', 'is no exported program'),
        ('conv.onnx', 'says nothing of a model'),
        ('old.onnx', 'is of format 0, expected 1: it was written by another version'),
    ):
        with pytest.raises(DataError, match=wanted):
            open_file(tmp_path / name)
    with pytest.raises(
        DataError, match='ends with a decode head, the network of the config.s RetinaNet with dense head'
    ):
        serve(detector(), open_file(tmp_path / 'net.onnx'))
    with pytest.raises(DataError, match='exported with --end2end: its predictions are final'):
        serve(segmentor(), open_file(tmp_path / 'final.onnx'))
    other = segmentor(data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64), **dict(PRE, mean=[0, 0, 0])))
    with pytest.raises(DataError, match=r'takes images of mean=\[123.0.*, the config.s data_preprocessor has \[0, 0'):
        serve(other, open_file(tmp_path / 'net.onnx'))
    export(two_stage(), tmp_path / 'two.onnx', (64, 64))
    rest_file(tmp_path / 'two.onnx').unlink()
    with pytest.raises(DataError, match='the weights of the heads.*two.onnx.heads.pth., are missing'):
        serve(two_stage(), open_file(tmp_path / 'two.onnx'))


@pytest.mark.parametrize(
    ('which', 'name', 'wanted'),
    [
        ('two stages', 'net.onnx', '--end2end: a FasterRCNN takes proposals or queries'),
        ('segmentor', 'net.pt2', '--end2end writes .onnx files only'),
        ('segmentor', 'net.pth', 'expected a file name that ends with .onnx or .pt2'),
    ],
)
def test_exports_that_are_not_possible(which, name, wanted, tmp_path):
    with pytest.raises(ExportError, match=wanted):
        export(make(which), tmp_path / name, (64, 64), end2end=name != 'net.pth')


# ---- end to end ---------------------------------------------------------------------------------------------------

FCOS = dict(
    type='FCOSHead',
    num_classes=3,
    in_channels=16,
    feat_channels=16,
    stacked_convs=1,
    strides=[8, 16, 32],
    regress_ranges=((-1, 32), (32, 64), (64, 1e8)),
    norm_cfg=dict(type='BN'),
)


def run_alone(path, images):
    """As a user runs it: with ONNX Runtime, without anything of ours."""
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return dict(
        zip([o.name for o in session.get_outputs()], session.run(None, {'images': images.numpy()}), strict=True)
    )


YOLOX = dict(type='YOLOXHead', num_classes=3, in_channels=16, feat_channels=16, stacked_convs=1, strides=(8, 16, 32))


@pytest.mark.slow
@pytest.mark.parametrize('head', [None, FCOS, YOLOX], ids=['anchors', 'points with centerness', 'YOLOX'])
def test_a_detector_end_to_end_finds_what_the_model_finds(head, tmp_path):
    model = detector(head)
    model.test_cfg.update(nms_pre=50, max_per_img=20, score_thr=0.3 if head is YOLOX else 0.05, min_bbox_size=0)
    model.test_cfg.nms.iou_threshold = 0.2
    export(model, tmp_path / 'net.onnx', (96, 96), dynamic=True, end2end=True)
    for shape in ((96, 96), (64, 160)):
        images = torch.randn(1, 3, *shape)
        with torch.no_grad():
            (wanted,) = predict(model, images)
        found = run_alone(tmp_path / 'net.onnx', images)
        # YOLOX has no limit: some of 189 or 210 points are not sure, or suppressed
        assert 100 < len(wanted) < 180 if head is YOLOX else len(wanted) == 20
        assert (np.diff(found['scores']) <= 0).all()
        check_alike(torch.from_numpy(np.column_stack([found['boxes'], found['scores'], found['labels']])), wanted)


def test_a_detector_that_finds_nothing_gives_nothing(tmp_path):
    model = detector()
    model.test_cfg.score_thr = 0.9999
    export(model, tmp_path / 'net.onnx', (64, 64), end2end=True)
    assert [len(part) for part in run_alone(tmp_path / 'net.onnx', torch.randn(1, 3, 64, 64)).values()] == [0, 0, 0]


def test_a_segmentor_and_a_classifier_end_to_end(tmp_path):
    model, images = segmentor(), torch.randn(2, 3, 64, 64)
    export(model, tmp_path / 'seg.onnx', (64, 64), end2end=True)
    with torch.no_grad():
        wanted = model.encode_decode(images, [dict(img_shape=(64, 64))] * 2).argmax(1)
    np.testing.assert_array_equal(run_alone(tmp_path / 'seg.onnx', images)['classes'], wanted)
    model, images = classifier(), torch.randn(2, 3, 32, 32)
    export(model, tmp_path / 'cls.onnx', (32, 32), end2end=True)
    with torch.no_grad():
        wanted = model(images).softmax(1)
    np.testing.assert_allclose(run_alone(tmp_path / 'cls.onnx', images)['probabilities'], wanted, atol=1e-5)


@pytest.mark.parametrize('most', [5, 1000])
def test_our_suppression_is_that_of_mmcv(most):
    torch.manual_seed(0)
    corners = torch.rand(200, 2) * 50
    boxes, scores = torch.cat([corners, corners + torch.rand(200, 2) * 30], 1), torch.rand(200)
    _, kept = mmcv_nms(boxes, scores, 0.5)
    assert torch.equal(torch.ops.repl_mm.nms(boxes, scores, 0.5, most), kept[:most])
    assert len(torch.ops.repl_mm.nms(boxes, scores * 0, 0.5, most)) == 0


def test_suppressions_that_onnx_does_not_have_are_refused():
    model = detector()
    model.test_cfg.nms = ConfigDict(type='soft_nms', iou_threshold=0.5)
    with pytest.raises(TypeError, match='--end2end: test_cfg.nms=.*soft_nms.* is not known to ONNX'):
        find_end_to_end(model)


# ---- the commands -------------------------------------------------------------------------------------------------


def load_tool(name):
    """Imports a tool whose name something else has as well."""
    spec = importlib.util.spec_from_file_location(f'tools_{name}', ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(tool, *args, cwd):
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    return subprocess.run(
        [sys.executable, ROOT / 'tools' / tool, *map(str, args)], cwd=cwd, env=env, capture_output=True, text=True
    )


def detection_files(folder, scales=((64, 64), (96, 64), (128, 96))):
    """Config of a trained detector and its checkpoint; pictures of different sizes."""
    mini_dataset.write_coco(folder / 'data' / 'mini', num_train=6, num_val=4, size=(64, 64), seed=0)
    cfg = small.detector_config(folder / 'data' / 'mini', folder / 'work')
    resize = dict(type='RandomChoiceResize', scales=list(scales), keep_ratio=False)
    cfg.test_dataloader.dataset.pipeline = [
        resize if step.type == 'Resize' else step for step in cfg.test_dataloader.dataset.pipeline
    ]
    cfg.test_dataloader.batch_size = 1
    cfg.model.test_cfg.score_thr = 0.0
    with DefaultScope.overwrite_default_scope('mmdet'):
        Runner.from_cfg(cfg).train()
    return cfg, folder / 'work' / 'epoch_2.pth'


def untrained(cfg, folder, scope):
    """A config and a file of weights whose predictions differ from place to place."""
    model = built(cfg.model, scope)
    for head in (model.decode_head.conv_seg,) if scope == 'mmseg' else ():
        torch.nn.init.normal_(head.weight)
        torch.nn.init.constant_(head.bias, -1000)
        head.bias.data[[0, 7, 8, 11, 13]] = 0  # the classes of the pictures
    torch.save(dict(state_dict=model.state_dict()), folder / 'net.pth')
    return cfg, folder / 'net.pth'


def segmentation_files(folder):
    """Config of a segmentor that slides over its pictures, and weights."""
    from test_segmentation import segmentor_config

    mini_dataset.write_cityscapes(folder / 'data', num_train=1, num_val=4, size=(64, 64))
    cfg = segmentor_config(folder / 'data', folder / 'work')
    cfg.model.test_cfg = dict(mode='slide', crop_size=(48, 48), stride=(32, 32))
    cfg.model.decode_head.norm_cfg = cfg.model.backbone.norm_cfg = dict(type='BN')
    cfg.test_evaluator = cfg.test_evaluator[0]
    return untrained(cfg, folder, 'mmseg')


def classification_files(folder):
    """Config of a classifier and weights."""
    small.write_cifar(folder / 'data' / 'cifar-10-batches-py')
    cfg = Config.fromfile(ROOT / 'configs' / 'classification' / 'resnet32_repl_cifar10.py')
    config.set_data_root(cfg, str(folder / 'data'))
    return untrained(cfg, folder, 'repl_mm')


@pytest.mark.slow
@pytest.mark.parametrize(
    ('files', 'shape', 'kind', 'figure'),
    [
        (detection_files, [64, 96, '--dynamic'], 'images of every size to the dense head', 'coco/bbox_mAP'),
        (segmentation_files, [48, 48], 'images of 48x48 to the decode head', 'mIoU'),
        (classification_files, [32, 32], 'images of 32x32 to the classifier', 'accuracy/top1'),
    ],
    ids=['detector, sizes differ', 'segmentor that slides', 'classifier'],
)
@pytest.mark.parametrize('name', ['net.onnx', 'net.pt2'])
def test_the_commands_test_a_file_like_a_checkpoint(files, shape, kind, figure, name, tmp_path):
    """The same figures, to 1e-3, of the config's own evaluation."""
    cfg, checkpoint = files(tmp_path)
    cfg.dump(tmp_path / 'cfg.py')
    done = run('export.py', 'cfg.py', checkpoint, name, '--shape', *shape, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert kind in done.stdout
    done = run('test.py', 'cfg.py', checkpoint, '--against', name, '--work-dir', 'test', cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split() for line in done.stdout.splitlines()]
    (values,) = ([float(word.strip('[],')) for word in row[1:]] for row in rows if row and row[0] == figure)
    first, second, difference, low, high = values
    assert first > 0 and first == pytest.approx(second, abs=1e-3)
    assert (difference, low, high) == pytest.approx((0, 0, 0), abs=1e-3)


@pytest.mark.parametrize('second', ['none.onnx', 'none.pth'])
def test_both_files_are_looked_at_before_one_is_tested(second, tmp_path, monkeypatch):
    module = load_tool('test')
    monkeypatch.setattr(module, 'test', None)
    (tmp_path / 'net.pth').touch()
    cfg = Config.fromfile(ROOT / 'configs' / 'classification' / 'resnet32_repl_cifar10.py')
    with pytest.raises(DataError, match=f"'{second}'.* (no such file|not found)"):
        module.compare(cfg, str(tmp_path / 'net.pth'), second)


@pytest.mark.slow
def test_a_merged_segmentor_is_what_init_model_loads(tmp_path):
    from mmseg.apis import init_model

    cfg, checkpoint = segmentation_files(tmp_path)
    cfg.dump(tmp_path / 'cfg.py')
    done = run('merge.py', 'cfg.py', checkpoint, 'merged.pth', cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    model, images = (
        init_model(str(tmp_path / 'merged.py'), str(tmp_path / 'merged.pth'), 'cpu'),
        torch.randn(1, 3, 64, 64),
    )
    assert model.backbone.repl.merged
    before = config.build(cfg.model, 'mmseg')
    before.load_state_dict(torch.load(checkpoint)['state_dict'])
    with torch.no_grad():
        wanted, found = (net.eval().encode_decode(images, [dict(img_shape=(64, 64))]) for net in (before, model))
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.slow
def test_files_that_are_none_end_in_one_line(tmp_path):
    cfg, checkpoint = classification_files(tmp_path)
    cfg.dump(tmp_path / 'cfg.py')
    done = run('export.py', 'cfg.py', checkpoint, tmp_path / 'net.txt', '--shape', 32, 32, cwd=tmp_path)
    assert done.returncode == 1 and 'ends with .onnx or .pt2' in done.stderr.splitlines()[-1]
    done = run('test.py', 'cfg.py', checkpoint, '--against', 'none.onnx', cwd=tmp_path)
    assert done.returncode == 1 and "'none.onnx': no such file" in done.stderr.splitlines()[-1]
    done = run('test.py', 'cfg.py', checkpoint, '--against', 'none.onnx', '--out', 'a.pkl', cwd=tmp_path)
    assert done.returncode == 2 and '--against: expected without --out' in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_the_commands_of_the_docs_run_as_they_stand_there(tmp_path):
    """All but the first, whose network and pictures are small ones here."""
    page = (ROOT / 'docs' / 'deployment.md').read_text()
    first, *commands = page.split('```bash\n')[1].split('```')[0].splitlines()
    assert first.startswith('make demo')
    cfg, checkpoint = detection_files(tmp_path, scales=[(64, 64)])
    demo = tmp_path / 'work_dirs' / 'demo' / 'detection'
    (demo / 'train').mkdir(parents=True)
    checkpoint.rename(demo / 'train' / 'epoch_9.pth')
    cfg.dump(demo / 'config.py')
    (tmp_path / 'serve.py').write_text(page.split('```python\n# serve.py\n')[1].split('```')[0])
    (tmp_path / 'tools').symlink_to(ROOT / 'tools')
    env = dict(os.environ, PYTHONPATH=str(ROOT), PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}')
    script = '\n'.join(['set -e', *commands])
    done = subprocess.run(['bash', '-c', script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count('bbox_mAP_copypaste') >= 2
    assert {path.name for path in demo.iterdir()} >= {
        'merged.pth',
        'merged.py',
        'net.onnx',
        'int8.onnx',
        'served.onnx',
    }
    assert (tmp_path / 'boxes.png').exists()


@pytest.mark.parametrize('head', [None, YOLOX], ids=['anchors', 'YOLOX with a padded picture'])
def test_the_script_of_the_docs_finds_what_inference_detector_finds(head, tmp_path):
    """The page's script, with neither repl_mm nor mmdet nor torch: on a picture, through a file."""
    from mmdet.apis import inference_detector

    script = (ROOT / 'docs' / 'deployment.md').read_text().split('```python\n# serve.py\n')[1].split('```')[0]
    assert not any(f'import {name}' in script for name in ('torch', 'mmdet', 'mmcv', 'repl_mm', 'mmengine'))
    (tmp_path / 'serve.py').write_text(script)
    model = detector(head)
    model.test_cfg.update(score_thr=0.05, max_per_img=10)
    model.cfg = small.detector_config('data', 'work')
    if head:
        pad = dict(type='Pad', size=(128, 128), pad_val=dict(img=(114.0, 110.0, 90.0)))
        for loader in (model.cfg.test_dataloader, model.cfg.val_dataloader):
            loader.dataset.pipeline.insert(2, pad)
        assert [step['type'] for step in model.cfg.test_dataloader.dataset.pipeline][1:3] == ['Resize', 'Pad']
    steps = load_tool('export').picture_steps(model.cfg)
    assert steps == dict(scale=[128, 128], pad_pixel=[114.0, 110.0, 90.0] if head else None)
    words = dict(end2end=True, classes=['circle', 'square', 'triangle', 'star'], **steps)
    export(model, tmp_path / 'net.onnx', (128, 128), dynamic=not head, **words)
    picture = cv2.resize(np.random.default_rng(0).integers(0, 256, (20, 15, 3), np.uint8), (160, 210))
    cv2.imwrite(str(tmp_path / 'picture.png'), picture)
    env = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    done = subprocess.run(
        [sys.executable, 'serve.py', 'net.onnx', 'picture.png'], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = [line.split() for line in done.stdout.splitlines()]
    with DefaultScope.overwrite_default_scope('mmdet'):
        wanted = inference_detector(model, str(tmp_path / 'picture.png')).pred_instances
    wanted = wanted[wanted.scores >= 0.3]
    assert len(found) == len(wanted) > 3
    rows = torch.tensor([[float(number) for number in line[1:]] for line in found])
    inside = wanted.bboxes.clamp(torch.zeros(4), torch.tensor([160.0, 210, 160, 210]))  # YOLOX's own may be outside
    near = (rows[:, None, 1:] - inside).abs().amax(2) < 0.2
    near &= (rows[:, :1] - wanted.scores).abs() < 3e-3
    assert near.any(1).float().mean() > 0.8
    assert cv2.imread(str(tmp_path / 'boxes.png')).shape == (210, 160, 3)
