"""A file in the place of a model's network: the config's own test loop, decoding and metrics, another engine."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zipfile import is_zipfile

import numpy as np
import torch
from mmengine.model import BaseTTAModel
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..data_checks import DataError
from ..reading import read_checkpoint
from ..subclass import Specialized, specialize
from .network import CLASSIFIER, DENSE, FEATURES, SEGMENTOR, describe, find_network, preprocessing

KEY = 'repl_mm'  # of the record in a file's metadata
FORMAT = 1  # of that record: another number wherever it says something else
SUFFIXES = ('.onnx', '.pt2')


@dataclass
class ServedFile:
    """An exported network that can be called.

    Attributes:
        path (Path): The file.
        record (dict): What the file says of itself, see :func:`repl_mm.deployment.export`.
        run (callable): Images ``(N, C, H, W)``, float32 on the CPU, to the list of raw outputs.
    """

    path: Path
    record: dict
    run: Callable[[Tensor], list[Tensor]]

    def check(self, images: Tensor) -> None:
        """Check that the file takes images of this size.

        Raises:
            DataError: It does not.
        """
        shape, size = self.record.get('shape'), list(images.shape[-2:])
        if shape is not None and size != list(shape):
            raise DataError(
                f"'{self.path}' takes images of {shape[0]}x{shape[1]} only, and the data has one of "
                f'{size[0]}x{size[1]}: export it with --dynamic, or resize and pad in the pipeline'
            )


def open_file(path: str | Path) -> ServedFile:
    """Open an exported file.

    Args:
        path (str | Path): ``.onnx``, run by ONNX Runtime, or ``.pt2``, run by PyTorch.

    Raises:
        DataError: It is none, or was not written by :func:`repl_mm.deployment.export`.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"'{path}': no such file; expected one that tools/export.py wrote")
    return (_open_onnx if path.suffix == '.onnx' else _open_pt2)(path)


def _open_onnx(path: Path) -> ServedFile:
    try:
        import onnxruntime
    except ImportError as error:
        raise DataError(f"{error}: pip install 'repl_mm[export]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    except Exception as error:  # ONNX Runtime's own kinds, which it does not export
        raise DataError(f"'{path}' is no ONNX file that ONNX Runtime takes: {error}") from None
    (name,) = (node.name for node in session.get_inputs())

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(np.ascontiguousarray(o)) for o in session.run(None, {name: images.numpy()})]

    return ServedFile(path, _record(path, session.get_modelmeta().custom_metadata_map.get(KEY)), run)


def _open_pt2(path: Path) -> ServedFile:
    if not is_zipfile(path):  # of which torch would log its own view
        raise DataError(f"'{path}' is no exported program: it is no zip file")
    extra = {f'{KEY}.json': ''}
    try:
        network = torch.export.load(str(path), extra_files=extra).module()
    except Exception as error:
        raise DataError(f"'{path}' is no exported program: {error}") from None

    @torch.no_grad()
    def run(images: Tensor) -> list[Tensor]:
        return list(network(images))

    return ServedFile(path, _record(path, extra[f'{KEY}.json']), run)


def _record(path: Path, text: str | bytes | None) -> dict:
    if not text:
        raise DataError(f"'{path}' says nothing of a model: expected a file that tools/export.py wrote")
    record = json.loads(text)
    if record.get('format') != FORMAT:
        raise DataError(
            f"'{path}' is of format {record.get('format')!r}, expected {FORMAT}: it was written by another version of "
            'repl_mm; export it again'
        )
    return record


class Served(nn.Module):
    """In the place of a backbone: gives what a file gives, nested as the model expects it."""

    def __init__(self, file: ServedFile):
        super().__init__()
        self.file = file
        self.tree = pytree.treespec_loads(file.record['outputs'])

    def forward(self, images: Tensor):
        """Return the raw outputs of the file, on the device of the images."""
        self.file.check(images)
        try:
            outputs = self.file.run(images.detach().float().cpu().contiguous())
        except Exception as error:  # whatever the engine raises
            size = 'x'.join(map(str, images.shape[-2:]))
            raise DataError(f"'{self.file.path}' does not take images of {size}: {error}") from error
        return pytree.tree_unflatten([output.to(images.device) for output in outputs], self.tree)


class _Given(Specialized):
    """A head whose raw outputs come from elsewhere."""

    def forward(self, outputs, *args, **kwargs):
        return outputs


class _Classified(Specialized):
    """A classifier whose logits come from elsewhere."""

    def classify(self, outputs: Tensor) -> Tensor:
        return outputs


def serve(model: nn.Module, file: ServedFile) -> None:
    """Put a file in the place of a model's network, in place.

    Args:
        model (nn.Module): Of the config that the file was exported from, perhaps in a model of test-time augmentation;
            its weights do not matter.
        file (ServedFile): The file.

    Raises:
        DataError: The file is of another kind of model or for images that are normalized otherwise, holds predictions
            already, or a file beside it is missing.
    """
    if isinstance(model, BaseTTAModel):
        model = model.module
    try:
        kind, expected = file.record['kind'], find_network(model).kind
    except TypeError as error:
        raise DataError(f"'{file.path}' cannot be served: {error}") from None
    if file.record.get('end2end'):
        raise DataError(f"'{file.path}' was exported with --end2end: its predictions are final; export it without")
    if kind != expected:
        raise DataError(
            f"'{file.path}' ends with a {kind}, the network of the config's {type(model).__name__} with {expected}: "
            'expected the config that it was exported from'
        )
    have, wanted = file.record['model'], describe(model)
    if have != wanted:
        raise DataError(f"'{file.path}' was exported from a {have}, the config has a {wanted}")
    steps = preprocessing(model)
    for name in ('mean', 'std', 'bgr_to_rgb'):
        if file.record['preprocessing'][name] != steps[name]:
            raise DataError(
                f"'{file.path}' takes images of {name}={file.record['preprocessing'][name]}, the config's "
                f'data_preprocessor has {steps[name]}: expected the config that it was exported from'
            )
    if kind == FEATURES:
        _load_rest(model, file)
    model.backbone = Served(file)
    if getattr(model, 'neck', None) is not None:
        model.neck = nn.Identity()
    heads = {DENSE: 'bbox_head', SEGMENTOR: 'decode_head', CLASSIFIER: 'head'}
    if callable(getattr(model, 'classify', None)):  # our own classifier
        specialize(model, _Classified)
    elif kind in heads:
        specialize(getattr(model, heads[kind]), _Given)


def rest_file(path: Path) -> Path:
    """Where the weights of the heads are that are not in a file."""
    return path.with_name(f'{path.name}.heads.pth')


def _load_rest(model: nn.Module, file: ServedFile) -> None:
    path = rest_file(file.path)
    if not path.is_file():
        raise DataError(f"'{file.path}' ends with the neck; the weights of the heads, '{path}', are missing")
    own = find_network(model).rest()
    saved = read_checkpoint(path)
    state = saved['state_dict']
    if saved.get('network') != file.record['id']:
        raise DataError(f"'{path}' was written with another file than '{file.path}': export it again")
    wrong = [key for key in own if key not in state or state[key].shape != own[key].shape]
    if wrong:
        raise DataError(f"'{path}' does not fit the config: first {wrong[0]!r}")
    model.load_state_dict(state, strict=False)
