"""Small backbones that have the class names of served ones, and the structure that other packages give these classes.

Some are served, others are not.

timm, torchvision and mmpretrain cannot be installed beside what is tested: what stands here has the attributes of
theirs, as far as RepL could ask for them, and runs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ---- torchvision --------------------------------------------------------------------------------------------------


class BasicBlock(nn.Module):
    """torchvision's BasicBlock."""

    expansion = 1

    def __init__(self, inplanes: int, planes: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = shortcut(inplanes, planes, stride)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """torchvision's Bottleneck."""

    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * 4)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(inplanes, planes * 4, stride)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(out)))))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


def shortcut(inplanes: int, planes: int, stride: int) -> nn.Module | None:
    """What stands beside the first block of a stage."""
    if stride == 1 and inplanes == planes:
        return None
    return nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))


class ResNet(nn.Module):
    """torchvision's ResNet, a classifier."""

    def __init__(self, block=BasicBlock, layers=(2, 2, 2, 2), num_classes: int = 5, width: int = 8):
        super().__init__()
        self.inplanes = width
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = self._make_layer(block, width, layers[0])
        self.layer2 = self._make_layer(block, width * 2, layers[1], 2)
        self.layer3 = self._make_layer(block, width * 4, layers[2], 2)
        self.layer4 = self._make_layer(block, width * 8, layers[3], 2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(width * 8 * block.expansion, num_classes)

    def _make_layer(self, block, planes: int, blocks: int, stride: int = 1) -> nn.Sequential:
        layers = []
        for index in range(blocks):
            layers.append(block(self.inplanes, planes, 1 if index else stride))
            self.inplanes = planes * block.expansion
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


class EncoderBlock(nn.Module):
    """torchvision's encoder layer of a vision transformer."""

    def __init__(self, dim: int = 16):
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim)
        self.self_attention = nn.MultiheadAttention(dim, 2, batch_first=True)
        self.dropout = nn.Dropout(0.0)
        self.ln_2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.dropout(self.self_attention(y, y, y, need_weights=False)[0])
        return x + self.mlp(self.ln_2(x))


def torchvision_vit() -> nn.Module:
    """torchvision's VisionTransformer: ``encoder.layers``."""

    class VisionTransformer(nn.Module):
        def __init__(self, dim: int = 16):
            super().__init__()
            self.conv_proj = nn.Conv2d(3, dim, 16, 16)
            self.encoder = nn.Module()
            layers = {f'encoder_layer_{i}': EncoderBlock(dim) for i in range(6)}
            self.encoder.layers = nn.Sequential()
            for name, layer in layers.items():
                self.encoder.layers.add_module(name, layer)
            self.encoder.ln = nn.LayerNorm(dim)
            self.heads = nn.Linear(dim, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv_proj(x).flatten(2).transpose(1, 2)
            return self.heads(self.encoder.ln(self.encoder.layers(x)).mean(1))

    return VisionTransformer()


def torchvision_swin() -> nn.Module:
    """torchvision's SwinTransformer: ``features``, in which stages and patch mergings alternate."""

    class SwinTransformer(nn.Module):
        def __init__(self, dim: int = 16):
            super().__init__()
            patches = nn.Conv2d(3, dim, 4, 4)
            stages = [nn.Sequential(TimmBlock(dim), TimmBlock(dim)) for _ in range(2)]
            self.features = nn.Sequential(nn.Sequential(patches, Tokens()), stages[0], nn.Identity(), stages[1])
            self.norm = nn.LayerNorm(dim)
            self.head = nn.Linear(dim, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.features(x)).mean(1))

    return SwinTransformer()


# ---- timm ---------------------------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """Pixels as a sequence of tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """timm's attention: ``qkv`` and ``proj``."""

    def __init__(self, dim: int):
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1)))


class Mlp(nn.Module):
    """timm's MLP."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class TimmBlock(nn.Module):
    """timm's block of a vision transformer: an ``mlp`` where mm has an ``ffn``."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim)
        self.ls1 = nn.Identity()
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim)
        self.ls2 = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """A stage of timm's pyramids: ``downsample`` and ``blocks``."""

    def __init__(self, dim: int):
        super().__init__()
        self.downsample = nn.Identity()
        self.blocks = nn.Sequential(TimmBlock(dim), TimmBlock(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


def timm_vit() -> nn.Module:
    """timm's VisionTransformer: ``blocks``."""

    class VisionTransformer(nn.Module):
        def __init__(self, dim: int = 16):
            super().__init__()
            self.patch_embed = nn.Sequential(nn.Conv2d(3, dim, 16, 16), Tokens())
            self.blocks = nn.Sequential(*(TimmBlock(dim) for _ in range(6)))
            self.norm = nn.LayerNorm(dim)
            self.head = nn.Linear(dim, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.blocks(self.patch_embed(x))).mean(1))

    return VisionTransformer()


def timm_swin() -> nn.Module:
    """timm's SwinTransformer: ``layers``, each with ``blocks``."""

    class SwinTransformer(nn.Module):
        def __init__(self, dim: int = 16):
            super().__init__()
            self.patch_embed = nn.Sequential(nn.Conv2d(3, dim, 4, 4), Tokens())
            self.layers = nn.Sequential(Stage(dim), Stage(dim))
            self.norm = nn.LayerNorm(dim)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.layers(self.patch_embed(x)))

    return SwinTransformer()


def timm_pvtv2() -> nn.Module:
    """timm's PyramidVisionTransformerV2: ``stages``, each with ``blocks``."""

    class PyramidVisionTransformerV2(nn.Module):
        def __init__(self, dim: int = 16):
            super().__init__()
            self.patch_embed = nn.Sequential(nn.Conv2d(3, dim, 4, 4), Tokens())
            self.stages = nn.Sequential(Stage(dim), Stage(dim))

        def forward(self, x: Tensor) -> Tensor:
            return self.stages(self.patch_embed(x))

    return PyramidVisionTransformerV2()


# ---- mmpretrain ---------------------------------------------------------------------------------------------------


def mmpretrain_twins(name: str) -> nn.Module:
    """mmpretrain's PCPVT and SVT: a list of blocks per stage in ``stages``, where mmseg has ``layers``."""

    def init(self, dim: int = 16):
        nn.Module.__init__(self)
        self.patch_embeds = nn.ModuleList([nn.Sequential(nn.Conv2d(3, dim, 4, 4), Tokens())])
        self.stages = nn.ModuleList([nn.ModuleList([TimmBlock(dim), TimmBlock(dim)]) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embeds[0](x)
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return x

    return type(name, (nn.Module,), dict(__init__=init, forward=forward))()


FIT = {'timm ViT': timm_vit, 'timm Swin': timm_swin}
UNFIT = {
    'timm PVTv2': timm_pvtv2,
    'torchvision ViT': torchvision_vit,
    'torchvision Swin': torchvision_swin,
    'mmpretrain PCPVT': lambda: mmpretrain_twins('PCPVT'),
    'mmpretrain SVT': lambda: mmpretrain_twins('SVT'),
}


def images() -> Tensor:
    """Two images for any of these."""
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
