"""The metric."""

import math

from mmengine.evaluator import BaseMetric

from ..registry import METRICS


@METRICS.register_module()
class Perplexity(BaseMetric):
    """``lm/perplexity``, ``exp`` of the mean negative log likelihood per word, which is ``lm/nats``; over all windows.

    The windows, and with them what a word is predicted from, are the dataset's.
    """

    default_prefix = 'lm'

    def process(self, data_batch, data_samples) -> None:
        """Keep for every window the sum of the negative log likelihoods and the number of words.

        Args:
            data_batch (dict): Not used.
            data_samples (Sequence[dict]): ``nats`` and ``words`` of every window.
        """
        self.results += [(float(sample['nats']), int(sample['words'])) for sample in data_samples]

    def compute_metrics(self, results: list) -> dict[str, float]:
        """The perplexity; infinite where the likelihood is no number of this world."""
        nats = math.fsum(nats for nats, _ in results) / sum(words for _, words in results)
        return dict(perplexity=math.exp(nats) if nats < 700 else math.inf, nats=nats)
