"""Models of `transformers`, built from tiny configurations (nothing is downloaded). They run in training mode, dropout included."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from tests.zoo.case import Case, Site, identity, projection

SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SPECIAL: dict[str, Any] = {"vocab_size": 30, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT = SMALL | SPECIAL
VISION = SMALL | {"image_size": 8, "patch_size": 4}
SEQ2SEQ: dict[str, Any] = SPECIAL | {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "decoder_start_token_id": 3,
}
SPEECH: dict[str, Any] = TEXT | {
    "conv_dim": (8, 8),
    "conv_kernel": (4, 3),
    "conv_stride": (2, 2),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
}


def model(kind: str, **config: Any) -> Callable[[], nn.Module]:
    """A factory of `transformers.<kind>`, in training mode, from its own class of configuration."""

    def build() -> nn.Module:
        cls = getattr(hf, kind)
        built: nn.Module = cls(cls.config_class(**config))
        return built.train()

    return build


def ids() -> dict[str, Tensor]:
    """Two sequences of six token ids."""
    return {"input_ids": torch.randint(3, 30, (2, 6))}


def ids_and_labels() -> dict[str, Tensor]:
    """The same with labels, so that the loss is part of the forward pass."""
    tokens = torch.randint(3, 30, (2, 6))
    return {"input_ids": tokens, "labels": tokens}


def ids_for_both() -> dict[str, Tensor]:
    """Token ids for an encoder and a decoder."""
    return {"input_ids": torch.randint(3, 30, (2, 6)), "decoder_input_ids": torch.randint(3, 30, (2, 5))}


def pixels(size: int = 8) -> Callable[[], dict[str, Tensor]]:
    """Two images."""
    return lambda: {"pixel_values": torch.randn(2, 3, size, size)}


def waves() -> dict[str, Tensor]:
    """Two short sounds."""
    return {"input_values": torch.randn(2, 64)}


def per_layer(inside: str, count: int, *sites: tuple[str, str]) -> tuple[Site, ...]:
    """For each layer, identity sites of (name, branch) relative to `inside`, where {} is the layer's number."""
    return tuple(
        identity(f"{path}.{name}" if name else path, branch, path)
        for path in (inside.format(i) for i in range(count))
        for name, branch in sites
    )


def joined(*sites: Iterable[Site]) -> tuple[Site, ...]:
    """The sites of all parts, one part after the other."""
    return tuple(site for part in sites for site in part)


def basic(stage: int, layer: int, projected: bool = False, inside: str = "encoder.stages") -> Site:
    """A ResNet's basic layer."""
    return residual_conv(f"{inside}.{stage}.layers.{layer}", 2, projected)


def residual_conv(path: str, convolutions: int, projected: bool) -> Site:
    """A layer of so many convolutions, each with its normalisation."""
    branch = " ".join(f"layer.{i}.convolution layer.{i}.normalization" for i in range(convolutions))
    return (
        projection(path, branch, "shortcut.convolution shortcut.normalization", path) if projected else identity(path, branch, path)
    )


def regnet_y(path: str, projected: bool) -> Site:
    """RegNet's Y layer: squeeze-and-excite between the second and the last convolution."""
    branch = (
        "layer.0.convolution layer.0.normalization layer.1.convolution layer.1.normalization "
        "layer.2.attention.0 layer.2.attention.2 layer.3.convolution layer.3.normalization"
    )
    return (
        projection(path, branch, "shortcut.convolution shortcut.normalization", path) if projected else identity(path, branch, path)
    )


