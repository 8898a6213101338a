"""Write the network of a trained model as an ONNX file, or as a program of torch.export.

    python tools/export.py CONFIG CHECKPOINT OUT.onnx --shape 800 1344 --dynamic

RepL backbones are merged before; stock configs work as well. The file goes from normalized images to the raw outputs
of the heads (to the neck, where a head takes proposals or queries), so that `tools/test.py CONFIG OUT.onnx` gives the
evaluators' own numbers. It is checked against the model before it takes its place.
"""

import tempfile
from pathlib import Path

from _arguments import Options, Parser
from _common import one_line_errors, read_quietly, set_data_root, stop
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, FUNCTIONS, TRANSFORMS, DefaultScope

from repl_mm import BorrowError, MergeError, config
from repl_mm.data_checks import check_checkpoint, inner_datasets
from repl_mm.deployment import ExportError, export, quantize
from repl_mm.deployment.serving import rest_file
from repl_mm.pictures import pictures_in
from repl_mm.reading import load_trained
from repl_mm.registry import class_of


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('config', help='config with a stock or RepL backbone, or PACKAGE::PATH')
    parser.add_argument('checkpoint', help='weights that were trained with it')
    parser.add_argument('out', type=Path, help='file to write: .onnx or .pt2')
    parser.add_argument(
        '--shape', type=int, nargs=2, metavar=('H', 'W'), help='of the images (default: of the first test batch)'
    )
    parser.add_argument('--dynamic', action='store_true', help='the file takes images of every size')
    parser.add_argument(
        '--end2end', action='store_true', help='final predictions: boxes after NMS, class maps or probabilities'
    )
    parser.add_argument('--int8', action='store_true', help='quantize to INT8; needs --images')
    parser.add_argument(
        '--images',
        type=Path,
        help='folder of unlabelled pictures to calibrate on, or data_root of a set without pictures',
    )
    parser.add_argument('--num', type=int, default=64, help='of them at most (default: 64)')
    parser.add_argument('--cfg-options', nargs='+', action=Options, default={}, help='override settings')
    args = parser.parse_args(argv)
    if args.int8 and (args.images is None or args.out.suffix != '.onnx'):
        parser.error('--int8 needs --images, and a file to write that ends with .onnx')
    if args.num < 1:
        parser.error(f'--num {args.num}: must be at least 1')
    return args


def image_shape(cfg, given):
    """Height and width of the images: as given, or of the first test batch."""
    if given is not None:
        if min(given) < 1:
            stop(f'--shape {given[0]} {given[1]}: expected height and width in pixels')
        return tuple(given)
    try:
        return config.input_size(cfg, 'test')[1:]
    except Exception as error:  # whatever a dataset that is not there raises
        stop(f'--shape: the test data is not there to look at ({type(error).__name__}); give height and width')


def picture_steps(cfg):
    """What the test pipeline does to pictures.

    Returns:
        dict: ``scale``: the size into which it fits them, None if it does not keep their ratio; ``pad_pixel``: the
        pixel that it pads with, None if it does not.
    """
    node = next(inner_datasets(cfg.test_dataloader.dataset)) if cfg.get('test_dataloader') else {}
    pipeline = node.get('pipeline') or ()
    resize, pad = (next((s for s in pipeline if str(s['type']).endswith(kind)), {}) for kind in ('Resize', 'Pad'))
    scale = resize.get('scale') if resize.get('keep_ratio') else None
    pixel = pad.get('pad_val', 0)
    pixel = pixel.get('img', 0) if isinstance(pixel, dict) else pixel
    return dict(
        scale=list(scale) if isinstance(scale, (tuple, list)) else None,
        pad_pixel=(list(pixel) if isinstance(pixel, (tuple, list)) else [pixel] * 3) if pad else None,
    )


