"""Computing layers made of plain modules with weights of their own: what remains after merging."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import ComputingLayer


class MergedLayer(ComputingLayer):
    """A computing layer that borrows nothing and synthesizes nothing; without modules it is the identity.

    Its parameters have ``.repl.`` in their names, as those of all computing layers. Tracers look into it.

    Args:
        copies (bool): Whether the identity gives another tensor than ``x``. Defaults to False.
    """

    merged = True

    def __init__(self, copies: bool = False):
        super().__init__(copies=copies)

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        """As the layer that was merged; a signature of its own where a tracer has to know it."""
        return x.clone() if self.copies else x


class MergedResidual(MergedLayer):
    """``last(x + drop(up(repl(x))))``, ``up`` to the size of ``x`` where the branch has stride 2.

    Args:
        branch (dict[str, nn.Module]): Convolutions, norms and activations of the branch, in order, by name.
        drop (nn.Module): Stochastic depth.
        last (nn.Module): Behind the addition.
        half (bool): Whether the branch has stride 2.

    Shape: ``(N, C, H, W)`` to the same.
    """

    def __init__(self, branch: dict[str, nn.Module], drop: nn.Module, last: nn.Module, half: bool):
        super().__init__()
        self.repl = nn.Sequential(OrderedDict(branch))
        self.drop = drop
        self.last = last
        self.half = half

    def forward(self, x: Tensor) -> Tensor:
        out = self.repl(x)
        if self.half:
            out = F.interpolate(out, x.shape[-2:])
        return self.last(x + self.drop(out))


class MergedTransformer(MergedLayer):
    """``x + drop(branch(norm(x)))``: a narrow MLP, and the projected value of the mean token where there is one.

    Args:
        modules (dict[str, nn.Module]): ``norm``, ``fc1``, perhaps ``spatial`` (depthwise), ``activation``, ``fc2``,
            perhaps ``value`` and ``proj``.
        drop (nn.Module): Dropout and stochastic depth.

    Shape: ``(N, L, C)`` to the same; ``(H, W)`` with ``H * W == L``, as one argument or as two, is needed for
    ``spatial``. Without ``spatial`` also ``(N, H, W, C)``.
    """

    def __init__(self, modules: dict[str, nn.Module], drop: nn.Module):
        super().__init__()
        self.repl = nn.ModuleDict(modules)
        self.drop = drop

    def forward(self, x: Tensor, hw_shape=None, width: int | None = None, **attention) -> Tensor:
        y = self.repl['norm'](x)
        hidden = self.repl['fc1'](y)
        if 'spatial' in self.repl:
            shape = hw_shape if width is None else (hw_shape, width)
            hidden = self.repl['spatial'](hidden.transpose(1, 2).unflatten(2, shape)).flatten(2).transpose(1, 2)
        out = self.repl['fc2'](self.repl['activation'](hidden))
        if 'value' in self.repl:
            out = add_to_tokens(out, self.repl['proj'](self.repl['value'](mean_token(y))))
        return x + self.drop(out)


class MergedDecoder(MergedLayer):
    """``x + drop(branch(norm(x)))`` where no token sees a later one: :class:`DecoderComputingLayer` merged.

    Args:
        modules (dict[str, nn.Module]): ``norm``, ``fc1``, perhaps ``gate``, ``activation``, ``fc2``, perhaps ``value``
            and ``proj``.
        drop (nn.Module): Dropout.
        place (int): The layer's number, of its place in a cache.

    Shape: ``(N, L, C)`` to the same.
    """

    def __init__(self, modules: dict[str, nn.Module], drop: nn.Module, place: int):
        super().__init__()
        self.repl = nn.ModuleDict(modules)
        self.drop = drop
        self.place = place

    def forward(self, x: Tensor, cache=None, attention_mask: Tensor | None = None, *args, **kwargs) -> Tensor:
        y = self.repl['norm'](x)
        hidden = self.repl['fc1'](y)
        if 'gate' in self.repl:
            hidden = self.repl['activation'](self.repl['gate'](y)) * hidden
        else:
            hidden = self.repl['activation'](hidden)
        out = self.repl['fc2'](hidden)
        if 'value' in self.repl:
            tokens = remember(x, cache, attention_mask, self.place)
            seen = mean_so_far(y if tokens is None else self.repl['norm'](tokens), x.shape[1], attention_mask)
            out = out + self.repl['proj'](self.repl['value'](seen))
        return x + self.drop(out)


class MergedMapMLP(MergedLayer):
    """``x + drop(fc2(activation(fc1(norm(spatial(x))))))``, the linear layers on channels last.

    Args:
        modules (dict[str, nn.Module]): Perhaps ``spatial`` (depthwise), ``norm``, ``fc1``, ``activation``, ``fc2``.
        drop (nn.Module): Stochastic depth.

    Shape: ``(N, C, H, W)`` to the same.
    """

    def __init__(self, modules: dict[str, nn.Module], drop: nn.Module):
        super().__init__()
        self.repl = nn.ModuleDict(modules)
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        y = self.repl['spatial'](x) if 'spatial' in self.repl else x
        y = self.repl['norm'](y.permute(0, 2, 3, 1))
        y = self.repl['fc2'](self.repl['activation'](self.repl['fc1'](y)))
        return x + self.drop(y.permute(0, 3, 1, 2))


def mean_token(x: Tensor) -> Tensor:
    """Return the mean ``(N, 1, C)`` of tokens ``(N, ..., C)``; fx, which knows no numbers of dimensions, traces it."""
    return x.flatten(1, -2).mean(1, keepdim=True)


def mean_so_far(tokens: Tensor, length: int, mask: Tensor | None = None) -> Tensor:
    """What attention with equal weights gives: the mean of the tokens that each of the last tokens may see.

    Without a mask these are all tokens up to itself, and one cumulative sum gives all means.

    Args:
        tokens (Tensor): ``(N, T, C)``.
        length (int): Number L of the last tokens.
        mask (Tensor | None): ``(N, 1, L, T)``, True or 0 where a token sees another one. Defaults to None.

    Returns:
        Tensor: ``(N, L, C)``. Of a token that sees none, as in front of a padded text, 0.
    """
    if mask is None:
        precise = torch.promote_types(tokens.dtype, torch.float32)
        counts = torch.arange(1, tokens.shape[1] + 1, device=tokens.device, dtype=precise)
        return (tokens.cumsum(1, dtype=precise) / counts[:, None])[:, -length:].to(tokens.dtype)
    sees = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] >= 0
    share = sees.to(tokens.dtype)
    return (share / share.sum(-1, keepdim=True).clamp_min(1)) @ tokens


def remember(x: Tensor, cache, mask: Tensor | None, place: int) -> Tensor | None:
    """All tokens of a text, those from a cache of transformers first; None if ``x`` is all of them.

    The new ones join the cache. They stand where the keys of the replaced layer stood: a cache is reordered, cropped
    and moved as a whole.

    Args:
        x (Tensor): The new tokens, ``(N, L, C)``.
        cache (Cache | None): The cache.
        mask (Tensor | None): What the layers get as a mask.
        place (int): Number of the layer in the cache.

    Raises:
        ValueError: The mask is of a kind that says nothing of single tokens.
    """
    if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 4):
        raise ValueError(
            f"replace.operator='mixer' cannot read an attention mask of kind {type(mask).__name__}"
            f"{tuple(getattr(mask, 'shape', ()))}: expected attn_implementation='sdpa' or 'eager', or the "
            "operator 'mlp' or 'full'"
        )
    if cache is None:
        return None
    tokens = cache.update(x[:, None], x[:, None, :, :0], place)[0][:, 0]
    # a cache of fixed size is empty in front of a text: transformers leaves the mask out there
    return None if mask is None and getattr(cache, 'is_compileable', False) else tokens


def add_to_tokens(x: Tensor, token: Tensor) -> Tensor:
    """Add one token ``(N, 1, C)`` to all tokens ``(N, ..., C)``."""
    return (x.flatten(1, -2) + token).reshape(x.shape)


class MergedBlock(MergedLayer):
    """A module that takes what the computing layer takes: a block with weights of its own, a convolution, a map.

    Args:
        module (nn.Module): The module.
        last (nn.Module | None): What follows. Defaults to None, nothing.
        with_args (bool): Whether the module takes the arguments beyond ``x``, as the shape of a token grid.
            Defaults to True.
    """

    def __init__(self, module: nn.Module, last: nn.Module | None = None, with_args: bool = True):
        super().__init__()
        self.repl = module
        self.last = last or nn.Identity()
        self.with_args = with_args

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        out = self.repl(x, *args, **kwargs) if self.with_args else self.repl(x)
        return self.last(out)

    def init_weights(self) -> None:
        """Initialize as the block does; mmengine calls it from scratch only."""
        if hasattr(self.repl, 'init_weights'):
            self.repl.init_weights()


class MergedHalfTokens(MergedBlock):
    """``x + up(module(pool(x)) - pool(x))`` for tokens: :class:`HalfTokensComputingLayer` merged.

    Args:
        module (nn.Module): An encoder layer with weights of its own.
        grid (TokenGrid): Where the tokens lie.

    Shape: That of :class:`HalfTokensComputingLayer`.
    """

    def __init__(self, module: nn.Module, grid: 'TokenGrid'):
        super().__init__(module)
        self.grid = grid

    def forward(self, x: Tensor, *shape, **attention) -> Tensor:
        return add_at_half(self.repl, x, self.grid, *shape, **attention)


class TokenGrid:
    """How the tokens of a plain ViT lie: its layers are not told. A forward hook of the patch embedding.

    Args:
        prefix (int): Tokens in front of the grid, as a class token. Defaults to 0.
    """

    def __init__(self, prefix: int = 0):
        self.prefix = prefix
        self.shape = None

    def __call__(self, embed: nn.Module, args: tuple, out) -> None:
        """Keep height and width: mm's patch embedding gives them with the tokens, timm's counts them."""
        self.shape = out[1] if isinstance(out, tuple) else embed.dynamic_feat_size(args[0].shape[-2:])

    def check(self, x: Tensor) -> None:
        """Check that tokens ``(N, L, C)`` are those of the grid.

        Raises:
            ValueError: Not so.
        """
        if torch.jit.is_tracing():  # shapes are tensors there, which no condition may depend on
            return
        if self.shape is None or x.shape[1] != self.prefix + self.shape[0] * self.shape[1]:
            grid = 'no grid' if self.shape is None else f'a grid of {self.shape[0]}x{self.shape[1]}'
            raise ValueError(
                f"replace.operator='half' got {x.shape[1]} tokens, where the backbone's patch embedding gave {grid} "
                f'and {self.prefix} stand in front of it: expected all tokens of the grid (none dropped), in the '
                "backbone that the layer was built for, or the operator 'mlp', 'mixer' or 'full'"
            )


def add_at_half(run, x: Tensor, grid: TokenGrid, hw_shape=None, width: int | None = None, **attention) -> Tensor:
    """Return ``x + up(run(pool(x)) - pool(x))``: what a layer adds to its tokens at half the resolution.

    Args:
        run (callable): The layer.
        x (Tensor): ``(N, L, C)``, or ``(N, H, W, C)``.
        grid (TokenGrid): Of the tokens, where there is no ``hw_shape``.
        hw_shape (tuple[int] | int | None): ``(H, W)``, or H beside W; the layer gets the half in the same way.
            Defaults to None.
        width (int | None): W. Defaults to None.
        **attention: Must hold nothing: a mask fits the whole resolution.

    Returns:
        Tensor: Of the shape of ``x``.

    Raises:
        ValueError: There is a mask or the like, or the tokens are not those of the grid.
    """
    if given := [name for name, value in attention.items() if value is not None and value is not False]:
        raise ValueError(
            f"replace.operator='half' cannot halve {given[0]!r}, which is made for all tokens: "
            "expected a backbone that gives its layers none, or the operator 'mlp', 'mixer' or 'full'"
        )
    if x.dim() == 4:
        small = pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        added = (run(small) - small).permute(0, 3, 1, 2)
        return x + F.interpolate(added, x.shape[1:3]).permute(0, 2, 3, 1)
    prefix, size = 0, hw_shape if width is None else (hw_shape, width)
    if size is None:
        grid.check(x)
        prefix, size = grid.prefix, grid.shape
    maps = pool(x[:, prefix:].transpose(1, 2).unflatten(2, size))
    half = tuple(maps.shape[-2:])
    small = maps.flatten(2).transpose(1, 2)
    small = torch.cat([x[:, :prefix], small], 1) if prefix else small
    shape = () if hw_shape is None else (half,) if width is None else half
    added = run(small, *shape) - small
    up = F.interpolate(added[:, prefix:].transpose(1, 2).unflatten(2, half), size).flatten(2).transpose(1, 2)
    return x + (torch.cat([added[:, :prefix], up], 1) if prefix else up)


def pool(maps: Tensor) -> Tensor:
    """Return the means of 2x2 positions of ``(N, C, H, W)``; at an odd border, of those that there are."""
    return F.avg_pool2d(maps, 2, ceil_mode=True, count_include_pad=False)


class ScaleShift(nn.Module):
    """A gain and a bias for each channel, the last dimension of ``x``."""

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return ``weight * x + bias``, in the precision of ``x``."""
        return torch.addcmul(self.bias.to(x.dtype), self.weight.to(x.dtype), x)


def plain_conv(weight: Tensor, bias: Tensor | None = None, groups: int = 1, **settings) -> nn.Conv2d:
    """Return a convolution with a copy of a weight ``(out, in / groups, kh, kw)``, and of a bias if there is one.

    Args:
        weight (Tensor): The weight.
        bias (Tensor | None): ``(out,)``. Defaults to None.
        groups (int): Defaults to 1.
        **settings: ``stride``, ``padding`` and ``dilation``.
    """
    out, inner, *kernel = weight.shape
    conv = nn.Conv2d(inner * groups, out, kernel, groups=groups, bias=bias is not None, device='meta', **settings)
    return _filled(conv, weight, bias)


def plain_linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """Return a linear layer with a copy of a weight ``(out, in)``, and of a bias if there is one."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device='meta')
    return _filled(linear, weight, bias)


def _filled(module: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    module.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
    if bias is not None:
        module.bias = nn.Parameter(bias.detach().to(weight.dtype).clone())
    return module