LLAMA_ATTENTION = "input_layernorm self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj"
GATED = "mlp.gate_proj mlp.up_proj mlp.down_proj"
LLAMA = (("self_attn", LLAMA_ATTENTION), ("mlp", f"post_attention_layernorm {GATED}"))
GPT2 = (("attn", "ln_1 attn.c_attn attn.c_proj"), ("mlp", "ln_2 mlp.c_fc mlp.c_proj"))
VIT_ATTENTION = "layernorm_before attention.q_proj attention.k_proj attention.v_proj attention.o_proj"
VIT = (("attention", VIT_ATTENTION), ("mlp", "layernorm_after mlp.fc1 mlp.fc2"))
SWIN = (
    (
        "attention",
        "layernorm_before attention.q_proj attention.k_proj attention.v_proj attention.relative_position_bias attention.o_proj",
    ),
    ("mlp", "layernorm_after mlp.fc1 mlp.fc2"),
)
CLIP_LAYER = (
    ("self_attn", "layer_norm1 self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.out_proj"),
    ("mlp", "layer_norm2 mlp.fc1 mlp.fc2"),
)
BART_ATTENTION = "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.out_proj"
BART_ENCODER = (("self_attn", BART_ATTENTION), ("fc2", "fc1 fc2"))
BART_DECODER = (("self_attn", BART_ATTENTION), ("encoder_attn", "encoder_attn.q_proj encoder_attn.out_proj"), ("fc2", "fc1 fc2"))
PRENORM_BART_ENCODER = (("self_attn", f"self_attn_layer_norm {BART_ATTENTION}"), ("fc2", "final_layer_norm fc1 fc2"))
WHISPER_DECODER = (
    ("self_attn", f"self_attn_layer_norm {BART_ATTENTION}"),
    ("encoder_attn", "encoder_attn_layer_norm encoder_attn.q_proj encoder_attn.out_proj"),
    ("fc2", "final_layer_norm fc1 fc2"),
)
PARALLEL_PHI = f"{LLAMA_ATTENTION.replace('o_proj', 'dense')} mlp.fc1 mlp.fc2"


def bert(layers: int, inside: str = "encoder.layer") -> tuple[Site, ...]:
    """BERT and its kin: each add has a module of its own, which owns the branch's last linear map."""
    return joined(
        *(
            (
                identity(
                    f"{inside}.{i}.attention.output",
                    "attention.self.query attention.self.key attention.self.value attention.output.dense",
                    f"{inside}.{i}",
                ),
                identity(f"{inside}.{i}.output", "intermediate.dense output.dense", f"{inside}.{i}"),
            )
            for i in range(layers)
        )
    )


def deberta(layers: int) -> tuple[Site, ...]:
    """DeBERTa v2 with shared attention keys: the relative embeddings are a parameter that every layer's attention reads."""
    return joined(
        *(
            (
                identity(
                    f"encoder.layer.{i}.attention.output",
                    "attention.self.query_proj attention.self.key_proj attention.self.value_proj /encoder.rel_embeddings "
                    "attention.output.dense",
                    f"encoder.layer.{i}",
                ),
                identity(f"encoder.layer.{i}.output", "intermediate.dense output.dense", f"encoder.layer.{i}"),
            )
            for i in range(layers)
        )
    )


def albert(calls: int) -> tuple[Site, ...]:
    """One layer that runs `calls` times: the attention holds its add, the layer the other."""
    layer = "encoder.albert_layer_groups.0.albert_layers.0"
    return joined(
        *(
            (
                identity(f"{layer}.attention{suffix}", "query key value dense", f"{layer}.attention"),
                identity(f"{layer}{suffix}", "ffn ffn_output", layer),
            )
            for suffix in ("" if call == 1 else f"@{call}" for call in range(1, calls + 1))
        )
    )


def t5(encoder_layers: int, decoder_layers: int) -> tuple[Site, ...]:
    """T5: every sub-layer is a module that holds one add. All layers of a stack read the first one's table of position biases."""

    def part(stack: str, block: int, layer: int, branch: str) -> Site:
        return identity(f"{stack}.block.{block}.layer.{layer}", branch, f"{stack}.block.{block}.layer.{layer}")

    def attention(stack: str) -> str:
        table = f"/{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"
        return f"layer_norm SelfAttention.q SelfAttention.k SelfAttention.v {table} SelfAttention.o"

    feed_forward = "layer_norm DenseReluDense.wi DenseReluDense.wo"
    return joined(
        *((part("encoder", i, 0, attention("encoder")), part("encoder", i, 1, feed_forward)) for i in range(encoder_layers)),
        *(
            (
                part("decoder", i, 0, attention("decoder")),
                part("decoder", i, 1, "layer_norm EncDecAttention.q EncDecAttention.o"),
                part("decoder", i, 2, feed_forward),
            )
            for i in range(decoder_layers)
        ),
    )


