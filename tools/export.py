"""Write the network of a trained model as an ONNX file, or as a program of torch.export.

    python tools/export.py CONFIG CHECKPOINT OUT.onnx --shape 800 1344 --dynamic

RepL backbones are merged before; stock configs work as well. The file goes from normalized images to the raw outputs
of the heads (to the neck, where a head takes proposals or queries), so that `tools/test.py CONFIG OUT.onnx` gives the
evaluators' own numbers. It is checked against the model before it takes its place.
"""

import argparse
from pathlib import Path

from _common import one_line_errors, read_config, stop
from mmengine.config import DictAction
from mmengine.logging import MMLogger
from mmengine.runner.checkpoint import load_checkpoint

from repl_mm import BorrowError, MergeError, config
from repl_mm.data_checks import check_checkpoint
from repl_mm.deployment import ExportError, export
from repl_mm.reading import read_weights_only


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config with a stock or RepL backbone, or PACKAGE::PATH')
    parser.add_argument('checkpoint', help='weights that were trained with it')
    parser.add_argument('out', type=Path, help='file to write: .onnx or .pt2')
    parser.add_argument(
        '--shape', type=int, nargs=2, metavar=('H', 'W'), help='of the images (default: of the first training batch)'
    )
    parser.add_argument('--dynamic', action='store_true', help='the file takes images of every size')
    parser.add_argument(
        '--end2end', action='store_true', help='final predictions: boxes after NMS, class maps or probabilities'
    )
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, help='override settings')
    return parser.parse_args(argv)


def image_shape(cfg, given):
    """Height and width of the images: as given, or of the first training batch."""
    if given is not None:
        if min(given) < 1:
            stop(f'--shape {given[0]} {given[1]}: expected height and width in pixels')
        return tuple(given)
    try:
        return config.input_size(cfg)[1:]
    except Exception as error:  # whatever a dataset that is not there raises
        stop(f'--shape: the training data is not there to look at ({type(error).__name__}); give height and width')


def class_names(checkpoint, cfg):
    """Names of the classes: of the checkpoint's meta, or of the config."""
    for meta in ((checkpoint.get('meta') or {}).get('dataset_meta'), cfg.get('metainfo')):
        classes = (meta or {}).get('classes')
        if classes is not None:
            return list(classes)
    return None


def main(argv=None):
    args = parse_args(argv)
    read_weights_only()
    MMLogger.get_current_instance().setLevel('WARNING')  # mmengine logs how every single tensor was initialized
    cfg = read_config(args.config)
    cfg.merge_from_dict(args.cfg_options)
    with one_line_errors(ExportError, MergeError, BorrowError):
        if not cfg.get('model'):
            stop('the config has no model')
        check_checkpoint(args.checkpoint)
        shape = image_shape(cfg, args.shape)
        model = config.build(cfg.model, cfg.get('default_scope'))
        checkpoint = load_checkpoint(model, args.checkpoint, map_location='cpu')
        names = class_names(checkpoint, cfg)
        record = export(model, args.out, shape, args.dynamic, names, cfg.pretty_text, args.end2end)
    size = 'every size' if args.dynamic else f'{shape[0]}x{shape[1]}'
    print(
        f'{args.out}: {args.out.stat().st_size / 2**20:.1f} MiB, images of {size} to '
        + (', '.join(record['outputs']) if args.end2end else f'the {record["kind"]}')
    )


if __name__ == '__main__':
    main()
