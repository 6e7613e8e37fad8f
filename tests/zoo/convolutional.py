"""Convolutional networks: the ResNet family, its shortcuts, and networks whose sums or concatenations are no residual adds."""
# torch types a module's call as Any:
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, identity, projection


def image(channels: int = 3, size: int = 8) -> tuple[Tensor, ...]:
    """A batch of two small images."""
    return (torch.randn(2, channels, size, size),)


def features(size: int = 8) -> tuple[Tensor, ...]:
    """A batch of two feature maps of eight channels."""
    return image(8, size)


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size but for its stride."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


class PreActivationBlock(nn.Module):
    """He et al. 2016: normalise and activate first; the projection, where there is one, starts after the activation."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv(inputs, outputs, stride=stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv(outputs, outputs)
        self.shortcut = conv(inputs, outputs, 1, stride) if inputs != outputs or stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(out)
        out = self.conv2(F.relu(self.bn2(self.conv1(out))))
        return out + skip


class PreActivationResNet(nn.Module):
    """Two stages of pre-activation blocks on a bare convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.blocks = nn.Sequential(PreActivationBlock(8, 8), PreActivationBlock(8, 16, 2), PreActivationBlock(16, 16))
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.blocks(self.stem(x))))
        return self.head(x.mean((2, 3)))


class BasicBlock(nn.Module):
    """As torchvision writes it: `out += identity`, then the one in-place ReLU that the whole block shares."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs, stride=stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    """As torchvision writes it: 1x1, 3x3, 1x1."""

    def __init__(self, inputs: int, width: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, stride=stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, width * 4, 1)
        self.bn3 = nn.BatchNorm2d(width * 4)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class TorchvisionResNet(nn.Module):
    """Stem with max-pooling, two layers of blocks, a head."""

    def __init__(self, layer1: nn.Module, layer2: nn.Module, outputs: int) -> None:
        super().__init__()
        self.conv1 = conv(3, 8)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = layer1
        self.layer2 = layer2
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(outputs, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def resnet_basic() -> nn.Module:
    """A torchvision ResNet of basic blocks."""
    downsample = nn.Sequential(conv(8, 16, 1, 2), nn.BatchNorm2d(16))
    return TorchvisionResNet(
        nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8)),
        nn.Sequential(BasicBlock(8, 16, 2, downsample), BasicBlock(16, 16)),
        16,
    )


def resnet_bottleneck() -> nn.Module:
    """A torchvision ResNet of bottlenecks, whose first block projects without a stride."""
    first = nn.Sequential(conv(8, 16, 1), nn.BatchNorm2d(16))
    second = nn.Sequential(conv(16, 32, 1, 2), nn.BatchNorm2d(32))
    return TorchvisionResNet(
        nn.Sequential(Bottleneck(8, 4, 1, first), Bottleneck(16, 4)), nn.Sequential(Bottleneck(16, 8, 2, second)), 32
    )


class SqueezeExciteBlock(nn.Module):
    """SE-ResNet: the branch is scaled by a gate that is made from the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv(8, 8)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = conv(8, 8)
        self.bn2 = nn.BatchNorm2d(8)
        self.squeeze = nn.Linear(8, 2)
        self.excite = nn.Linear(2, 8)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(out.mean((2, 3))))))
        return F.relu(out * gate[:, :, None, None] + x)


