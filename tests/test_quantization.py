"""INT8: nothing of a computing layer stays floating, and what comes out stays near."""

import collections

import cv2
import numpy as np
import pytest
import small
import test_export
import torch
from mmengine.config import Config

from repl_mm import config
from repl_mm.deployment import ExportError, export, open_file, quantize
from repl_mm.deployment.quantization import fitting

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')
CIFAR = Config.fromfile(small.REPO / 'configs' / 'classification' / 'resnet32_repl_cifar10.py')
FLOATING = {'Conv', 'FusedConv', 'MatMul', 'Gemm', 'FusedMatMul', 'FusedGemm'}


def optimized(path, folder):
    """Operators, by kind, of the graph that ONNX Runtime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / 'optimized.onnx')
    onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    return collections.Counter(node.op_type for node in onnx.load(folder / 'optimized.onnx').graph.node)


def mit():
    """A segmentor with a MiT, of which one layer is replaced."""
    backbone = dict(small.TRANSFORMERS['mit'], type='RepLMixVisionTransformer', replace=dict(slots=[(1, 1)]))
    return test_export.segmentor(backbone=backbone, decode_head=dict(test_export.SEG_HEAD, in_channels=32))


@pytest.mark.slow
@pytest.mark.parametrize('which', ['detector', 'half', 'segmentor', 'classifier', 'swin', 'mit'])
def test_all_convolutions_and_products_are_integer_ones(which, tmp_path):
    model, size = mit() if which == 'mit' else test_export.make(which), 32 if which == 'classifier' else 64
    record = export(model, tmp_path / 'net.onnx', (size, size))
    torch.manual_seed(0)
    quantize(tmp_path / 'net.onnx', tmp_path / 'int8.onnx', [torch.randn(2, 3, size, size) for _ in range(4)])
    found = optimized(tmp_path / 'int8.onnx', tmp_path)
    assert not FLOATING & found.keys() and found['QLinearConv'] + found['QLinearMatMul'] > 15
    assert optimized(tmp_path / 'net.onnx', tmp_path).keys() & FLOATING  # they are told apart
    images = torch.randn(2, 3, size, size)
    wanted, file = open_file(tmp_path / 'net.onnx').run(images), open_file(tmp_path / 'int8.onnx')
    for output, exact in zip(file.run(images), wanted, strict=True):
        bound = 0.15 if which in ('swin', 'mit') else 0.1  # with weights of chance; attention rounds more
        assert (output - exact).norm() < bound * exact.norm()
    assert file.record == dict(record, int8=True)


def test_images_are_needed_and_brought_to_the_size(tmp_path):
    export(test_export.classifier(), tmp_path / 'net.onnx', (32, 32))
    with pytest.raises(ExportError, match='INT8 needs images to calibrate on, and there are none'):
        quantize(tmp_path / 'net.onnx', tmp_path / 'int8.onnx', [])
    assert not (tmp_path / 'int8.onnx').exists()
    quantize(tmp_path / 'net.onnx', tmp_path / 'net.onnx', [torch.randn(1, 3, 40, 50)])  # in place
    assert open_file(tmp_path / 'net.onnx').record['int8']
    assert fitting(torch.randn(1, 3, 40, 50), None).shape == (1, 3, 40, 50)


@pytest.mark.slow
def test_the_command_calibrates_on_a_set_without_pictures(tmp_path):
    small.write_cifar(tmp_path / 'data' / 'cifar-10-batches-py')
    torch.save(dict(state_dict=config.build(CIFAR.model, 'repl_mm').state_dict()), tmp_path / 'net.pth')
    words = ['--shape', '32', '32', '--int8', '--images', str(tmp_path / 'data'), '--num', '4']
    test_export.load_tool('export').main(
        [CIFAR.filename, str(tmp_path / 'net.pth'), str(tmp_path / 'net.onnx'), *words]
    )
    assert open_file(tmp_path / 'net.onnx').record['int8']
    assert sorted(path.name for path in tmp_path.iterdir()) == ['data', 'net.onnx', 'net.pth']


@pytest.mark.slow
def test_a_quantization_that_fails_leaves_what_stood_there(tmp_path, monkeypatch):
    module, words = (
        test_export.load_tool('export'),
        ['--shape', '32', '32', '--int8', '--images', str(tmp_path / 'data')],
    )
    small.write_cifar(tmp_path / 'data' / 'cifar-10-batches-py')
    torch.save(dict(state_dict=config.build(CIFAR.model, 'repl_mm').state_dict()), tmp_path / 'net.pth')
    for name in ('net.onnx', 'net.float.onnx'):
        (tmp_path / name).write_text(name)

    def fails(path, out, batches):
        assert open_file(path).record['kind'] == 'classifier'
        raise ExportError('no')

    monkeypatch.setattr(module, 'quantize', fails)
    arguments = [CIFAR.filename, str(tmp_path / 'net.pth'), str(tmp_path / 'net.onnx'), *words]
    with pytest.raises(SystemExit, match='no$'):
        module.main(arguments)
    with pytest.raises(SystemExit, match='--int8: the config has no test_dataloader, whose pipeline'):
        module.main([*arguments, '--cfg-options', 'test_dataloader=None'])
    assert all((tmp_path / name).read_text() == name for name in ('net.onnx', 'net.float.onnx'))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['data', 'net.float.onnx', 'net.onnx', 'net.pth']


@pytest.mark.parametrize('pictures', [2, 0])
def test_pictures_go_through_the_test_pipeline_of_a_classifier(pictures, tmp_path, capsys):
    """Pictures without labels, in the order of their names; a broken one is named."""
    cfg = Config.fromfile(small.REPO / 'configs' / 'classification' / 'resnetv1c34_repl_mini.py')
    model = config.build(cfg.model, cfg.get('default_scope'))
    for i in range(3):
        cv2.imwrite(str(tmp_path / f'{i}.png'), np.full((64, 64, 3), 60 * i, np.uint8))
    if not pictures:
        (tmp_path / '0.png').write_text('text')
        with pytest.raises(SystemExit, match="--images: '.*0.png' is no picture that the config's"):
            test_export.load_tool('export').calibration_images(cfg, model, tmp_path, 3)
        return
    batches = list(test_export.load_tool('export').calibration_images(cfg, model, tmp_path, pictures))
    assert [tuple(batch.shape) for batch in batches] == [(1, 3, 64, 64)] * pictures
    assert batches[0].mean() < batches[1].mean()
