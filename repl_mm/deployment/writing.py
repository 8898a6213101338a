"""Writing a model's network: an ONNX file, or an exported program of PyTorch."""

import json
import uuid
import warnings
from pathlib import Path

import torch
from mmengine.model import BaseTTAModel, revert_sync_batchnorm
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .. import __version__
from ..merging import example_images, merge
from ..subclass import Specialized, specialize
from ..surgery import repl_backbones
from .end_to_end import DETECTIONS, find_end_to_end, onnx_translations
from .network import FEATURES, Network, describe, find_network, preprocessing
from .serving import FORMAT, KEY, SUFFIXES, open_file, rest_file

TOLERANCE = 1e-4  # of the largest output


class _AnyBatch(Specialized):
    """Attention in windows whose number of images is no constant of the graph."""

    def window_reverse(self, windows: Tensor, height: int, width: int) -> Tensor:
        """Windows ``(n, size, size, C)`` to ``(N, height, width, C)``."""
        size = self.window_size
        rows, columns = height // size, width // size
        windows = windows.view(-1, rows, columns, size, size, windows.shape[-1])
        return windows.transpose(2, 3).reshape(-1, height, width, windows.shape[-1])


class ExportError(RuntimeError):
    """A network that cannot be exported; no file was written."""


@torch.no_grad()
def export(
    model: nn.Module,
    out: str | Path,
    shape: tuple[int, int],
    dynamic: bool = False,
    classes: list[str] | None = None,
    config: str = '',
    end2end: bool = False,
    scale: tuple[int, int] | None = None,
    pad_pixel: list[float] | None = None,
) -> dict:
    """Write the network of a model into a file that says what it is, and check the file against the model.

    RepL backbones are merged (see :func:`repl_mm.merge`) and windows of attention freed of the batch size, in
    place; the model is in eval mode afterwards.

    Args:
        model (nn.Module): A detector, segmentor or classifier, with or without RepL.
        out (str | Path): ``.onnx`` (for ONNX Runtime) or ``.pt2`` (``torch.export``). Where the network ends before
            the heads their weights are written beside it, with ``.heads.pth`` behind its name.
        shape (tuple[int]): Height and width of the images.
        dynamic (bool): Whether the file takes images of every size; the number of images is always free. Defaults to
            False.
        classes (list[str] | None): Names of the classes, for the record. Defaults to None.
        config (str): Text of the config, for the record. Defaults to ''.
        scale (tuple[int] | None): The config's pipeline resizes pictures to fit into it, for the record. Defaults to
            None.
        pad_pixel (list[float] | None): The pixel that the config's pipeline pads with, for the record. Defaults to
            None.
        end2end (bool): Final predictions in place of raw outputs (see :class:`EndToEnd`); ``.onnx`` only. Defaults to
            False.

    Returns:
        dict: The record in the file's metadata: format, id, model, kind (see :class:`Network`), outputs (how they are
        nested), shape (None: every size), end2end, plans, classes, preprocessing, config, version.

    Raises:
        ExportError: An operator has no counterpart, or the file gives other outputs. No file is left then.
    """
    out = Path(out)
    if end2end and out.suffix != '.onnx':
        raise ExportError(f"'{out}': --end2end writes .onnx files only")
    if out.suffix not in SUFFIXES:
        raise ExportError(f"'{out}': expected a file name that ends with {' or '.join(SUFFIXES)}")
    model = revert_sync_batchnorm(model.module if isinstance(model, BaseTTAModel) else model)
    model.eval()
    if out.suffix == '.onnx':
        check_packages()
    if any(not backbone.repl.merged for _, backbone in repl_backbones(model)):
        merge(model)
    try:
        network = (find_end_to_end if end2end else find_network)(model).eval()
    except TypeError as error:
        raise ExportError(str(error)) from None
    _refuse_foreign_operators(network)
    for module in network.modules():
        if hasattr(module, 'window_reverse'):
            specialize(module, _AnyBatch)
    images = example_images(model.backbone, shape, network.batch or 2)
    expected = network(images)
    record = dict(
        format=FORMAT,
        id=uuid.uuid4().hex,
        model=describe(model),
        kind=network.kind,
        outputs=list(network.names) if end2end else pytree.treespec_dumps(network.tree),
        end2end=end2end,
        shape=None if dynamic else list(shape),
        plans={name: backbone.repl.to_dict() for name, backbone in repl_backbones(model)},
        classes=classes,
        preprocessing=dict(preprocessing(model), scale=scale, pad_pixel=pad_pixel),
        config=config,
        version=__version__,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f'.{out.stem}.part{out.suffix}')  # what stands there stays until the new file is whole
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            (_write_onnx if out.suffix == '.onnx' else _write_pt2)(network, images, part, record, dynamic)
        _check(part, network, images, expected, dynamic)
        if network.kind == FEATURES:
            heads = part.with_suffix('.pth')
            torch.save(dict(state_dict=network.rest(), network=record['id']), heads)
            heads.replace(rest_file(out))
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
        part.with_suffix('.pth').unlink(missing_ok=True)
    return record