def efficient(block: int) -> Site:
    """EfficientNet: the add lies in the block's last part, the branch begins in its first."""
    return identity(
        f"encoder.blocks.{block}.projection",
        "expansion.expand_conv expansion.expand_bn depthwise_conv.depthwise_conv depthwise_conv.depthwise_norm "
        "squeeze_excite.reduce squeeze_excite.expand projection.project_conv projection.project_bn",
        f"encoder.blocks.{block}",
    )


def mobilenet(layer: int) -> Site:
    """An inverted residual."""
    return identity(
        f"layer.{layer}",
        "expand_1x1.convolution expand_1x1.normalization conv_3x3.convolution conv_3x3.normalization "
        "reduce_1x1.convolution reduce_1x1.normalization",
        f"layer.{layer}",
    )


def bloom(layers: int) -> tuple[Site, ...]:
    """BLOOM: attention and MLP are given the residual and hold the adds, the norms lie outside of them."""
    return joined(
        *(
            (
                identity(f"h.{i}.self_attention", "input_layernorm self_attention.query_key_value self_attention.dense", f"h.{i}"),
                identity(f"h.{i}.mlp", "post_attention_layernorm mlp.dense_h_to_4h mlp.dense_4h_to_h", f"h.{i}"),
            )
            for i in range(layers)
        )
    )


def perceiver() -> tuple[Site, ...]:
    """Perceiver: latents (a parameter) read the inputs, then themselves; attention and layer hold an add each."""

    def part(path: str) -> tuple[Site, ...]:
        own = "attention.self.key attention.self.value " if "cross" not in path else ""
        return (
            identity(
                f"{path}.attention",
                f"attention.self.layernorm1 attention.self.query {own}attention.output.dense",
                path,
            ),
            identity(path, "layernorm mlp.dense1 mlp.dense2", path),
        )

    return part("encoder.cross_attention") + part("encoder.self_attends.0") + part("encoder.self_attends.1")


def funnel() -> tuple[Site, ...]:
    """Funnel: the second block's query is pooled before it is both skip and query; keys and values come from before the pooling."""
    first, second = "encoder.blocks.0.0", "encoder.blocks.1.0"
    return (
        identity(f"{first}.attention", "q_head k_head v_head . post_proj", f"{first}.attention"),
        identity(f"{first}.ffn", "linear_1 linear_2", f"{first}.ffn"),
        identity(f"{second}.attention", "q_head . post_proj", f"{second}.attention"),
        identity(f"{second}.ffn", "linear_1 linear_2", f"{second}.ffn"),
    )


def xlnet(layers: int) -> tuple[Site, ...]:
    """XLNet: attention's weights are bare parameters of the module that holds the add."""
    return joined(
        *(
            (
                identity(f"layer.{i}.rel_attn", "rel_attn", f"layer.{i}"),
                identity(f"layer.{i}.ff", "ff.layer_1 ff.layer_2", f"layer.{i}"),
            )
            for i in range(layers)
        )
    )


def mpnet(layers: int) -> tuple[Site, ...]:
    """MPNet: the one table of position biases, owned by the encoder, is added to the scores of every layer, which is no skip."""
    return joined(
        *(
            (
                identity(
                    f"encoder.layer.{i}.attention",
                    "attention.attn.q attention.attn.k attention.attn.v /encoder.relative_attention_bias attention.attn.o",
                    f"encoder.layer.{i}",
                ),
                identity(f"encoder.layer.{i}.output", "intermediate.dense output.dense", f"encoder.layer.{i}"),
            )
            for i in range(layers)
        )
    )


def xlm(layers: int) -> tuple[Site, ...]:
    """XLM: the model itself holds all adds. Its positions take the words' shape, not their values: no site."""
    return joined(
        *(
            (
                identity(f"attentions{suffix}", "q_lin k_lin v_lin out_lin", f"attentions.{i}"),
                identity(f"ffns{suffix}", "lin1 lin2", f"ffns.{i}"),
            )
            for i, suffix in enumerate("" if call == 1 else f"#{call}" for call in range(1, layers + 1))
        )
    )


def focalnet(layer: str) -> tuple[Site, ...]:
    """FocalNet: contexts, each made from the one before, are weighted by gates and summed inside the branch: no site there."""
    return (
        identity(
            f"{layer}.modulation",
            (
                "norm1 modulation.projection_in modulation.focal_layers.0.0 modulation.focal_layers.1.0 "
                "modulation.projection_context modulation.projection_out ."
            ),
            layer,
        ),
        identity(f"{layer}.mlp", "norm2 mlp.fc1 mlp.fc2 .", layer),
    )


