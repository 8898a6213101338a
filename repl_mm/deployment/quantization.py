"""INT8 by ONNX Runtime's static quantization: weights per channel, activations by what calibration images give."""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .serving import KEY, open_file
from .writing import ExportError

WEIGHTED = ('Conv', 'Gemm', 'MatMul')
BETWEEN = ('Add', 'MaxPool', 'Relu')  # in int8 as well, nothing is converted between convolutions


def quantize(path: str | Path, out: str | Path, batches: Iterable[Tensor]) -> None:
    """Quantize an exported file to INT8.

    Convolutions and matrix products become integer ones. What stands between them does too, but not where layer norms
    are (the stream of a transformer needs its precision) nor in end-to-end files (coordinates of boxes do).

    Args:
        path (str | Path): An ``.onnx`` file that :func:`repl_mm.deployment.export` wrote.
        out (str | Path): Where to write the quantized one; it says ``int8`` of itself.
        batches (Iterable[Tensor]): Normalized images ``(N, C, H, W)`` to calibrate on; a file of one size has them
            resized.

    Raises:
        ExportError: There are no images, or the quantized file does not run.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path, out = Path(path), Path(out)
    record = dict(open_file(path).record, int8=True)
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise ExportError('INT8 needs images to calibrate on, and there are none')

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.waiting = first

        def get_next(self):
            images, self.waiting = self.waiting, next(batches, None) if self.waiting is not None else None
            return None if images is None else dict(images=fitting(images, record['shape']).numpy())

    operators = [*WEIGHTED]
    kinds = {node.op_type for node in onnx.load(str(path), load_external_data=False).graph.node}
    if not record['end2end'] and 'LayerNormalization' not in kinds:
        operators += BETWEEN
    with tempfile.TemporaryDirectory() as folder:
        prepared, part = (str(Path(folder) / name) for name in ('prepared.onnx', 'part.onnx'))
        quant_pre_process(str(path), prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            part,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=operators,
            per_channel=True,
            activation_type=QuantType.QUInt8,  # with QInt8, ONNX Runtime leaves half of the convolutions floating
            weight_type=QuantType.QInt8,
            reduce_range=True,  # weights of 7 bits: processors without VNNI add two products in 16 bits
        )
        model = onnx.load(part)
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, {KEY: json.dumps(record)})
        onnx.save(model, part)
        outputs = open_file(part).run(fitting(first[:1], record['shape']))
        if not all(bool(torch.isfinite(output).all()) for output in outputs):
            raise ExportError('the quantized file gives infinite numbers or none')
        waiting = out.with_name(f'.{out.name}.part')  # what stands there stays until the new file is whole
        waiting.write_bytes(Path(part).read_bytes())
        waiting.replace(out)


def fitting(images: Tensor, shape: list[int] | None) -> Tensor:
    """Return images in the size that a file takes; None: as they are."""
    if shape is None or list(images.shape[-2:]) == list(shape):
        return images
    return F.interpolate(images, tuple(shape), mode='bilinear', antialias=True)