def check_packages() -> None:
    """Check that what ONNX files are written and run with is installed.

    Raises:
        ExportError: It is not.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(f"{error}: pip install 'repl_mm[export]'") from None


def _refuse_foreign_operators(network: Network) -> None:
    """Refuse operators of mmcv's extension in what is exported: neither ONNX nor torch.export knows them."""
    parts = [network.model.backbone, getattr(network.model, 'neck', None)]
    if network.kind != FEATURES:
        parts += [getattr(network.model, name, None) for name in ('bbox_head', 'decode_head')]
    for part in filter(None, parts):
        for name, module in part.named_modules():
            if type(module).__module__.startswith('mmcv.ops'):
                raise ExportError(
                    f'{type(module).__name__} ({name!r} in {type(part).__name__}) is an operator of mmcv that neither '
                    'ONNX nor torch.export has: expected a model without it'
                )


def _dynamic_shapes(network: Network, dynamic: bool) -> tuple[dict]:
    dimensions = ([] if network.batch else [0]) + ([2, 3] if dynamic else [])
    return (dict.fromkeys(dimensions, torch.export.Dim.DYNAMIC),)


def _write_onnx(network: Network, images: Tensor, part: Path, record: dict, dynamic: bool) -> None:
    try:
        program = torch.onnx.export(
            network,
            (images,),
            dynamo=True,
            dynamic_shapes=_dynamic_shapes(network, dynamic),
            custom_translation_table=onnx_translations(),
            input_names=['images'],
            output_names=network.names,
            verbose=False,
        )
    except Exception as error:
        raise ExportError(f'PyTorch cannot export the network: {_reason(error)}') from error
    program.model.metadata_props[KEY] = json.dumps(record)
    program.save(str(part), external_data=False)


def _write_pt2(network: Network, images: Tensor, part: Path, record: dict, dynamic: bool) -> None:
    try:
        program = torch.export.export(network, (images,), dynamic_shapes=_dynamic_shapes(network, dynamic))
        torch.export.save(program, str(part), extra_files={f'{KEY}.json': json.dumps(record)})
    except Exception as error:
        raise ExportError(f'PyTorch cannot export the network: {_reason(error)}') from error


def _reason(error: BaseException) -> str:
    """The innermost cause of an exporter's error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {" ".join(lines[:2])[:300]}'


def _check(part: Path, network: Network, images: Tensor, expected: tuple, dynamic: bool) -> None:
    file = open_file(part)
    cases = [images, images[:1]]
    if dynamic:
        height, width = images.shape[-2:]
        divisor = max(32, int(getattr(getattr(network.model, 'data_preprocessor', None), 'pad_size_divisor', 1) or 1))
        for more in (1, 2):  # sizes that models take which halve five times
            shape = (-(-height // divisor) + more) * divisor, (-(-width // divisor) + 2 * more) * divisor
            cases.append(example_images(network.model.backbone, shape))
    for inputs in cases:
        wanted = expected if inputs is images else network(inputs)
        try:
            outputs = file.run(inputs)
        except Exception as error:
            raise ExportError(f'the file does not take images {tuple(inputs.shape)}: {_reason(error)}') from error
        if network.names == DETECTIONS:
            _check_detections(outputs, wanted)
            continue
        for got, tensor in zip(outputs, wanted, strict=True):
            if got.shape != tensor.shape:
                raise ExportError(f'the file gives outputs of shape {tuple(got.shape)}, not {tuple(tensor.shape)}')
            error = (got - tensor).abs().max().item() if tensor.numel() else 0.0
            largest = max(tensor.abs().max().item(), 1e-12) if tensor.numel() else 1.0
            if not error <= TOLERANCE * largest:
                raise ExportError(
                    f'the file gives other outputs than the model: {error / largest:.1e} of the largest, expected '
                    f'{TOLERANCE:.0e} at most'
                )


def _check_detections(outputs: list[Tensor], wanted: tuple[Tensor, ...]) -> None:
    """Most boxes have to have their like: rounding decides the order of equal scores, and who suppresses whom."""
    boxes, scores, labels = outputs
    same = (boxes[:, None] - wanted[0]).abs().amax(2) < 0.1
    same &= ((scores[:, None] - wanted[1]).abs() < TOLERANCE) & (labels[:, None] == wanted[2])
    found, count = int(same.any(1).sum()), max(len(scores), len(wanted[1]))
    if found < 0.9 * count:
        raise ExportError(f'the file finds other boxes than the model: {found} of {count} are alike')
