"""The language model."""

import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

from ..config import ConfigError
from ..registry import MODELS


@MODELS.register_module()
class LanguageModel(BaseModel):
    """A decoder-only transformer, and the linear layer that predicts the next word.

    Args:
        backbone (dict): Config of the network, of a class of ``transformers``.
        tie_weights (bool): Whether the linear layer's matrix is that of the embedding. Defaults to True.
        data_preprocessor (dict | None): Config of the data preprocessor. Defaults to None.
        init_cfg (dict | list[dict] | None): As of any mmengine module. Defaults to None.

    Raises:
        ConfigError: The backbone has no embedding of words.
    """

    def __init__(self, backbone, tie_weights=True, data_preprocessor=None, init_cfg=None):
        super().__init__(data_preprocessor, init_cfg)
        # whatever scope another package has left as the current one
        self.backbone = MODELS.build({'_scope_': MODELS.scope, **backbone})
        if not hasattr(self.backbone, 'get_input_embeddings'):
            raise ConfigError(
                f'LanguageModel.backbone is a {type(self.backbone).__name__}: expected one of words, as GPT2Model'
            )
        embedding = self.backbone.get_input_embeddings()
        self.head = None if tie_weights else nn.Linear(embedding.embedding_dim, embedding.num_embeddings, bias=False)

    def forward(self, inputs: Tensor, labels: Tensor | None = None, mode: str = 'tensor'):
        """Predict the next words.

        Args:
            inputs (Tensor): Numbers of words, int64 ``(N, L)``.
            labels (Tensor | None): The word behind each of them ``(N, L)``; -100 where none is to be predicted.
                Defaults to None.
            mode (str): 'tensor', 'loss' or 'predict'. Defaults to 'tensor'.

        Returns:
            Tensor | dict | list[dict]: 'tensor': logits ``(N, L, words)``; 'loss': ``loss``, the mean negative log
            likelihood; 'predict': for every text ``nats``, the sum of the negative log likelihoods, and ``words``,
            the number of words that were predicted.

        Raises:
            ConfigError: The texts are longer than the network has positions.
            ValueError: There is no such mode.
        """
        longest = getattr(self.backbone.config, 'max_position_embeddings', inputs.shape[1])
        if inputs.shape[1] > longest:
            raise ConfigError(
                f'the texts have {inputs.shape[1]} words, model.backbone has {longest} positions: expected '
                f'dataset.length={longest} at most, or more n_positions (max_position_embeddings)'
            )
        hidden = self.backbone(inputs)[0]
        matrix = self.backbone.get_input_embeddings().weight if self.head is None else self.head.weight
        logits = F.linear(hidden, matrix).float()
        if mode == 'tensor':
            return logits
        if mode == 'loss':
            return dict(loss=F.cross_entropy(logits.flatten(0, 1), labels.flatten()))
        if mode == 'predict':
            nats = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction='none').view_as(labels).sum(1)
            words = (labels >= 0).sum(1)
            return [dict(nats=nat, words=count) for nat, count in zip(nats, words, strict=True)]
        raise ValueError(f"mode={mode!r} is not valid: expected 'tensor', 'loss' or 'predict'")
