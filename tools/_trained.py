"""What tools for a trained network share: its config's one backbone, its weights, and budgets."""

import argparse
import copy
import os
import re

import torch
from _common import one_line_errors, stop
from mmengine.config import DictAction

from repl_mm import choosing, config
from repl_mm.classification import classifier_head
from repl_mm.conversion import frozen
from repl_mm.data_checks import check_checkpoint
from repl_mm.heads import backbone_name, whole_head
from repl_mm.healing import healing_config
from repl_mm.plan import MODES
from repl_mm.stock_weights import load_backbone, read_stock, shorten

UNITS = dict(GB=10**9, GiB=2**30, MB=10**6, MiB=2**20)


class Words(DictAction):
    """Keeps the words as they were given too, for other tools, in ``cfg_options_words`` for ``--cfg-options``."""

    def __call__(self, parser, namespace, values, option_string=None):
        before = getattr(namespace, f'{self.dest}_words') or ['--cfg-options']
        setattr(namespace, f'{self.dest}_words', [*before, *values])
        super().__call__(parser, namespace, values, option_string)


def share(text):
    """Return a share above 0 and below 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f'{text} is not valid: expected what may be left, above 0 and below 1')
    return value


def size(text):
    """Return a number of bytes."""
    found = re.fullmatch(r'(\d+(?:\.\d+)?) ?([KMG]i?B)', text)
    if not found or found[2] not in UNITS or not float(found[1]):
        raise argparse.ArgumentTypeError(f'{text} is not valid: expected a size such as 8GB ({", ".join(UNITS)})')
    return float(found[1]) * UNITS[found[2]]


def add_budgets(parser):
    """Add the options of a budget, of which one may be given."""
    budget = parser.add_mutually_exclusive_group()
    for name, what in dict(flops='FLOPs', activations='bytes of activations', params='trainable parameters').items():
        text = f"share of the backbone's {what} that may be left" + (' (default: 0.8)' if name == 'flops' else '')
        budget.add_argument(f'--{name}', type=share, metavar='SHARE', help=text)
    budget.add_argument('--memory', type=size, metavar='8GB', help='of the whole model in training, in fp32')
    parser.add_argument(
        '--kinds',
        type=kind_of,
        nargs='+',
        default=[],
        metavar='KIND',
        help='with --fit: what each slot may choose among, each at its price: modes, or MODE:OPERATOR, for instance '
        "patch linear own fuse own:half (default: the config's words for all)",
    )


def kind_of(text):
    """Return what may stand in a slot, a mode or mode:operator, as its name and its words of ``replace``."""
    mode, _, operator = text.partition(':')
    if mode not in MODES:
        raise argparse.ArgumentTypeError(f'{text} is not valid: expected one of {", ".join(MODES)}, or MODE:OPERATOR')
    return text, dict(mode=mode, **(dict(operator=operator) if operator else {}))


def read_budget(args):
    """Set ``measure`` and ``limit`` of parsed arguments: 0.8 of the FLOPs where no budget is given."""
    given = [(name, value) for name in choosing.MEASURES if (value := getattr(args, name)) is not None]
    args.measure, args.limit = given[0] if given else ('flops', 0.8)


def check_folder(folder, what):
    """End in one line if a folder is not there and cannot be made.

    Args:
        folder (Path): The folder.
        what (str): What the user calls it.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        stop(f"{what} '{folder}': '{there}' is no folder that can be written to; expected another place")


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
