"""What tools for a trained network share: its config's one backbone, its weights, and what its model makes of them."""

import copy

import torch
from _common import one_line_errors, stop

from repl_mm import config
from repl_mm.classification import classifier_head
from repl_mm.conversion import frozen
from repl_mm.data_checks import check_checkpoint
from repl_mm.heads import backbone_name, whole_head
from repl_mm.healing import healing_config
from repl_mm.stock_weights import load_backbone, read_stock, shorten


def check_answers(head, stock):
    """End in one line unless there is a classifier's head, whose answers can be learned.

    Args:
        head (Callable | None): What classifier_head gave.
        stock (str): The file of the stock model's weights.
    """
    if head is None:
        stop(f"--answers: '{stock}' has no head of the config's classifier: expected weights of all of it")


def check_healing(cfg, stock, images, options):
    """End in one line if the settings of a healing are not valid, before hours of what comes first.

    Args:
        cfg (Config): The config.
        stock (str): The file of the stock model's weights.
        images (Path): Folder of pictures.
        options (dict): Settings of the healing alone.
    """
    cfg = copy.deepcopy(cfg)
    cfg.model = config.with_backbones(cfg.model, lambda node: dict(node, type=config.repl_type(node)))
    try:
        with one_line_errors(ValueError):
            cfg.merge_from_dict(options)
            healing = healing_config(cfg, stock, stock, 1, images)
            healing.merge_from_dict({key: value for key, value in options.items() if key.split('.')[0] != 'model'})
            config.check_types(healing)
            config.build(healing.model, cfg.get('default_scope'))
    except TypeError as error:
        stop(f'--heal-options {" ".join(options)}: {error}')


def one_backbone(cfg, name):
    """Find a config's backbone; end in one line if it has several or none.

    Args:
        cfg (Config): The config.
        name (str): What the user calls it.

    Returns:
        tuple[tuple, dict]: Its path in the config's model, and its settings.
    """
    with one_line_errors():
        backbones = config.find_backbones(cfg.get('model'))
    if len(backbones) > 1:
        names = ', '.join('.'.join(map(str, path)) for path in backbones)
        stop(f"config '{name}': expected one backbone, the model has {names}")
    ((path, settings),) = backbones.items()
    return path, settings


def module_name(cfg, path):
    """Return the dotted name in the model of a backbone; end in one line if it is several modules.

    Args:
        cfg (Config): The config.
        path (tuple): Of the backbone in the config's model.
    """
    with one_line_errors():
        return backbone_name(cfg, path)


def load_stock(cfg, name, settings, weights):
    """Build the stock backbone of a config with trained weights; end in one line if they are not for it.

    Args:
        cfg (Config): The config.
        name (str): Dotted name of the backbone in the model.
        settings (dict): Of the stock or RepL backbone.
        weights (str): File, or a name that mmengine knows.

    Returns:
        tuple[nn.Module, dict]: The backbone, and the tensors of all else by their names in the model.
    """
    try:
        with one_line_errors():
            check_checkpoint(weights)
        state, rest = read_stock(weights, f'{name}.')
        with one_line_errors():
            stock, unused = load_backbone(config.stock_config(settings), cfg.get('default_scope'), state)
    except ValueError as error:
        stop(f"'{weights}' {error}")
    if unused:
        print(f'{len(unused)} of {len(state)} tensors have no place in the stock backbone: {shorten(unused)}')
    return stock, rest


def model_head(cfg, name, rest, backbone, images, answers=False):
    """Return what the model of a config makes of its backbone's outputs (None: they count alone), and its name.

    Args:
        cfg (Config): The config.
        name (str): Dotted name of the backbone in the model.
        rest (dict): Tensors of the model outside of its backbone.
        backbone (nn.Module): The backbone with weights.
        images (Tensor): Normalized images where it is.
        answers (bool): The roots of a classifier's probabilities (Hellinger's distance), not its logits.
    """
    if logits := classifier_head(cfg, rest, images.device):
        roots = (lambda outputs: logits(outputs).softmax(1).sqrt()), "the roots of the classifier's probabilities"
        return roots if answers else (logits, "the classifier's logits")
    with frozen(backbone), torch.no_grad():
        head = whole_head(cfg, name, rest, backbone(images[:1]), images.device)
    return head, "what the model makes of its backbone's outputs" if head else "the backbone's outputs"