class InceptionResidual(nn.Module):
    """Inception-ResNet: parallel towers, concatenated, mixed by 1x1, scaled down, added."""

    def __init__(self) -> None:
        super().__init__()
        self.tower0 = conv(8, 4, 1)
        self.tower1 = nn.Sequential(conv(8, 4, 1), nn.ReLU(), conv(4, 4))
        self.mix = conv(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        towers = torch.cat([F.relu(self.tower0(x)), F.relu(self.tower1(x))], 1)
        return F.relu(x + 0.17 * self.mix(towers))


class ResNetDBlock(nn.Module):
    """ResNet-D: the shortcut pools before it projects."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(8, 16, stride=2), nn.BatchNorm2d(16), nn.ReLU(inplace=True), conv(16, 16), nn.BatchNorm2d(16)
        )
        self.shortcut = nn.Sequential(nn.AvgPool2d(2, 2), conv(8, 16, 1), nn.BatchNorm2d(16))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class PaddingShortcutBlock(nn.Module):
    """ResNet's option A: the shortcut has no parameters, it thins the image out and pads channels with zeros."""

    def __init__(self, pooled: bool, concatenates: bool = False) -> None:
        super().__init__()
        self.pooled = pooled
        self.concatenates = concatenates
        self.conv1 = conv(8, 16, stride=2)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = conv(16, 16)
        self.bn2 = nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        thin = F.avg_pool2d(x, 1, 2) if self.pooled else x[:, :, ::2, ::2]
        out += torch.cat([thin, torch.zeros_like(thin)], 1) if self.concatenates else F.pad(thin, (0, 0, 0, 0, 4, 4))
        return F.relu(out)


class CausalConv(nn.Module):
    """A convolution that pads its input on the left and cuts what is too much on the right, which may be nothing."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel)
        self.padding = kernel - 1

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (self.padding, 0))
        return self.conv(padded[..., : x.shape[-1] + self.padding])


class CausalBlock(nn.Module):
    """A block of an audio codec, whose shortcut is such a convolution, too."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.one, self.two = CausalConv(inputs, outputs, 3), CausalConv(outputs, outputs, 1)
        self.shortcut = CausalConv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.two(F.elu(self.one(F.elu(x))))


class ShuffleUnit(nn.Module):
    """ShuffleNet v2: half of the channels pass, half are convolved, both are concatenated and shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(conv(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), conv(4, 4, groups=4), conv(4, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        out = torch.cat([left, self.branch(right)], 1)
        n, c, h, w = out.shape
        return out.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Res2Block(nn.Module):
    """Res2Net: chunks of the channels are convolved one after the other, each added to the next; only the outer add is residual."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce = conv(8, 8, 1)
        self.scales = nn.ModuleList([conv(2, 2) for _ in range(3)])
        self.expand = conv(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        chunks = torch.split(F.relu(self.reduce(x)), 2, 1)
        outs = [chunks[0]]
        part = chunks[1]
        for i, scale in enumerate(self.scales):
            part = F.relu(scale(part))
            outs.append(part)
            if i + 2 < len(chunks):
                part = part + chunks[i + 2]
        return F.relu(self.expand(torch.cat(outs, 1)) + x)


class DenseNet(nn.Module):
    """Every layer reads the concatenation of all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([conv(8 + 4 * i, 4) for i in range(3)])
        self.head = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, F.relu(layer(x))], 1)
        return self.head(x.mean((2, 3)))


class UNet(nn.Module):
    """Long skips by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = conv(3, 8)
        self.down2 = conv(8, 16, stride=2)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.out = conv(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.down1(x))
        b = F.relu(self.down2(a))
        return self.out(torch.cat([F.relu(self.up(b)), a], 1))


class AdditiveUNet(nn.Module):
    """LinkNet: long skips by addition, all held by the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1 = nn.Sequential(conv(3, 8), nn.ReLU())
        self.enc2 = nn.Sequential(conv(8, 16, stride=2), nn.ReLU())
        self.enc3 = nn.Sequential(conv(16, 32, stride=2), nn.ReLU())
        self.up2 = nn.ConvTranspose2d(32, 16, 2, 2)
        self.dec2 = nn.Sequential(conv(16, 16), nn.ReLU())
        self.up1 = nn.ConvTranspose2d(16, 8, 2, 2)
        self.head = conv(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        e1 = self.enc1(x)
        e2 = self.enc2(e1)
        e3 = self.enc3(e2)
        d2 = self.dec2(self.up2(e3) + e2)
        return self.head(self.up1(d2) + e1)


class FeaturePyramid(nn.Module):
    """The rule is structural: a lateral is affine in a stage's output, from which the coarser maps come too. Projection sites,
    named for the last module on the way down and up again; `exclude=` takes them out."""

    def __init__(self) -> None:
        super().__init__()
        self.stage3 = nn.Sequential(conv(3, 8), nn.ReLU())
        self.stage4 = nn.Sequential(conv(8, 8, stride=2), nn.ReLU())
        self.stage5 = nn.Sequential(conv(8, 8, stride=2), nn.ReLU())
        self.lateral3 = conv(8, 8, 1)
        self.lateral4 = conv(8, 8, 1)
        self.lateral5 = conv(8, 8, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        c3 = self.stage3(x)
        c4 = self.stage4(c3)
        c5 = self.stage5(c4)
        p5 = self.lateral5(c5)
        p4 = self.lateral4(c4) + F.interpolate(p5, scale_factor=2.0, mode="nearest")
        p3 = self.lateral3(c3) + F.interpolate(p4, scale_factor=2.0, mode="nearest")
        return {"p3": p3, "p4": p4, "p5": p5}


class SuperResolutionBlock(nn.Module):
    """EDSR's block: no normalisation, the branch scaled down, the skip added in place."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(8, 8), nn.ReLU(True), conv(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        res = self.body(x).mul(0.1)
        res += x
        return res


class SuperResolution(nn.Module):
    """EDSR: short skips in the blocks, a global one over all of them, held by the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.head = conv(3, 8)
        self.body = nn.Sequential(SuperResolutionBlock(), SuperResolutionBlock(), conv(8, 8))
        self.tail = nn.Sequential(conv(8, 12), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        res = self.body(x)
        res += x
        return self.tail(res)


class RepVGGBlock(nn.Module):
    """While training, RepVGG sums three maps that are all affine in the input: none of them is a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Sequential(conv(8, 8), nn.BatchNorm2d(8))
        self.pointwise = nn.Sequential(conv(8, 8, 1), nn.BatchNorm2d(8))
        self.identity = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.dense(x) + self.pointwise(x) + self.identity(x))


class DiffusionBlock(nn.Module):
    """A diffusion U-Net's block: the time embedding is added inside the branch, from outside of it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(2, inputs)
        self.conv1 = conv(inputs, outputs)
        self.time_emb_proj = nn.Linear(16, outputs)
        self.norm2 = nn.GroupNorm(2, outputs)
        self.dropout = nn.Dropout(0.1)
        self.conv2 = conv(outputs, outputs)
        self.conv_shortcut = conv(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time_emb_proj(F.silu(temb))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        return (x + h) / 1.0


class SpatialAttention(nn.Module):
    """Self-attention over pixels with its own residual."""

    def __init__(self) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(2, 16)
        self.to_qkv = nn.Linear(16, 48)
        self.to_out = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        n, c, height, width = x.shape
        h = self.group_norm(x).view(n, c, height * width).transpose(1, 2)
        q, k, v = self.to_qkv(h).chunk(3, -1)
        h = self.to_out(F.scaled_dot_product_attention(q, k, v))
        return h.transpose(1, 2).reshape(n, c, height, width) + residual


class DiffusionUNet(nn.Module):
    """Down, attention, up; concatenated long skips; the time embedding is a small network of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.time_embedding = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 16))
        self.conv_in = conv(3, 8)
        self.down0 = DiffusionBlock(8, 8)
        self.down1 = DiffusionBlock(8, 16)
        self.downsample = conv(16, 16, stride=2)
        self.mid = SpatialAttention()
        self.up0 = DiffusionBlock(32, 8)
        self.conv_out = conv(8, 3)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        angle = timestep[:, None].float() * torch.exp(-torch.arange(4.0))
        temb = self.time_embedding(torch.cat([angle.sin(), angle.cos()], -1))
        x = self.down1(self.down0(self.conv_in(sample), temb), temb)
        h = self.mid(self.downsample(x))
        h = F.interpolate(h, scale_factor=2.0)
        return self.conv_out(F.silu(self.up0(torch.cat([h, x], 1), temb)))


