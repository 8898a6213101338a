"""What stands behind a backbone: the rest of a whole mm model."""

import logging
from collections.abc import Callable
from functools import partial

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from .config import ConfigError, build, find_backbones, plain_config, stock_config, type_name, with_backbones
from .conversion import tensors
from .registry import MODELS, class_of

MORE = (TypeError, AttributeError, ValueError, KeyError, IndexError, AssertionError)  # of heads without what they need


class Given(nn.Module):
    """Stands where something has run already, and gives what it gave.

    Args:
        output: What it gives. Defaults to None.
    """

    def __init__(self, output=None):
        super().__init__()
        self.output = output

    def forward(self, *args, **kwargs):
        return self.output


def pooled(outputs) -> Tensor:
    """One vector for each image, (N, C), from a backbone's last output.

    That is its class token where the output is a pair (feature map, class token), else the mean over all positions.
    """
    out = outputs[-1] if isinstance(outputs, tuple | list) else outputs
    if isinstance(out, tuple | list):
        return out[1]
    return out.mean({3: 1, 4: (2, 3)}[out.dim()]) if out.dim() > 2 else out


class Whole(nn.Module):
    """A whole model that takes images: backbone, neck and the maps of its head, mm's ``mode='tensor'``.

    Args:
        model (nn.Module): The model.
        name (str): Dotted name of its backbone.
        backbone (nn.Module): What takes the backbone's place.
    """

    def __init__(self, model: nn.Module, name: str, backbone: nn.Module):
        super().__init__()
        model.set_submodule(name, backbone)
        self.model = model

    def forward(self, x: Tensor):
        """What the model's heads put out.

        Raises:
            RuntimeError: They take more than images and their sizes: proposals, queries of a head.
        """
        sizes = dict.fromkeys(('img_shape', 'pad_shape', 'ori_shape', 'batch_input_shape'), tuple(x.shape[2:]))
        try:
            return self.model(x, [BaseDataElement(metainfo=sizes) for _ in x], mode='tensor')
        except MORE as error:
            raise RuntimeError('its heads take more than images') from error


class WithoutHeads(Whole):
    """A whole model up to what its heads start from: backbone, neck and the maps that proposals are made of."""

    def forward(self, x: Tensor):
        """The features, and the maps of an RPN where there is one that makes them of features alone."""
        features = self.model.extract_feat(x)
        rpn = self.model.rpn_head if getattr(self.model, 'with_rpn', False) else None
        if rpn is None or type(rpn).forward is nn.Module.forward:  # none: Sparse R-CNN's proposals are learned
            return features
        return features, rpn(features)


def countable(cfg: Config, name: str, count: Callable) -> tuple[type[Whole], Callable]:
    """How much of the whole stock model of a config can be counted.

    Args:
        cfg (Config): The config.
        name (str): Dotted name of the backbone.
        count (Callable): Gives the cost of a module; a RuntimeError where it cannot be counted.

    Returns:
        tuple[type[Whole], Callable]: :class:`Whole`, or :class:`WithoutHeads` where the heads take more than images or
        go by their values, and what gives the cost with another backbone in the model.

    Raises:
        RuntimeError: Not even the backbone can be counted.
    """
    model = stock_model(cfg)

    def cost(kind, backbone):
        return count(kind(model, name, backbone))

    try:
        cost(Whole, model.get_submodule(name))
    except RuntimeError:
        cost(WithoutHeads, model.get_submodule(name))
        return WithoutHeads, partial(cost, WithoutHeads)
    return Whole, partial(cost, Whole)


def stock_model(cfg: Config) -> nn.Module:
    """Build the whole stock model of a config, without weights."""
    return build(with_backbones(plain_config(cfg.model), stock_config), cfg.get('default_scope'))


def backbone_name(cfg: Config, path: tuple) -> str:
    """Return the dotted name of a backbone in the model that is built of a config.

    That is where its config stands, but where a module builds it of a config that was handed to it: BiSeNetV1's
    ``backbone.backbone_cfg`` is ``backbone.context_path.backbone``.

    Args:
        cfg (Config): The config.
        path (tuple): Of the backbone in the config's model.

    Raises:
        ConfigError: The model has no module of the backbone's type, or several.
    """
    name = '.'.join(map(str, path))
    if len(path) == 1:
        return name
    stock = stock_config(find_backbones(plain_config(cfg.model))[path])
    kind = class_of(MODELS, stock['type'], cfg.get('default_scope'))
    names = [name for name, module in stock_model(cfg).named_modules() if type(module) is kind]
    if name in names:
        return name
    if len(names) != 1:
        raise ConfigError(
            f'model.{name} is {len(names)} modules of the {type_name(cfg.model)} ({", ".join(names)}): expected one, '
            'as in the config of the model alone'
        )
    return names[0]


def trained_model(cfg: Config, name: str, weights: dict[str, Tensor]) -> tuple[nn.Module, bool]:
    """Build the stock model of a config with weights of all but its backbone.

    Args:
        cfg (Config): The config.
        name (str): Dotted name of the backbone.
        weights (dict): Tensors of the model outside of its backbone.

    Returns:
        tuple[nn.Module, bool]: The model, its backbone without weights, and whether the weights were those of all
        else. A line in the log says so if they are of other classes.
    """
    model = stock_model(cfg)
    own = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith(f'{name}.')}
    other = [key for key, tensor in own.items() if key in weights and weights[key].shape != tensor.shape]
    if other:
        there, here = (tuple(tensors[other[0]].shape) for tensors in (weights, own))
        print_log(
            f"the weights are those of other classes: '{other[0]}' is {there} there, {here} in the model; the outputs "
            'of the backbone count alone',
            logger='current',
            level=logging.WARNING,
        )
    whole = bool(weights) and not other and all(key in weights for key in own)
    if whole:
        model.load_state_dict({key: weights[key] for key in own}, strict=False)
    return model, whole


def whole_head(cfg: Config, name: str, weights: dict[str, Tensor], outputs, device: str = 'cpu') -> Callable | None:
    """What the whole model of a config makes of its backbone's outputs: the maps of a dense head, else the neck's.

    Args:
        cfg (Config): The config.
        name (str): Dotted name of the backbone.
        weights (dict): Tensors of the model outside of its backbone.
        outputs: The backbone's outputs for some images.
        device (str): Where the outputs are. Defaults to 'cpu'.

    Returns:
        Callable | None: It gives tensors, nested in any way; None if the weights are not those of the whole model, or
        it has nothing that takes the outputs alone.
    """
    model, whole = trained_model(cfg, name, weights)
    if not whole:
        return None
    given = Given()
    model.set_submodule(name, given)
    model.to(device).requires_grad_(False)
    model.eval()
    nothing = torch.empty(1, 3, 1, 1, device=device)

    def dense(outputs):
        given.output = outputs
        return model(nothing, mode='tensor')

    def features(outputs):
        given.output = outputs
        return model.extract_feat(nothing)

    for head in (dense, features):
        try:
            with torch.no_grad():
                tensors(head(outputs))
        except (*MORE, RuntimeError):
            continue  # of two stages, or of queries: it asks for more than the outputs
        return head
    return None
