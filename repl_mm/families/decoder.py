"""Decoder-only transformers of Hugging Face's ``transformers``: GPT-2, and Llama and what is built like it.

One stage: their list of layers. ``transformers`` is imported nowhere here: blocks are known by their parts.
"""

import functools

from torch import Tensor, nn

from ..computing_layers import (
    ComputingLayer,
    DecoderComputingLayer,
    FullComputingLayer,
    PatchComputingLayer,
    tensor_of,
)
from ..plan import Plan
from . import encoder
from .contract import misfit_of_blocks, missing
from .encoder import DEFAULTS, START, with_bias  # noqa: F401  (DEFAULTS: of the family)

BACKBONES = ('GPT2Model', 'LlamaModel', 'MistralModel', 'Qwen2Model', 'Qwen3Model')
REFUSED = {}
OPERATORS = ('mixer', 'mlp', 'full')  # the first is the one that was measured
# built as Llama is; and all of them with a head
ALIKE = ('HeliumModel', 'HunYuanDenseV1Model', 'MinistralModel', 'Ministral3Model', 'SeedOssModel', 'SmolLM3Model')
HEADS = {name: name.replace('Model', 'ForCausalLM') for name in (*BACKBONES, *ALIKE)} | {
    'GPT2Model': 'GPT2LMHeadModel'
}
BUILT = (*ALIKE, *HEADS.values())
# the parts of a block by their roles: of GPT-2, whose matrices are (in, out), and of Llama
GPT = dict(norm1='ln_1', value='attn.c_attn', proj='attn.c_proj', norm2='ln_2')
GPT |= dict(fc1='mlp.c_fc', activation='mlp.act', fc2='mlp.c_proj')
LLAMA = dict(norm1='input_layernorm', value='self_attn.v_proj', proj='self_attn.o_proj')
LLAMA |= dict(norm2='post_attention_layernorm', gate='mlp.gate_proj', fc1='mlp.up_proj', activation='mlp.act_fn')
LLAMA |= dict(fc2='mlp.down_proj')


def names(block: nn.Module) -> dict[str, str]:
    """The names of a block's parts by their roles."""
    return GPT if hasattr(block, 'ln_1') else LLAMA


def part(block: nn.Module, role: str) -> nn.Module:
    """A part of a block."""
    return block.get_submodule(names(block)[role])


def attention(block: nn.Module) -> nn.Module:
    """A block's attention."""
    return block.attn if hasattr(block, 'ln_1') else block.self_attn


def network(model: nn.Module) -> nn.Module:
    """The network without the head of a language model."""
    return getattr(model, getattr(model, 'base_model_prefix', ''), model)


def misfit(backbone: nn.Module) -> str | None:
    """Its layers have the parts of GPT-2's or of Llama's, and attend to all tokens so far."""
    inner = network(backbone)
    name = 'h' if hasattr(inner, 'h') else 'layers'
    kinds = set(getattr(getattr(inner, 'config', None), 'layer_types', None) or ())
    if len(kinds) > 1:
        return f'layers of several kinds, layer_types={sorted(kinds)}; expected one kind'
    return misfit_of_blocks({name: getattr(inner, name, None)}, _lacking)


def _lacking(block: nn.Module) -> list[str]:
    if found := missing(block, names(block).values()):
        return found
    if hasattr(block, 'crossattention'):
        return ['self-attention alone (add_cross_attention=False)']
    norm = part(block, 'norm1')
    if not isinstance(norm, nn.LayerNorm) and 'RMSNorm' not in type(norm).__name__:
        return ['LayerNorm or RMSNorm in front of its attention']
    if not hasattr(block, 'ln_1') and matrix(part(block, 'proj')).shape[1] % len(matrix(part(block, 'value'))):
        return ['self_attn.o_proj as wide as the values of all heads']
    return []


def stages(backbone: nn.Module) -> list[nn.ModuleList]:
    """All layers are one stage."""
    inner = network(backbone)
    return [inner.h if hasattr(inner, 'h') else inner.layers]


def frozen(backbone: nn.Module) -> range:
    """The only stage, where nothing of the layers is trained."""
    return range(not any(p.requires_grad for p in stages(backbone)[0].parameters()))


def openers(backbone: nn.Module) -> tuple:
    """None: the embedding is apart from the layers."""
    return ()