class PlainConvNet(nn.Module):
    """No skip anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class VAE(nn.Module):
    """The reparametrisation `mu + eps * sigma` injects noise, it adds no branch."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv(3, 8, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(128, 16), nn.ReLU())
        self.mu = nn.Linear(16, 4)
        self.logvar = nn.Linear(16, 4)
        self.decoder = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3 * 64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encoder(x)
        mu, logvar = self.mu(h), self.logvar(h)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
        return self.decoder(z).view_as(x), mu, logvar


class VQVAE(nn.Module):
    """The straight-through estimator `z + (q - z).detach()`: nothing is learned through the detached side."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(8, 8)
        self.codebook = nn.Embedding(16, 8)
        self.decoder = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.encoder(x))
        code = torch.cdist(z, self.codebook.weight).argmin(-1)
        return self.decoder(z + (self.codebook(code) - z).detach())


class ConvolutionalPosition(nn.Module):
    """A positional encoding by depthwise convolution: an identity skip may have an affine branch."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = conv(3, 8, stride=2)
        self.peg = conv(8, 8, groups=8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.patch(x))
        x = x + self.peg(x)
        return self.head(x.mean((2, 3)))


def in_channels_last(model: nn.Module) -> nn.Module:
    """The model with its weights in channels-last layout."""
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


RESNET_BASIC = (
    identity("layer1.0", "conv1 bn1 conv2 bn2", "layer1.0"),
    identity("layer1.1", "conv1 bn1 conv2 bn2", "layer1.1"),
    projection("layer2.0", "conv1 bn1 conv2 bn2", "downsample.0 downsample.1", "layer2.0"),
    identity("layer2.1", "conv1 bn1 conv2 bn2", "layer2.1"),
)

