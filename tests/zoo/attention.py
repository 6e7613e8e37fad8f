"""Transformers written by hand or out of torch.nn: orders of the sums, norms, gates, experts, mixers."""
# torch types a module's call as Any:
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, identity, projection

WIDTH = 16


def tokens() -> tuple[Tensor, ...]:
    """Two sequences of six token ids."""
    return (torch.randint(0, 20, (2, 6)),)


def sequence() -> tuple[Tensor, ...]:
    """Two sequences of six vectors."""
    return (torch.randn(2, 6, WIDTH),)


class Attention(nn.Module):
    """Causal self-attention as nanoGPT writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.c_attn = nn.Linear(WIDTH, 3 * WIDTH)
        self.c_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        q, k, v = (t.view(batch, time, 2, width // 2).transpose(1, 2) for t in self.c_attn(x).split(width, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(batch, time, width))


class MLP(nn.Module):
    """The feed-forward network as nanoGPT writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.c_fc = nn.Linear(WIDTH, 2 * WIDTH)
        self.c_proj = nn.Linear(2 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x))))


class Block(nn.Module):
    """Pre-norm: two adds in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(WIDTH)
        self.attn = Attention()
        self.ln_2 = nn.LayerNorm(WIDTH)
        self.mlp = MLP()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class NanoGPT(nn.Module):
    """Embeddings, blocks, and a head that shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(20, WIDTH),
                "wpe": nn.Embedding(8, WIDTH),
                "drop": nn.Dropout(0.1),
                "h": nn.ModuleList([Block(), Block()]),
                "ln_f": nn.LayerNorm(WIDTH),
            }
        )
        self.lm_head = nn.Linear(WIDTH, 20, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        position = torch.arange(idx.shape[1])
        x = self.transformer["drop"](self.transformer["wte"](idx) + self.transformer["wpe"](position))
        for block in self.transformer["h"].children():
            x = block(x)
        logits = self.lm_head(self.transformer["ln_f"](x))
        loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss


class ParallelBlock(nn.Module):
    """Attention and MLP read the same normalised input; `order` says how their outputs and the skip are summed."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order
        self.ln = nn.LayerNorm(WIDTH)
        self.attn = Attention()
        self.mlp = MLP()

    def forward(self, x: Tensor) -> Tensor:
        h = self.ln(x)
        if self.order == "skip first":
            return x + self.attn(h) + self.mlp(h)
        if self.order == "skip first, MLP before attention":
            return x + self.mlp(h) + self.attn(h)
        if self.order == "skip last":
            return self.attn(h) + self.mlp(h) + x
        return x + (self.attn(h) + self.mlp(h))


class PostNormBlock(nn.Module):
    """The first transformer's order: the norm comes after the add."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = Attention()
        self.ln_1 = nn.LayerNorm(WIDTH)
        self.mlp = MLP()
        self.ln_2 = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln_1(self.attn(x) + x)
        return self.ln_2(self.mlp(x) + x)


class RotaryAttention(nn.Module):
    """`q * cos + rotate(q) * sin` is a rotation, not a residual add."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.k = nn.Linear(WIDTH, WIDTH, bias=False)
        self.v = nn.Linear(WIDTH, WIDTH, bias=False)
        self.o = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        angle = torch.outer(torch.arange(x.shape[1]).float(), torch.exp(-torch.arange(WIDTH // 2).float()))
        cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()

        def rotate(t: Tensor) -> Tensor:
            left, right = t.chunk(2, -1)
            return t * cos + torch.cat([-right, left], -1) * sin

        return self.o(F.scaled_dot_product_attention(rotate(self.q(x)), rotate(self.k(x)), self.v(x)))


class RMSNorm(nn.Module):
    """Written by hand, as Llama has it: the scale is plain elementwise arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        h = x.float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * h.to(x.dtype)


class GatedMLP(nn.Module):
    """SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 24, bias=False)
        self.up = nn.Linear(WIDTH, 24, bias=False)
        self.down = nn.Linear(24, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class RotaryBlock(nn.Module):
    """Llama's block in small."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = RMSNorm()
        self.attn = RotaryAttention()
        self.norm2 = nn.RMSNorm(WIDTH)
        self.mlp = GatedMLP()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MixtureOfExperts(nn.Module):
    """Routed experts summed into zeros, plus a shared expert: all siblings, none of these sums has a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 3, bias=False)
        self.experts = nn.ModuleList([GatedMLP() for _ in range(3)])
        self.shared = GatedMLP()

    def forward(self, x: Tensor) -> Tensor:
        weight = F.softmax(self.router(x), -1)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            out = out + weight[..., i : i + 1] * expert(x)
        return self.shared(x) + out


class MixtureBlock(nn.Module):
    """A residual over the mixture."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.moe = MixtureOfExperts()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.moe(self.norm(x))


class LayerScale(nn.Module):
    """A learned factor a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((WIDTH,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return x.mul(self.gamma)


class DropPath(nn.Module):
    """Stochastic depth by a random mask: one number a sample, or one for the whole batch."""

    def __init__(self, rate: float, per_sample: bool) -> None:
        super().__init__()
        self.keep = 1 - rate
        self.per_sample = per_sample

    def forward(self, x: Tensor) -> Tensor:
        if self.keep == 1 or not self.training:
            return x
        shape = (x.shape[0] if self.per_sample else 1,) + (1,) * (x.ndim - 1)
        mask = x.new_empty(shape).bernoulli_(self.keep)
        if self.keep > 0 and self.per_sample:
            mask.div_(self.keep)
            return x * mask
        return x / self.keep * mask


class VisionBlock(nn.Module):
    """As timm writes it: norm, mixer, layer scale, stochastic depth, add."""

    def __init__(self, per_sample: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.attn = Attention()
        self.ls1 = LayerScale()
        self.drop_path1 = DropPath(0.2, per_sample)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = MLP()
        self.ls2 = LayerScale()
        self.drop_path2 = DropPath(0.2, per_sample)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class MixerBlock(nn.Module):
    """MLP-Mixer: over tokens, then over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(WIDTH)
        self.token_mix = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))
        self.channel_norm = nn.LayerNorm(WIDTH)
        self.channel_mix = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mix(self.token_norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mix(self.channel_norm(x))


class ConformerBlock(nn.Module):
    """Half-step feed-forward, attention, convolution, half-step feed-forward, and a final norm."""

    def __init__(self) -> None:
        super().__init__()
        self.ff1 = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 32), nn.SiLU(), nn.Linear(32, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.conv_norm = nn.LayerNorm(WIDTH)
        self.conv = nn.Sequential(nn.Conv1d(WIDTH, 32, 1), nn.GLU(1), nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH))
        self.ff2 = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 32), nn.SiLU(), nn.Linear(32, WIDTH))
        self.final_norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.ff1(x)
        h = self.norm(x)
        x = x + self.attn(h, h, h, need_weights=False)[0]
        x = x + self.conv(self.conv_norm(x).transpose(1, 2)).transpose(1, 2)
        x = x + 0.5 * self.ff2(x)
        return self.final_norm(x)