def detr() -> tuple[Site, ...]:
    """DETR: positions are added to queries and keys in every layer, which is no skip. Its batch norms are frozen, made of buffers.

    The first decoder layer's skip tensor is made of zeros; by the rule it is one like any other.
    """
    backbone = "backbone.model.encoder.stages"
    attention = "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj"
    return (
        identity(f"{backbone}.0.layers.0", "layer.0.convolution layer.1.convolution", f"{backbone}.0.layers.0"),
        projection(
            f"{backbone}.1.layers.0", "layer.0.convolution layer.1.convolution", "shortcut.convolution", f"{backbone}.1.layers.0"
        ),
        *per_layer("encoder.layers.{}", 1, ("self_attn", attention), ("mlp", "mlp.fc1 mlp.fc2")),
        *per_layer(
            "decoder.layers.{}",
            2,
            ("self_attn", f"/query_position_embeddings {attention}"),
            ("encoder_attn", "/query_position_embeddings encoder_attn.q_proj encoder_attn.o_proj"),
            ("mlp", "mlp.fc1 mlp.fc2"),
        ),
    )


CONFORMER = (
    ("ffn1", "ffn1_layer_norm ffn1.intermediate_dense ffn1.output_dense"),
    (
        "self_attn",
        (
            "self_attn_layer_norm self_attn.linear_q self_attn.linear_k self_attn.linear_v self_attn self_attn.linear_pos "
            "self_attn.linear_out"
        ),
    ),
    (
        "conv_module",
        (
            "conv_module.layer_norm conv_module.pointwise_conv1 conv_module.depthwise_conv conv_module.batch_norm "
            "conv_module.pointwise_conv2"
        ),
    ),
    ("ffn2", "ffn2_layer_norm ffn2.intermediate_dense ffn2.output_dense"),
)
WAV2VEC2 = (
    ("attention", "attention.q_proj attention.k_proj attention.v_proj attention.out_proj"),
    ("feed_forward", "feed_forward.intermediate_dense feed_forward.output_dense"),
)
# wav2vec 2.0 adds a convolution of its input to it, as a position embedding: structurally a residual add. Its weight is normalised.
POSITION_CONVOLUTION = identity("encoder", "pos_conv_embed.conv", "encoder")

