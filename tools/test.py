"""Test a checkpoint of a config's model, or a file that tools/export.py wrote from it, with or without RepL.

With --against a second one is tested, and the differences are printed with their intervals over the images.
"""

from _arguments import make_parser
from _common import build_runner, check_files, end_process_group, load_config, one_line_errors, stop
from mmengine.config import ConfigDict
from mmengine.registry import METRICS

from repl_mm import config
from repl_mm.comparison.interval import KeepResults, difference_table, differences
from repl_mm.data_checks import check_checkpoint, evaluators, inner_datasets
from repl_mm.deployment import open_file, serve
from repl_mm.deployment.serving import SUFFIXES
from repl_mm.hook import unwrapped


def parse_args():
    parser = make_parser(__doc__)
    parser.add_argument('checkpoint', help='checkpoint, or an exported .onnx or .pt2 file')
    parser.add_argument('--against', metavar='FILE', help='another checkpoint or exported file of the same config')
    parser.add_argument(
        '--out', help='dump the predictions: a .pkl file, for mmseg configs a folder of label maps instead'
    )
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--show-dir', help='folder of painted images, for mmdet below work_dir/TIMESTAMP')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds that --show shows an image (default: 2)')
    parser.add_argument('--tta', action='store_true', help="test-time augmentation, by the config's tta_model")
    args = parser.parse_args()
    if args.against and (args.out or args.show or args.show_dir or args.launcher != 'none'):
        parser.error('--against: expected without --out, --show, --show-dir and --launcher')
    return args


def enable_visualization(cfg, args):
    """Switch the config's visualization hook on; each package calls its settings otherwise."""
    hook = (cfg.get('default_hooks') or {}).get('visualization')
    if not hook:
        stop('--show and --show-dir: the config has no default_hooks.visualization to switch on')
    hook.update(show=args.show, wait_time=args.wait_time)
    scope = cfg.get('default_scope')
    if scope == 'mmpretrain':
        hook.update(enable=True, out_dir=args.show_dir)
        return
    hook.draw = True
    if scope == 'mmseg':
        hook.setdefault('interval', 1)  # mmseg's default paints every 50th image
        # the hook asks for the training step, for which mmengine would read the training data
        cfg.update(train_dataloader=None, train_cfg=None, optim_wrapper=None, param_scheduler=None)
    if args.show_dir and scope == 'mmseg':
        cfg.visualizer.save_dir = args.show_dir
    elif args.show_dir:
        hook.test_out_dir = args.show_dir


def enable_tta(cfg):
    """Put the config's model into its model of test-time augmentation, and the datasets onto its pipeline."""
    if not cfg.get('tta_model') or not cfg.get('tta_pipeline'):
        stop('--tta: the config has no tta_model with a tta_pipeline')
    cfg.model = ConfigDict(cfg.tta_model, module=cfg.model)
    for dataset in inner_datasets(cfg.test_dataloader.dataset):
        dataset.pipeline = cfg.tta_pipeline


def keep_label_maps(cfg, folder):
    """Make one metric of an mmseg config keep the predicted label maps: the one that writes Cityscapes' label ids, or
    the first."""
    metrics = evaluators(cfg, 'test')
    official = [metric for metric in metrics if 'CityscapesMetric' in str(metric.type)]
    (official or metrics)[0].update(output_dir=folder, keep_results=True)


def test(cfg, file, out=None, keep=None):
    """Test a file with the config's own loop; return the runner. A hook may be there to keep the results."""
    exported = open_file(file) if file.endswith(SUFFIXES) else None
    cfg.load_from = None if exported else file
    check_files(cfg, 'test')
    runner = build_runner(cfg)
    if exported:
        serve(unwrapped(runner.model), exported)
    if out and cfg.get('default_scope') != 'mmseg':
        kind = 'mmdet.DumpDetResults' if cfg.get('default_scope') == 'mmdet' else 'DumpResults'
        runner.test_evaluator.metrics.append(METRICS.build(dict(type=kind, out_file_path=out)))
    if keep:
        runner.register_hook(keep)
    runner.test()
    return runner


def compare(cfg, *files):
    """Test two files and print by how much the second differs."""
    for metric in evaluators(cfg, 'test'):
        name = config.type_name(metric)
        if 'cityscapes' in name.lower():
            stop(f"--against: {name} keeps its results in files: expected another metric, as mmseg's IoUMetric")
    for file in files:  # the second one as well, before the first is tested
        (open_file if file.endswith(SUFFIXES) else check_checkpoint)(file)
    keeps = [KeepResults(), KeepResults()]
    runners = [test(cfg, file, keep=keep) for file, keep in zip(files, keeps, strict=True)]
    for metric, *results in zip(runners[0].test_evaluator.metrics, *(keep.results for keep in keeps), strict=True):
        print(difference_table(differences(metric, *results)))


def main():
    args = parse_args()
    cfg = load_config(args)
    scope = cfg.get('default_scope')
    if args.show or args.show_dir:
        enable_visualization(cfg, args)
    if args.out and scope == 'mmseg':
        keep_label_maps(cfg, args.out)
    elif args.out and not args.out.endswith(('.pkl', '.pickle')):
        stop(f"--out '{args.out}': expected a file name that ends with .pkl or .pickle")
    if args.tta:
        enable_tta(cfg)
    with one_line_errors():
        if args.against:
            compare(cfg, args.checkpoint, args.against)
        else:
            test(cfg, args.checkpoint, args.out)
    end_process_group()


if __name__ == '__main__':
    main()
