"""The metric."""

import torch
from mmengine.evaluator import BaseMetric

from ..registry import METRICS


@METRICS.register_module()
class Accuracy(BaseMetric):
    """Share of the images, in percent, whose class is among the k highest scores: ``accuracy/top1`` and so on.

    Args:
        topk (Sequence[int]): The values of k. Defaults to (1, 5).
        **kwargs: As of any mmengine metric.

    Raises:
        ValueError: A k is no positive integer, or there are fewer classes than k.
    """

    default_prefix = 'accuracy'

    def __init__(self, topk=(1, 5), **kwargs):
        if not topk or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in topk):
            raise ValueError(f'Accuracy.topk={topk!r} is not valid: expected integers of at least 1, e.g. (1, 5)')
        super().__init__(**kwargs)
        self.topk = tuple(topk)

    def process(self, data_batch, data_samples) -> None:
        """Keep for every image whether it is a hit at each k.

        Args:
            data_batch (dict): Not used.
            data_samples (Sequence[dict]): ``scores`` (num_classes,) and ``label`` of every image.
        """
        scores = torch.stack([sample['scores'] for sample in data_samples])
        labels = torch.stack([torch.as_tensor(sample['label']) for sample in data_samples]).to(scores.device)
        if scores.shape[1] < max(self.topk):
            raise ValueError(f'Accuracy.topk={self.topk} is not valid for {scores.shape[1]} classes')
        # not by comparison with the label's own score: scores that are all alike, or not numbers, would all be hits
        hits = scores.topk(max(self.topk)).indices == labels[:, None]
        self.results += torch.stack([hits[:, :k].any(1) for k in self.topk], 1).tolist()

    def compute_metrics(self, results: list) -> dict[str, float]:
        """The shares of hits, in percent."""
        shares = torch.tensor(results, dtype=torch.float64).mean(0).tolist()
        return {f'top{k}': 100 * share for k, share in zip(self.topk, shares, strict=True)}