def matrix(linear: nn.Module) -> Tensor:
    """The weight ``(out, in)`` of a linear layer; that of GPT-2's ``Conv1D`` lies the other way round."""
    weight = tensor_of(linear, 'weight')
    return weight.t() if type(linear).__name__ == 'Conv1D' else weight


def value(block: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the value of a block's attention, one row for every input channel of its projection."""
    linear = part(block, 'value')
    weight, bias = matrix(linear), tensor_of(linear, 'bias')
    if hasattr(block, 'ln_1'):  # queries, keys and values in one
        return weight.chunk(3)[2], bias.chunk(3)[2]
    width = attention(block).head_dim
    heads = matrix(part(block, 'proj')).shape[1] // len(weight)  # that share a value: grouped queries
    weight = weight.unflatten(0, (-1, width)).repeat_interleave(heads, 0).flatten(0, 1)
    return weight, None if bias is None else bias.unflatten(0, (-1, width)).repeat_interleave(heads, 0).flatten()


def weights(block: nn.Module, role: str, channels: int) -> list[Tensor]:
    """A block's weight for a role, as a matrix; ``channels`` is the width of the replaced block."""
    if role in ('fc1', 'gate'):
        if role not in names(block):
            return []
        linear = part(block, role)
        return [with_bias(matrix(linear), tensor_of(linear, 'bias'), part(block, 'norm2'), channels)]
    if role == 'value':
        return [with_bias(*value(block), part(block, 'norm1'), channels)]
    if role in ('fc2', 'proj'):
        return [matrix(part(block, role))]
    return [] if (found := encoder.parameter(block, role)) is None else [found]


def build(plan: Plan, block: nn.Module, neighbours: tuple[nn.Module, ...]) -> nn.Module:
    """The computing layer that replaces a block."""
    fc1, fc2, proj = (part(block, role) for role in ('fc1', 'fc2', 'proj'))
    hidden, channels = matrix(fc1).shape
    if plan.mode == 'remove':
        return ComputingLayer()
    if plan.mode in ('patch', 'linear'):
        return PatchComputingLayer(channels, plan.mode == 'linear', maps=False)
    neighbours = plan.lenders(neighbours)
    borrowed = functools.partial(weights, channels=channels)
    if plan.operator == 'full':
        return encoder.full(plan, block, neighbours, borrowed, (proj, fc2), kind=FullDecoderLayer)
    # trained from scratch, quicker coefficients cost 4 % of the perplexity (docs/log.md)
    synthesis = functools.partial(encoder.synthesize, plan, neighbours, borrowed, rate=1.0)
    hidden = max(1, round(plan.ratio * hidden))
    syntheses = {role: synthesis(role, (hidden, channels + 1)) for role in ('fc1', 'gate') if role in names(block)}
    # small, so that a converted network starts near the network without the block
    syntheses['fc2'] = synthesis('fc2', (channels, hidden), dim=1, start=START, bias=True)
    if plan.operator == 'mixer':
        width = matrix(proj).shape[1]
        syntheses['value'] = synthesis('value', (width, channels + 1))
        syntheses['proj'] = synthesis('proj', (channels, width), dim=1, start=START)
    norm = part(block, 'norm2')
    layer_norm = isinstance(norm, nn.LayerNorm)
    plain = nn.LayerNorm if layer_norm else nn.RMSNorm
    plain = plain(channels, norm.eps if layer_norm else norm.variance_epsilon, elementwise_affine=False)
    drop = getattr(block.mlp, 'dropout', nn.Identity())
    place = attention(block).layer_idx
    activation = part(block, 'activation')
    return DecoderComputingLayer(syntheses, neighbours, borrowed, plan.detach, activation, drop, plain, place)


class FullDecoderLayer(FullComputingLayer):
    """As its base; ``gradient_checkpointing``, which transformers sets in all layers, is its ``with_cp``."""

    @property
    def gradient_checkpointing(self) -> bool:
        """bool: Whether to compute the block again in backward."""
        return self.with_cp

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        self.with_cp = value

    def compute(self, x: Tensor, *args, **kwargs) -> Tensor:
        # a checkpoint inside the block would run it again without its weights
        self.repl['block'].gradient_checkpointing = False
        if self.with_cp and self.training and kwargs.get('cache') is not None:
            kwargs['cache'] = None  # as transformers does: it would get the tokens twice
        return super().compute(x, *args, **kwargs)