class ReZeroBlock(nn.Module):
    """The branch begins at zero: `x + alpha * f(x)`, alpha one number that the block owns."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.alpha * self.f(x)


class ScaledSkipBlock(nn.Module):
    """The skip is scaled by one learned number, which is a projection, the simplest there is."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.beta = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.beta * x + self.f(x)


class ChannelScaledBlock(nn.Module):
    """MetaFormer and Doge: the skip is scaled channel by channel, too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.f = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.f(self.norm(x))


class Denoiser(nn.Module):
    """A diffusion model that draws its noise levels itself and scales skip and branch by them: no sample, as a VAE's is."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Linear(1, WIDTH)
        self.f = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        sigma = torch.exp(1.2 * torch.randn(x.shape[0], 1, 1) - 1.2)
        noisy = x + sigma * torch.randn_like(x)
        return noisy / (1 + sigma**2) + sigma * self.f(noisy * self.level(sigma.log()))


class QueryDecoder(nn.Module):
    """Queries with positions computed from boxes, as RT-DETR has them: every layer adds the same positions to its stream."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Linear(WIDTH, WIDTH)
        self.attn = nn.ModuleList([nn.MultiheadAttention(WIDTH, 2, batch_first=True) for _ in range(3)])
        self.norm = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(3)])

    def forward(self, queries: Tensor, boxes: Tensor) -> Tensor:
        position = torch.relu(self.position(boxes))
        for attn, norm in zip(self.attn, self.norm, strict=True):
            placed = queries + position
            queries = norm(queries + attn(placed, placed, queries)[0])
        return queries


class DeepNormBlock(nn.Module):
    """DeepNet: the skip is scaled by a constant, which leaves it an identity."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x * 1.7 + self.f(x))