def class_names(checkpoint, cfg):
    """Names of the classes: of the checkpoint's meta, or of the config."""
    node = next(inner_datasets(cfg.test_dataloader.dataset)) if cfg.get('test_dataloader') else {}
    kind = class_of(DATASETS, node.get('type'), cfg.get('default_scope')) if node else None
    found = [(checkpoint.get('meta') or {}).get('dataset_meta'), node.get('metainfo'), cfg.get('metainfo')]
    for meta in (*found, getattr(kind, 'METAINFO', None)):
        classes = (meta or {}).get('classes')
        if classes is not None:
            return list(classes)
    return None


def calibration_images(cfg, model, folder, num):
    """Yield normalized images, one at a time, as the config's test pipeline and the model prepare them.

    Args:
        cfg (Config): The config.
        model (nn.Module): Its model.
        folder (Path): Folder of pictures, however deep; without any, the ``data_root`` of the training data.
        num (int): Images at most.
    """
    if not folder.is_dir():
        stop(f"--images '{folder}': no such folder")
    if not cfg.get('test_dataloader'):
        stop('--int8: the config has no test_dataloader, whose pipeline prepares pictures')
    files = pictures_in(folder)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        if files:
            dataset = next(inner_datasets(cfg.test_dataloader.dataset))
            steps = [step for step in dataset['pipeline'] if 'Annotations' not in str(step['type'])]
            pipeline = Compose([TRANSFORMS.build(step) for step in steps])
            files = files[:: max(1, len(files) // num)][:num]
            items = [read(pipeline, i, file) for i, file in enumerate(files)]
        else:
            if cfg.get('default_scope') not in (None, 'mmengine', 'repl_mm'):
                stop(f"--images '{folder}': no pictures in it")
            set_data_root(cfg, str(folder))
            dataset = DATASETS.build(cfg.train_dataloader.dataset)
            items = [dataset[i] for i in range(0, len(dataset), max(1, len(dataset) // num))][:num]
    kind = cfg.test_dataloader.get('collate_fn', dict(type='pseudo_collate'))['type']
    collate = FUNCTIONS.get(kind) if isinstance(kind, str) else kind
    return (model.data_preprocessor(collate([item]), False)['inputs'] for item in items)


def read(pipeline, number, file):
    """What a pipeline makes of a picture; end in one line if it is none."""
    try:
        return pipeline(
            dict(img_path=str(file), img_id=number, seg_fields=[], label=0)
        )  # no label is read, but packed
    except Exception as error:  # whatever a decoder raises
        stop(f"--images: '{file}' is no picture that the config's test pipeline takes ({error})")


def main(argv=None):
    args = parse_args(argv)
    cfg = read_quietly(args)
    with one_line_errors(ExportError, MergeError, BorrowError):
        if not cfg.get('model'):
            stop('the config has no model')
        check_checkpoint(args.checkpoint)
        shape = image_shape(cfg, args.shape)
        model = config.build(cfg.model, cfg.get('default_scope'))
        checkpoint = load_trained(model, args.checkpoint)
        names = class_names(checkpoint, cfg)
        batches = calibration_images(cfg, model, args.images, args.num) if args.int8 else None
        words = dict(classes=names, config=cfg.pretty_text, end2end=args.end2end, **picture_steps(cfg))
        if args.int8:  # what stands there stays until all is done
            args.out.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix='.export-', dir=args.out.parent) as folder:
                floating = Path(folder) / 'floating.onnx'
                record = export(model, floating, shape, args.dynamic, **words)
                quantize(floating, args.out, batches)
                if rest_file(floating).exists():
                    rest_file(floating).replace(rest_file(args.out))
        else:
            record = export(model, args.out, shape, args.dynamic, **words)
    size = 'every size' if args.dynamic else f'{shape[0]}x{shape[1]}'
    print(
        f'{args.out}: {args.out.stat().st_size / 2**20:.1f} MiB, images of {size} to '
        + (', '.join(record['outputs']) if args.end2end else f'the {record["kind"]}')
    )


if __name__ == '__main__':
    main()
