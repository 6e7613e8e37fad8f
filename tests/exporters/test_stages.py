from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resmon.exporters.stages import cut, depths, peers
from resmon.records import ResidualSite, SiteKind


def site(
    module: str, shape: tuple[int, ...] = (4, 8), kind: SiteKind = "identity", model: str = "", name: str = ""
) -> ResidualSite:
    return ResidualSite(name or module, module, kind, (), (), shape, model=model)


def resnet(*lengths: int) -> list[ResidualSite]:
    return [
        site(f"layer{stage}.{i}", (8, 64 << stage, 32 >> stage), "identity" if i else "projection")
        for stage, length in enumerate(lengths, 1)
        for i in range(length)
    ]


def names(sites: list[ResidualSite], most: int) -> list[str]:
    return [
        sites[piece[0]].name if len(piece) == 1 else f"{sites[piece[0]].name}..{sites[piece[-1]].name}"
        for piece in cut(sites, most)
    ]


def test_a_convolutional_network_has_a_stage_for_each_shape_and_the_projections_alone() -> None:
    assert names(resnet(3, 4, 6, 3), 8) == [
        "layer1.0",
        "layer1.1..layer1.2",
        "layer2.0",
        "layer2.1..layer2.3",
        "layer3.0",
        "layer3.1..layer3.5",
        "layer4.0",
        "layer4.1..layer4.2",
    ]


def test_a_transformer_is_one_stage_cut_into_equal_ranges() -> None:
    sites = [site(f"h.{i}", name=f"h.{i}.{part}") for i in range(64) for part in ("attn", "mlp")]
    assert names(sites, 1) == ["h.0.attn..h.63.mlp"]
    assert names(sites, 4) == ["h.0.attn..h.15.mlp", "h.16.attn..h.31.mlp", "h.32.attn..h.47.mlp", "h.48.attn..h.63.mlp"]
    assert [len(piece) for piece in cut(sites, 3)] == [43, 43, 42]


def test_adds_in_different_modules_of_a_layer_are_one_stage() -> None:
    sites = [site(f"encoder.layer.{i}.{part}") for i in range(12) for part in ("attention.output", "output")]
    assert names(sites, 1) == ["encoder.layer.0.attention.output..encoder.layer.11.output"]
    assert len(set(peers(sites).tolist())) == 2  # but what attention adds is not compared with what the MLP adds


def test_more_stages_than_there_is_room_for_are_taken_together() -> None:
    sites = [site(f"h.{i}", (4, 8 + i % 2)) for i in range(100)]
    assert [len(piece) for piece in cut(sites, 4)] == [25] * 4


def test_no_stage_reaches_over_two_models() -> None:
    sites = [site(f"h.{i // 2}", model="ab"[i % 2]) for i in range(20)]
    for most in (2, 3, 7):
        assert all(len({sites[i].model for i in piece}) == 1 for piece in cut(sites, most))


@given(
    st.lists(st.tuples(st.sampled_from(["h.0", "h.1", "x", "layer1.0", ""]), st.integers(0, 2), st.sampled_from("ab")), min_size=1),
    st.integers(2, 60),
)
def test_every_block_is_in_one_piece_in_its_order_and_the_pieces_are_few_enough(
    blocks: list[tuple[str, int, str]], most: int
) -> None:
    sites = [site(module, (size,), model=model, name=str(i)) for i, (module, size, model) in enumerate(blocks)]
    pieces = cut(sites, most)
    assert len(pieces) <= most
    assert sorted(i for piece in pieces for i in piece) == list(range(len(sites)))
    assert all(list(piece) == sorted(piece) for piece in pieces)
    assert cut(sites, most) == pieces


@pytest.mark.parametrize("module", ["", "0", ".", "h", "🤖.1"])
def test_any_path_has_a_stage(module: str) -> None:
    assert cut([site(module)], 1) == [(0,)]


def test_nothing_is_nothing() -> None:
    assert cut([], 3) == []


def test_depths_are_places_in_the_order_of_each_model() -> None:
    both = [site("h.0", model="g"), site("h.2", model="g"), site("h.0", model="d"), site("h.10", model="g"), site("h.1", model="d")]
    assert depths(both).values.tolist() == [0, 1, 0, 2, 1]
    assert depths([]).values.tolist() == []