class TimeShiftMix(nn.Module):
    """RWKV's token shift: a learned interpolation between a token and the one before it is no residual add; the outer one is."""

    def __init__(self) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.rand(WIDTH))
        self.key = nn.Linear(WIDTH, 32, bias=False)
        self.value = nn.Linear(32, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        before = F.pad(x, (0, 0, 1, -1))
        mixed = x + (before - x) * self.mu
        return x + self.value(torch.relu(self.key(mixed)) ** 2)


class LowRankAdapter(nn.Module):
    """LoRA: both terms are affine in the input, so the sum is one linear map and no residual add."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH)
        self.base.requires_grad_(False)
        self.down = nn.Linear(WIDTH, 2, bias=False)
        self.up = nn.Linear(2, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2.0 * self.up(self.down(x))


class AdaptedBlock(nn.Module):
    """A frozen residual block with an adapter: the frozen modules are on the branch all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.norm.requires_grad_(False)
        self.lora = LowRankAdapter()

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.lora(self.norm(x)))


class EncoderDecoder(nn.Module):
    """nn.TransformerEncoder and nn.TransformerDecoder, of either order."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        encoder = nn.TransformerEncoderLayer(WIDTH, 2, 32, 0.1, batch_first=True, norm_first=norm_first)
        decoder = nn.TransformerDecoderLayer(WIDTH, 2, 32, 0.1, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(encoder, 2, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(decoder, 1)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.decoder(target, self.encoder(source))


class CrossAttentionReader(nn.Module):
    """Learned queries read a sequence, as in Perceiver: the skip tensor is made from a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(3, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.mlp_norm = nn.LayerNorm(WIDTH)
        self.mlp = MLP()

    def forward(self, x: Tensor) -> Tensor:
        q = self.queries.expand(x.shape[0], -1, -1)
        q = q + self.attn(self.norm(q), x, x, need_weights=False)[0]
        return q + self.mlp(self.mlp_norm(q))


class GraphLayer(nn.Module):
    """A graph convolution with a residual: the adjacency is data."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return self.norm(F.relu(adjacency @ self.lin(x)) + x)


class GraphNet(nn.Module):
    """Two graph layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([GraphLayer(), GraphLayer()])

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, adjacency)
        return x


class PositionsEveryLayer(nn.Module):
    """Positions are added to queries and keys anew in every layer (DETR, SAM), and a table of position biases to every layer's
    scores (T5): from the second layer on, both are ancestors of what they are added to, and yet no skip. One sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(6, WIDTH))
        self.bias = nn.Embedding(6, 6)
        self.layers = nn.ModuleList([nn.Linear(WIDTH, 3 * WIDTH) for _ in range(3)])
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias(torch.arange(6))
        for layer, norm in zip(self.layers, self.norms, strict=True):
            q, k, _ = layer(x + self.positions).chunk(3, -1)
            scores = q @ k.transpose(0, 1) + bias
            x = x + norm(scores.softmax(-1) @ x)
        return x


def pair(inside: str, first: str, second: str) -> tuple[tuple[str, str, tuple[str, ...], tuple[str, ...]], ...]:
    """Two identity sites in one module; each is named for the first part of its branch's last path."""
    return tuple(identity(f"{inside}.{branch.split()[-1].split('.')[0]}", branch, inside) for branch in (first, second))


ENCODER_PRE = ("norm1 self_attn self_attn.out_proj", "norm2 linear1 linear2")
ENCODER_POST = ("self_attn self_attn.out_proj", "linear1 linear2")
VISION = ("norm1 attn.c_attn attn.c_proj ls1", "norm2 mlp.c_fc mlp.c_proj ls2")


class Spectral(nn.Module):
    """Mixes six tokens by a learned filter in the frequency domain, as AFNO and GFNet do."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(4, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.fft.irfft(torch.fft.rfft(x, dim=1) * self.filter.to(torch.complex64), n=x.shape[1], dim=1)


class Weighted(nn.Module):
    """Such a product without a transform is no branch but a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x + x * self.weight


PARALLEL = "ln attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj"

