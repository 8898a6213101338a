"""What the demo does with one network, from its dataset to its costs."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mini_dataset
from mmengine.config import Config
from pictures import draw_curves
from steps import evaluate, is_done, run_tool, stop

from repl_mm.comparison import write_config


@dataclass
class Part:
    """What the demo does with one network.

    Args:
        config (Path): Config to train; its data_root is where the mini dataset goes.
        dataset (tuple): Arguments of tools/demo/mini_dataset.py.
        metrics (tuple[str]): Metrics to draw; the first one tells whether the network has learned.
        minimum (float): What the first metric must reach.
        losses (tuple[str]): Losses to draw. Defaults to the loss.
        pretraining (Part | None): Classifier with the same backbone, trained before. Defaults to None.
        draw (Callable | None): Takes the config, the checkpoint and the picture to write. Defaults to None: neither
            pictures nor costs.
        results (tuple[str]): Arguments of tools/test.py that keep the predictions. Defaults to none.
        costs (tuple): Config and image size of a network of usual size to cost beside the small one. Defaults to none.
    """

    config: Path
    dataset: tuple
    metrics: tuple
    minimum: float
    losses: tuple = ('loss',)
    pretraining: 'Part | None' = None
    draw: Callable | None = None
    results: tuple = ()
    costs: tuple = ()

    @property
    def num_steps(self):
        """int: Number of steps, those of the pretraining included."""
        return 4 + (2 if self.draw else 0) + (self.pretraining.num_steps if self.pretraining else 0)

    def run(self, work_dir, header):
        """Run all steps, or what is left of them.

        Args:
            work_dir (Path): Folder of everything but the dataset.
            header (Steps): Announces the steps.

        Returns:
            Path: The checkpoint.

        Raises:
            SystemExit: The network has not learned, or a tool failed.
        """
        name, cfg, start = self.config.stem, Config.fromfile(self.config), 'from scratch'
        if self.pretraining:
            pretrained = self.pretraining.run(work_dir / 'pretraining', header)
            cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(pretrained), prefix='backbone.')
            start = f'from {os.path.relpath(pretrained)}'
        header(f'{name}: mini dataset, textured shapes with occlusion and clutter')
        mini_dataset.main([*map(str, self.dataset), '--out', cfg.data_root])

        header(f'{name}: training {start}; each log line says how long it still takes (eta)')
        config, train_dir, test_dir = work_dir / 'config.py', work_dir / 'train', work_dir / 'test'
        try:
            write_config(cfg, config)
        except ValueError as error:
            stop(error)
        epochs = cfg.train_cfg.get('max_epochs')
        checkpoint = train_dir / (f'epoch_{epochs}.pth' if epochs else f'iter_{cfg.train_cfg.max_iters}.pth')
        if not is_done(checkpoint):
            run_tool('train.py', config, '--work-dir', train_dir, '--resume')

        header(f'{name}: evaluation on the held-out images')
        metrics = evaluate(config, checkpoint, test_dir, *(word.format(test_dir) for word in self.results))
        for key, value in metrics.items():
            if key not in ('time', 'data_time'):
                print(f'{key:<26} {value:.3f}')

        header(f'{name}: curves of losses and metrics')
        if not is_done(work_dir / 'curves.png', checkpoint):
            draw_curves(train_dir, work_dir / 'curves.png', self.losses, self.metrics)

        if self.draw:
            header(f'{name}: pictures of predictions beside the ground truth')
            if not is_done(work_dir / 'predictions.png', checkpoint):
                self.draw(config, checkpoint, work_dir / 'predictions.png')
            header(f'{name}: what RepL costs and saves, exact counts, no data needed')
            self.show_costs(cfg, work_dir)

        metric = self.metrics[0]
        value = metrics.get(metric, 0)  # not there if a detector finds nothing
        if not value >= self.minimum:
            stop(f'{metric} {value:.3f} is below {self.minimum}, {name} has not learned; see {work_dir}')
        print(f'\n{name}: {metric} {value:.3f}; its files are in {work_dir}')
        return checkpoint

    def show_costs(self, cfg, work_dir):
        """Print the cost tables of the network of usual size and of the small one.

        Args:
            cfg (Config): The config that was trained.
            work_dir (Path): Where the tables go.
        """
        size = json.loads((Path(cfg.data_root) / mini_dataset.STAMP).read_text())['size']
        mini = (self.config, '--shape', *size, '--batch', cfg.train_dataloader.batch_size)
        for config, *shape in filter(None, (self.costs, mini)):
            table = work_dir / f'cost_{config.stem}.txt'
            if not is_done(table, config):
                with table.with_suffix('.part').open('w') as part:
                    files = ('--json', table.with_suffix('.json'), '--plot', table.with_suffix('.png'))
                    run_tool('cost.py', config, *shape, *files, stdout=part)
                table.with_suffix('.part').rename(table)
            print(table.read_text())