CASES = (
    Case(
        "preactivation_resnet",
        PreActivationResNet,
        image,
        sites=(
            identity("blocks.0", "bn1 conv1 bn2 conv2", "blocks.0"),
            projection("blocks.1", "conv1 bn2 conv2", "shortcut", "blocks.1"),
            identity("blocks.2", "bn1 conv1 bn2 conv2", "blocks.2"),
        ),
    ),
    Case("resnet_basic", resnet_basic, image, sites=RESNET_BASIC),
    Case("resnet_basic_eval", lambda: resnet_basic().eval(), image, sites=RESNET_BASIC),
    Case(
        "resnet_basic_channels_last",
        lambda: in_channels_last(resnet_basic()),
        lambda: (image()[0].to(memory_format=torch.channels_last),),
        sites=RESNET_BASIC,
    ),
    Case(
        "resnet_bottleneck",
        resnet_bottleneck,
        image,
        sites=(
            projection("layer1.0", "conv1 bn1 conv2 bn2 conv3 bn3", "downsample.0 downsample.1", "layer1.0"),
            identity("layer1.1", "conv1 bn1 conv2 bn2 conv3 bn3", "layer1.1"),
            projection("layer2.0", "conv1 bn1 conv2 bn2 conv3 bn3", "downsample.0 downsample.1", "layer2.0"),
        ),
    ),
    Case(
        "squeeze_excite",
        lambda: nn.Sequential(conv(3, 8), SqueezeExciteBlock(), SqueezeExciteBlock()),
        image,
        sites=(
            identity("1", "conv1 bn1 conv2 bn2 squeeze excite", "1"),
            identity("2", "conv1 bn1 conv2 bn2 squeeze excite", "2"),
        ),
    ),
    Case(
        "inception_resnet",
        lambda: nn.Sequential(conv(3, 8), InceptionResidual()),
        image,
        sites=(identity("1", "tower0 tower1.0 tower1.2 mix", "1"),),
    ),
    Case(
        "resnet_d",
        lambda: nn.Sequential(conv(3, 8), nn.ReLU(), ResNetDBlock()),
        image,
        sites=(projection("2", "body.0 body.1 body.3 body.4", "shortcut.1 shortcut.2", "2"),),
    ),
    Case(
        "resnet_option_a_pooled",
        lambda: nn.Sequential(conv(3, 8), PaddingShortcutBlock(pooled=True)),
        image,
        sites=(projection("1", "conv1 bn1 conv2 bn2", "", "1"),),
    ),
    Case(
        "resnet_option_a_strided",
        lambda: nn.Sequential(conv(3, 8), PaddingShortcutBlock(pooled=False)),
        image,
        sites=(projection("1", "conv1 bn1 conv2 bn2", "", "1"),),
    ),
    Case(
        "resnet_option_a_concatenated",
        lambda: nn.Sequential(conv(3, 8), PaddingShortcutBlock(pooled=True, concatenates=True)),
        image,
        sites=(projection("1", "conv1 bn1 conv2 bn2", "", "1"),),
    ),
    Case(
        "causal",
        lambda: nn.Sequential(CausalBlock(3, 8), CausalBlock(8, 8)),
        lambda: (torch.randn(2, 3, 10),),
        sites=tuple(projection(str(i), "one.conv two.conv", "shortcut.conv", str(i)) for i in range(2)),
    ),
    Case("shufflenet", lambda: nn.Sequential(conv(3, 8), ShuffleUnit(), ShuffleUnit()), image),
    Case(
        "res2net",
        lambda: nn.Sequential(conv(3, 8), Res2Block()),
        image,
        sites=(identity("1", "reduce scales.0 scales.1 scales.2 expand", "1"),),
    ),
    Case("densenet", DenseNet, features),
    Case("unet", UNet, image),
    Case(
        "additive_unet",
        AdditiveUNet,
        image,
        sites=(identity("up2", "enc3.0 up2"), identity("up1", "enc2.0 enc3.0 up2 dec2.0 up1")),
    ),
    Case(
        "feature_pyramid",
        FeaturePyramid,
        image,
        sites=(
            projection("lateral5", "stage5.0 lateral5", "lateral4"),
            projection("lateral4", "stage4.0 stage5.0 lateral5 lateral4", "lateral3"),
        ),
    ),
    Case(
        "super_resolution",
        SuperResolution,
        image,
        sites=(
            identity("body.0", "body.0 body.2", "body.0"),
            identity("body.1", "body.0 body.2", "body.1"),
            identity("body", "body.0.body.0 body.0.body.2 body.1.body.0 body.1.body.2 body.2"),
        ),
    ),
    Case("repvgg", lambda: nn.Sequential(conv(3, 8), RepVGGBlock(), RepVGGBlock()), image),
    Case(
        "diffusion_unet",
        DiffusionUNet,
        lambda: (*image(), torch.tensor([3, 70])),
        sites=(
            identity("down0", "norm1 conv1 norm2 conv2", "down0"),
            projection("down1", "norm1 conv1 norm2 conv2", "conv_shortcut", "down1"),
            identity("mid", "group_norm to_qkv to_out", "mid"),
            projection("up0", "norm1 conv1 norm2 conv2", "conv_shortcut", "up0"),
        ),
    ),
    Case("plain_convolutional", PlainConvNet, image),
    Case("vae", VAE, image),
    Case("vqvae", VQVAE, lambda: (torch.randn(3, 8),)),
    Case("convolutional_position", ConvolutionalPosition, image, sites=(identity("peg", "peg"),)),
)