CASES = (
    Case(
        "spectral_filter",
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), Spectral(), Weighted(), Spectral()),
        sequence,
        sites=(identity("1", ".", "1"), identity("3", ".", "3")),
    ),
    Case(
        "nanogpt",
        NanoGPT,
        tokens,
        sites=(
            *pair("transformer.h.0", "ln_1 attn.c_attn attn.c_proj", "ln_2 mlp.c_fc mlp.c_proj"),
            *pair("transformer.h.1", "ln_1 attn.c_attn attn.c_proj", "ln_2 mlp.c_fc mlp.c_proj"),
        ),
    ),
    Case(
        "nanogpt_with_loss",
        NanoGPT,
        lambda: tokens() + tokens(),
        sites=(
            *pair("transformer.h.0", "ln_1 attn.c_attn attn.c_proj", "ln_2 mlp.c_fc mlp.c_proj"),
            *pair("transformer.h.1", "ln_1 attn.c_attn attn.c_proj", "ln_2 mlp.c_fc mlp.c_proj"),
        ),
    ),
    Case(
        "parallel_skip_first",
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), ParallelBlock("skip first")),
        sequence,
        sites=pair("1", "ln attn.c_attn attn.c_proj", "ln mlp.c_fc mlp.c_proj"),
    ),
    Case(
        "parallel_skip_first_mlp_before",
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), ParallelBlock("skip first, MLP before attention")),
        sequence,
        sites=pair("1", "ln mlp.c_fc mlp.c_proj", "ln attn.c_attn attn.c_proj"),
    ),
    Case(
        "parallel_skip_last",
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), ParallelBlock("skip last")),
        sequence,
        sites=(identity("1", PARALLEL, "1"),),
    ),
    Case(
        "parallel_summed_first",
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), ParallelBlock("summed first")),
        sequence,
        sites=(identity("1", PARALLEL, "1"),),
    ),
    Case(
        "post_norm",
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), PostNormBlock()),
        sequence,
        sites=pair("1", "attn.c_attn attn.c_proj", "mlp.c_fc mlp.c_proj"),
    ),
    Case(
        "rotary_gated",
        lambda: nn.Sequential(nn.Embedding(20, WIDTH), RotaryBlock(), RotaryBlock()),
        tokens,
        sites=(
            *pair("1", "norm1 attn.q attn.k attn.v attn.o", "norm2 mlp.gate mlp.up mlp.down"),
            *pair("2", "norm1 attn.q attn.k attn.v attn.o", "norm2 mlp.gate mlp.up mlp.down"),
        ),
    ),
    Case(
        "mixture_of_experts",
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), MixtureBlock()),
        sequence,
        sites=(
            identity(
                "1",
                "norm moe.router moe.experts.0.gate moe.experts.0.up moe.experts.0.down moe.experts.1.gate moe.experts.1.up "
                "moe.experts.1.down moe.experts.2.gate moe.experts.2.up moe.experts.2.down "
                "moe.shared.gate moe.shared.up moe.shared.down",
                "1",
            ),
        ),
    ),
    Case(
        "stochastic_depth_per_sample",
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), VisionBlock(per_sample=True), VisionBlock(per_sample=True)),
        sequence,
        sites=(*pair("1", *VISION), *pair("2", *VISION)),
    ),
    Case(
        "stochastic_depth_per_batch",
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), VisionBlock(per_sample=False)),
        sequence,
        sites=pair("1", *VISION),
    ),
    Case(
        "mlp_mixer",
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), MixerBlock(), MixerBlock()),
        sequence,
        sites=(
            *pair("1", "token_norm token_mix.0 token_mix.2", "channel_norm channel_mix.0 channel_mix.2"),
            *pair("2", "token_norm token_mix.0 token_mix.2", "channel_norm channel_mix.0 channel_mix.2"),
        ),
    ),
    Case(
        "conformer",
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), ConformerBlock()),
        sequence,
        sites=(
            *pair("1", "ff1.0 ff1.1 ff1.3", "norm attn attn.out_proj"),
            *pair("1", "conv_norm conv.0 conv.2", "ff2.0 ff2.1 ff2.3"),
        ),
    ),
    Case(
        "rezero",
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), ReZeroBlock(), ReZeroBlock()),
        sequence,
        sites=(identity("1", "f.0 f.2 .", "1"), identity("2", "f.0 f.2 .", "2")),
    ),
    Case(
        "scaled_skip",
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), ScaledSkipBlock()),
        sequence,
        sites=(projection("1", "f.0 f.2", ".", "1"),),
    ),
    Case(
        "deepnorm",
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), DeepNormBlock()),
        sequence,
        sites=(identity("1", "f.0 f.2", "1"),),
    ),
    Case(
        "time_shift",
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), TimeShiftMix()),
        sequence,
        sites=(identity("1", ". key value", "1"),),
    ),
    Case(
        "low_rank_adapter",
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), LowRankAdapter(), nn.ReLU(), LowRankAdapter()),
        sequence,
    ),
    Case(
        "frozen_block_with_adapter",
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), AdaptedBlock()),
        sequence,
        sites=(identity("1", "norm lora.base lora.down lora.up", "1"),),
    ),
    Case(
        "torch_transformer_norm_first",
        lambda: EncoderDecoder(norm_first=True),
        lambda: sequence() + sequence(),
        sites=(
            identity("encoder.layers.0.self_attn", ENCODER_PRE[0], "encoder.layers.0"),
            identity("encoder.layers.0.linear2", ENCODER_PRE[1], "encoder.layers.0"),
            identity("encoder.layers.1.self_attn", ENCODER_PRE[0], "encoder.layers.1"),
            identity("encoder.layers.1.linear2", ENCODER_PRE[1], "encoder.layers.1"),
            identity("decoder.layers.0.self_attn", ENCODER_PRE[0], "decoder.layers.0"),
            identity("decoder.layers.0.multihead_attn", "norm2 multihead_attn multihead_attn.out_proj", "decoder.layers.0"),
            identity("decoder.layers.0.linear2", "norm3 linear1 linear2", "decoder.layers.0"),
        ),
    ),
    Case(
        "torch_transformer_norm_last",
        lambda: EncoderDecoder(norm_first=False),
        lambda: sequence() + sequence(),
        sites=(
            identity("encoder.layers.0.self_attn", ENCODER_POST[0], "encoder.layers.0"),
            identity("encoder.layers.0.linear2", ENCODER_POST[1], "encoder.layers.0"),
            identity("encoder.layers.1.self_attn", ENCODER_POST[0], "encoder.layers.1"),
            identity("encoder.layers.1.linear2", ENCODER_POST[1], "encoder.layers.1"),
            identity("decoder.layers.0.self_attn", ENCODER_POST[0], "decoder.layers.0"),
            identity("decoder.layers.0.multihead_attn", "multihead_attn multihead_attn.out_proj", "decoder.layers.0"),
            identity("decoder.layers.0.linear2", ENCODER_POST[1], "decoder.layers.0"),
        ),
    ),
    Case(
        "torch_transformer_eval",
        lambda: EncoderDecoder(norm_first=False).encoder.eval(),
        sequence,
        sites=(
            identity("layers.0.self_attn", ENCODER_POST[0], "layers.0"),
            identity("layers.0.linear2", ENCODER_POST[1], "layers.0"),
            identity("layers.1.self_attn", ENCODER_POST[0], "layers.1"),
            identity("layers.1.linear2", ENCODER_POST[1], "layers.1"),
        ),
    ),
    Case(
        "cross_attention_reader",
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), CrossAttentionReader()),
        sequence,
        sites=pair("1", "norm attn attn.out_proj", "mlp_norm mlp.c_fc mlp.c_proj"),
    ),
    Case(
        "channel_scaled_skip",
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), ChannelScaledBlock()),
        sequence,
        sites=(projection("1", "norm f.0 f.2", ".", "1"),),
    ),
    Case("denoiser", Denoiser, sequence, sites=(identity("f", "level f.0 f.2"),)),
    Case(
        "query_decoder",
        QueryDecoder,
        lambda: sequence() + sequence(),
        sites=tuple(identity(f"attn{suffix}", f"attn.{i} attn.{i}.out_proj") for i, suffix in enumerate(("", "#2", "#3"))),
    ),
    Case(
        # The model holds the adds and owns the positions, so it is on the branch itself (".").
        "positions_every_layer",
        PositionsEveryLayer,
        lambda: (torch.randn(6, WIDTH),),
        sites=tuple(identity(f"norms{suffix}", f". layers.{i} bias norms.{i}") for i, suffix in enumerate(("", "#2", "#3"))),
    ),
    Case(
        "graph_network",
        GraphNet,
        lambda: (torch.randn(5, WIDTH), torch.rand(5, 5)),
        sites=(identity("layers.0", "lin", "layers.0"), identity("layers.1", "lin", "layers.1")),
    ),
)