CASES = (
    Case(
        "resnet_basic",
        model(
            "ResNetModel",
            embedding_size=8,
            hidden_sizes=[8, 16],
            depths=[2, 2],
            layer_type="basic",
            downsample_in_first_stage=False,
        ),
        keywords=pixels(16),
        sites=(basic(0, 0), basic(0, 1), basic(1, 0, True), basic(1, 1)),
    ),
    Case(
        "resnet_bottleneck",
        model("ResNetForImageClassification", embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2], layer_type="bottleneck"),
        keywords=lambda: pixels(16)() | {"labels": torch.tensor([0, 1])},
        sites=(
            residual_conv("resnet.encoder.stages.0.layers.0", 3, True),
            residual_conv("resnet.encoder.stages.1.layers.0", 3, True),
            residual_conv("resnet.encoder.stages.1.layers.1", 3, False),
        ),
    ),
    Case(
        "regnet",
        model("RegNetModel", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], groups_width=4, layer_type="y"),
        keywords=pixels(),
        sites=(
            regnet_y("encoder.stages.0.layers.0", True),
            regnet_y("encoder.stages.1.layers.0", True),
            regnet_y("encoder.stages.1.layers.1", False),
        ),
    ),
    Case(
        "convnext",
        model("ConvNextModel", num_stages=2, depths=[2, 1], hidden_sizes=[8, 16], drop_path_rate=0.1),
        keywords=pixels(16),
        sites=tuple(
            identity(layer, "dwconv layernorm pwconv1 pwconv2 .", layer)
            for layer in ("encoder.stages.0.layers.0", "encoder.stages.0.layers.1", "encoder.stages.1.layers.0")
        ),
    ),
    Case(
        "convnextv2",
        model("ConvNextV2Model", num_stages=2, depths=[1, 1], hidden_sizes=[8, 16]),
        keywords=pixels(16),
        sites=tuple(
            identity(layer, "dwconv layernorm pwconv1 grn pwconv2", layer)
            for layer in ("encoder.stages.0.layers.0", "encoder.stages.1.layers.0")
        ),
    ),
    Case(
        # A tenth of the widths, rounded to 8s: 8 up to layer 8, then 16, then 32 after layer 15. Layers 0, 2, 5, 12 have strides.
        "mobilenet_v2",
        model("MobileNetV2Model", depth_multiplier=0.1, min_depth=8, expand_ratio=2),
        keywords=pixels(32),
        sites=tuple(mobilenet(layer) for layer in (1, 3, 4, 6, 7, 8, 10, 11, 13, 14)),
    ),
    Case(
        "efficientnet",
        model(
            "EfficientNetModel",
            image_size=16,
            hidden_dim=1280,
            width_coefficient=1.0,
            depth_coefficient=1.0,
            in_channels=[32, 8],
            out_channels=[8, 16],
            kernel_sizes=[3, 3],
            strides=[1, 2],
            num_block_repeats=[2, 3],
            expand_ratios=[2, 2],
            depthwise_padding=[],
        ),
        keywords=pixels(16),
        sites=(efficient(1), efficient(3), efficient(4)),
    ),
    Case(
        "poolformer",
        model(
            "PoolFormerModel",
            num_encoder_blocks=2,
            depths=[1, 1],
            hidden_sizes=[8, 16],
            patch_sizes=[3, 3],
            strides=[2, 2],
            padding=[1, 1],
        ),
        keywords=pixels(16),
        sites=joined(
            *(
                (
                    identity(f"{layer}.before_norm", "before_norm .", layer),
                    identity(f"{layer}.output", "after_norm output.conv1 output.conv2 .", layer),
                )
                for layer in ("encoder.block.0.0", "encoder.block.1.0")
            )
        ),
    ),
    Case(
        "swin",
        model("SwinModel", image_size=16, patch_size=2, embed_dim=8, depths=[2, 1], num_heads=[2, 2], window_size=4),
        keywords=pixels(16),
        sites=per_layer("encoder.layers.0.blocks.{}", 2, *SWIN) + per_layer("encoder.layers.1.blocks.{}", 1, *SWIN),
    ),
    Case("vit", model("ViTModel", **VISION), keywords=pixels(), sites=per_layer("layers.{}", 2, *VIT)),
    Case("deit", model("DeiTModel", **VISION), keywords=pixels(), sites=per_layer("layers.{}", 2, *VIT)),
    Case(
        "beit",
        model("BeitModel", use_relative_position_bias=False, layer_scale_init_value=0.1, **VISION),
        keywords=pixels(),
        sites=per_layer("layers.{}", 2, *((name, f"{branch} .") for name, branch in VIT)),
    ),
    Case(
        "dinov2",
        model("Dinov2Model", mlp_ratio=2, drop_path_rate=0.1, **{k: v for k, v in VISION.items() if k != "intermediate_size"}),
        keywords=pixels(),
        sites=per_layer(
            "encoder.layer.{}",
            2,
            ("layer_scale1", "norm1 attention.q_proj attention.k_proj attention.v_proj attention.o_proj layer_scale1"),
            ("layer_scale2", "norm2 mlp.fc1 mlp.fc2 layer_scale2"),
        ),
    ),
    Case(
        "segformer",
        model(
            "SegformerModel",
            num_encoder_blocks=2,
            depths=[1, 1],
            hidden_sizes=[8, 16],
            num_attention_heads=[1, 2],
            sr_ratios=[2, 1],
            patch_sizes=[3, 3],
            strides=[2, 2],
            mlp_ratios=[2, 2],
        ),
        keywords=pixels(16),
        sites=joined(
            per_layer(
                "stages.0.blocks.{}",
                1,
                (
                    "attention",
                    (
                        "layernorm_before attention.q_proj attention.sequence_reduction.sequence_reduction "
                        "attention.sequence_reduction.layer_norm attention.k_proj attention.v_proj attention.o_proj"
                    ),
                ),
                ("mlp", "layernorm_after mlp.fc1 mlp.dwconv.dwconv mlp.fc2"),
            ),
            per_layer(
                "stages.1.blocks.{}", 1, ("attention", VIT_ATTENTION), ("mlp", "layernorm_after mlp.fc1 mlp.dwconv.dwconv mlp.fc2")
            ),
        ),
    ),
    Case(
        "focalnet",
        model(
            "FocalNetModel",
            image_size=16,
            patch_size=2,
            embed_dim=8,
            depths=[1, 1],
            hidden_sizes=[8, 16],
            focal_levels=[2, 2],
            focal_windows=[3, 3],
            use_layerscale=True,
        ),
        keywords=pixels(16),
        sites=focalnet("encoder.stages.0.layers.0") + focalnet("encoder.stages.1.layers.0"),
    ),
    Case(
        "detr",
        model(
            "DetrModel",
            use_timm_backbone=False,
            backbone_config={
                "model_type": "resnet",
                "embedding_size": 8,
                "hidden_sizes": [8, 16],
                "depths": [1, 1],
                "layer_type": "basic",
                "out_features": ["stage2"],
            },
            d_model=16,
            encoder_layers=1,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            num_queries=3,
        ),
        keywords=pixels(32),
        sites=detr(),
    ),
    Case(
        "gpt2_with_loss",
        model("GPT2LMHeadModel", n_embd=16, n_layer=2, n_head=2, n_positions=16, **SPECIAL),
        keywords=ids_and_labels,
        sites=per_layer("transformer.h.{}", 2, *GPT2),
    ),
    Case(
        "gpt2_eager_attention",
        model("GPT2Model", n_embd=16, n_layer=2, n_head=2, n_positions=16, attn_implementation="eager", **SPECIAL),
        keywords=ids,
        sites=per_layer("h.{}", 2, *GPT2),
    ),
    Case("llama", model("LlamaModel", num_key_value_heads=1, **TEXT), keywords=ids, sites=per_layer("layers.{}", 2, *LLAMA)),
    Case(
        "llama_with_loss",
        model("LlamaForCausalLM", **TEXT),
        keywords=ids_and_labels,
        sites=per_layer("model.layers.{}", 2, *LLAMA),
    ),
    Case("mistral", model("MistralModel", num_key_value_heads=1, **TEXT), keywords=ids, sites=per_layer("layers.{}", 2, *LLAMA)),
    Case("qwen2", model("Qwen2Model", num_key_value_heads=1, **TEXT), keywords=ids, sites=per_layer("layers.{}", 2, *LLAMA)),
    Case(
        "qwen3",
        model("Qwen3Model", num_key_value_heads=1, head_dim=8, **TEXT),
        keywords=ids,
        sites=per_layer(
            "layers.{}",
            2,
            (
                "self_attn",
                LLAMA_ATTENTION.replace("q_proj", "q_proj self_attn.q_norm").replace("k_proj", "k_proj self_attn.k_norm"),
            ),
            LLAMA[1],
        ),
    ),
    Case(
        "gemma2",
        model("Gemma2Model", num_key_value_heads=1, head_dim=8, **TEXT),
        keywords=ids,
        sites=per_layer(
            "layers.{}",
            2,
            ("post_attention_layernorm", f"{LLAMA_ATTENTION} post_attention_layernorm"),
            ("post_feedforward_layernorm", f"pre_feedforward_layernorm {GATED} post_feedforward_layernorm"),
        ),
    ),
    Case(
        "mixtral",
        model("MixtralModel", num_key_value_heads=1, num_local_experts=3, **TEXT),
        keywords=ids,
        sites=per_layer("layers.{}", 2, LLAMA[0], ("mlp", "post_attention_layernorm mlp.gate mlp.experts")),
    ),
    Case(
        "cohere",
        model("CohereModel", **TEXT),
        keywords=ids,
        sites=per_layer("layers.{}", 2, ("self_attn", LLAMA_ATTENTION), ("mlp", f"input_layernorm {GATED}")),
    ),
    Case("bert", model("BertModel", **TEXT), keywords=ids, sites=bert(2)),
    Case(
        "bert_classifier",
        model("BertForSequenceClassification", **TEXT),
        keywords=lambda: ids() | {"labels": torch.tensor([0, 1])},
        sites=bert(2, "bert.encoder.layer"),
    ),
    Case("roberta", model("RobertaModel", max_position_embeddings=16, **TEXT), keywords=ids, sites=bert(2)),
    Case("electra", model("ElectraModel", embedding_size=8, **TEXT), keywords=ids, sites=bert(2)),
    Case(
        "distilbert",
        model("DistilBertModel", dim=16, n_layers=2, n_heads=2, hidden_dim=32, vocab_size=30),
        keywords=ids,
        sites=per_layer(
            "transformer.layer.{}",
            2,
            ("attention", "attention.q_lin attention.k_lin attention.v_lin attention.out_lin"),
            ("ffn", "ffn.lin1 ffn.lin2"),
        ),
    ),
    Case("albert", model("AlbertModel", embedding_size=8, **(TEXT | {"num_hidden_layers": 3})), keywords=ids, sites=albert(3)),
    Case(
        "deberta_v2",
        model(
            "DebertaV2Model",
            relative_attention=True,
            pos_att_type=["c2p", "p2c"],
            share_att_key=True,
            position_buckets=4,
            max_relative_positions=8,
            **TEXT,
        ),
        keywords=ids,
        sites=deberta(2),
    ),
    Case("xlnet", model("XLNetModel", d_model=16, n_layer=2, n_head=2, d_inner=32, **SPECIAL), keywords=ids, sites=xlnet(2)),
    Case(
        "t5",
        model("T5Model", d_model=16, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=2, num_heads=2, **SPECIAL),
        keywords=ids_for_both,
        sites=t5(2, 2),
    ),
    Case(
        # One sequence, so that the position bias has the scores' very shape.
        "t5_eager_one_sequence",
        model(
            "T5Model",
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_decoder_layers=2,
            num_heads=2,
            attn_implementation="eager",
            **SPECIAL,
        ),
        keywords=lambda: {name: tokens[:1] for name, tokens in ids_for_both().items()},
        sites=t5(2, 2),
    ),
    Case("mpnet", model("MPNetModel", **TEXT), keywords=ids, sites=mpnet(2)),
    Case("xlm", model("XLMModel", emb_dim=16, n_layers=2, n_heads=2, **SPECIAL), keywords=ids, sites=xlm(2)),
    Case(
        "bart",
        model("BartModel", max_position_embeddings=16, **SEQ2SEQ),
        keywords=ids_for_both,
        sites=per_layer("encoder.layers.{}", 1, *BART_ENCODER) + per_layer("decoder.layers.{}", 2, *BART_DECODER),
    ),
    Case(
        "whisper",
        model("WhisperModel", num_mel_bins=4, max_source_positions=8, max_target_positions=8, **SEQ2SEQ),
        keywords=lambda: {"input_features": torch.randn(2, 4, 16), "decoder_input_ids": torch.randint(4, 30, (2, 5))},
        sites=per_layer("encoder.layers.{}", 1, *PRENORM_BART_ENCODER) + per_layer("decoder.layers.{}", 2, *WHISPER_DECODER),
    ),
    Case(
        "opt",
        model(
            "OPTModel",
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=32,
            max_position_embeddings=16,
            word_embed_proj_dim=16,
            **SPECIAL,
        ),
        keywords=ids,
        sites=per_layer("decoder.layers.{}", 2, *PRENORM_BART_ENCODER),
    ),
    Case("bloom", model("BloomModel", hidden_size=16, n_layer=2, n_head=2, **SPECIAL), keywords=ids, sites=bloom(2)),
    Case(
        "gpt_neox_parallel",
        model("GPTNeoXModel", use_parallel_residual=True, **TEXT),
        keywords=ids,
        sites=per_layer(
            "layers.{}",
            2,
            (
                "",
                (
                    "input_layernorm attention.query_key_value attention.dense post_attention_layernorm mlp.dense_h_to_4h "
                    "mlp.dense_4h_to_h"
                ),
            ),
        ),
    ),
    Case(
        "gpt_neox_sequential",
        model("GPTNeoXModel", use_parallel_residual=False, **TEXT),
        keywords=ids,
        sites=per_layer(
            "layers.{}",
            2,
            ("attention", "input_layernorm attention.query_key_value attention.dense"),
            ("mlp", "post_attention_layernorm mlp.dense_h_to_4h mlp.dense_4h_to_h"),
        ),
    ),
    Case(
        "gptj",
        model("GPTJModel", n_embd=16, n_layer=2, n_head=2, n_positions=16, rotary_dim=4, **SPECIAL),
        keywords=ids,
        sites=per_layer("h.{}", 2, ("", "ln_1 attn.q_proj attn.k_proj attn.v_proj attn.out_proj mlp.fc_in mlp.fc_out")),
    ),
    Case(
        "falcon_parallel",
        model("FalconModel", hidden_size=16, num_hidden_layers=2, num_attention_heads=2, parallel_attn=True, **SPECIAL),
        keywords=ids,
        sites=per_layer(
            "h.{}",
            2,
            ("", "input_layernorm self_attention.query_key_value self_attention.dense mlp.dense_h_to_4h mlp.dense_4h_to_h"),
        ),
    ),
    Case(
        "falcon_sequential",
        model(
            "FalconModel", hidden_size=16, num_hidden_layers=2, num_attention_heads=2, parallel_attn=False, alibi=True, **SPECIAL
        ),
        keywords=ids,
        sites=per_layer(
            "h.{}",
            2,
            ("self_attention", "input_layernorm self_attention.query_key_value self_attention.dense"),
            ("mlp", "post_attention_layernorm mlp.dense_h_to_4h mlp.dense_4h_to_h"),
        ),
    ),
    Case("phi", model("PhiModel", **TEXT), keywords=ids, sites=per_layer("layers.{}", 2, ("", PARALLEL_PHI))),
    Case(
        "mamba",
        model("MambaModel", hidden_size=16, num_hidden_layers=2, state_size=4, **SPECIAL),
        keywords=ids,
        sites=per_layer("layers.{}", 2, ("", "norm mixer.in_proj mixer.conv1d mixer.x_proj mixer.dt_proj mixer mixer.out_proj")),
    ),
    Case(
        "mamba2",
        model(
            "Mamba2Model",
            hidden_size=16,
            num_hidden_layers=2,
            state_size=4,
            num_heads=4,
            head_dim=8,
            n_groups=1,
            chunk_size=4,
            **SPECIAL,
        ),
        keywords=ids,
        sites=per_layer("layers.{}", 2, ("", "norm mixer.in_proj mixer.conv1d mixer mixer.norm mixer.out_proj")),
    ),
    Case(
        "rwkv",
        model("RwkvModel", hidden_size=16, num_hidden_layers=2, context_length=16, **SPECIAL),
        keywords=ids,
        sites=per_layer(
            "blocks.{}",
            2,
            ("attention", "ln1 attention attention.key attention.value attention.receptance attention.output"),
            ("feed_forward", "ln2 feed_forward feed_forward.key feed_forward.value feed_forward.receptance"),
        ),
    ),
    Case(
        "wav2vec2",
        model("Wav2Vec2Model", **SPEECH),
        keywords=waves,
        sites=(POSITION_CONVOLUTION, *per_layer("encoder.layers.{}", 2, *WAV2VEC2)),
    ),
    Case(
        "wav2vec2_conformer",
        model("Wav2Vec2ConformerModel", position_embeddings_type="relative", conv_depthwise_kernel_size=3, **SPEECH),
        keywords=waves,
        sites=per_layer("encoder.layers.{}", 2, *CONFORMER),
    ),
    Case(
        "clip",
        model(
            "CLIPModel",
            text_config=TEXT | {"max_position_embeddings": 8},
            vision_config=VISION,
            projection_dim=8,
        ),
        keywords=lambda: ids() | pixels()(),
        sites=per_layer("vision_model.encoder.layers.{}", 2, *CLIP_LAYER)
        + per_layer("text_model.encoder.layers.{}", 2, *CLIP_LAYER),
    ),
    Case(
        "perceiver",
        model(
            "PerceiverModel",
            num_latents=4,
            d_latents=16,
            d_model=16,
            num_blocks=1,
            num_self_attends_per_block=2,
            num_self_attention_heads=2,
            num_cross_attention_heads=2,
        ),
        keywords=lambda: {"inputs": torch.randn(2, 5, 16)},
        sites=perceiver(),
    ),
    Case(
        "funnel",
        model("FunnelBaseModel", block_sizes=[1, 1], d_model=16, n_head=2, d_head=8, d_inner=32, vocab_size=30),
        keywords=ids,
        sites=funnel(),
    ),
)
