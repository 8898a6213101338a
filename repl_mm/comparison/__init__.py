"""Comparison of arms over several seeds: the runs that train them, and what these reached and cost."""

from .runs import folder_name, read_scalars, run_all, run_result, with_options, write_config
from .summary import choose_metric, chord_heights, collect, paired, plot, plot_bubbles, summarize, table

__all__ = [
    'choose_metric',
    'chord_heights',
    'collect',
    'folder_name',
    'paired',
    'plot',
    'plot_bubbles',
    'read_scalars',
    'run_all',
    'run_result',
    'summarize',
    'table',
    'with_options',
    'write_config',
]
