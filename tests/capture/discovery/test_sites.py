"""`discover` against the zoo: the exact sites of every model, and no trace left in any of them."""

from __future__ import annotations

import importlib.util
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.modules.module as module_hooks
from torch import Tensor, nn

import resmon
from resmon.capture.discovery.sites import discover, look
from resmon.errors import ConfigurationError, DiscoveryError
from resmon.records import ResidualSite
from tests.zoo import HANDWRITTEN, attention, convolutional, recurrent, wiring
from tests.zoo.case import Case, Site


def hugging_face() -> tuple[Case, ...]:
    """The cases of `transformers`, none where it is not installed."""
    if importlib.util.find_spec("transformers") is None:
        return ()
    from tests.zoo import hugging

    return hugging.CASES


HUGGING = hugging_face()
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
GLOBAL_HOOKS = tuple(name for name in dir(module_hooks) if name.startswith("_global_") and name.endswith("_hooks"))


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Every test from the same random state; warnings of the models' own are not ours."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def as_written(sites: list[ResidualSite]) -> list[Site]:
    """What the zoo says of a site."""
    return [(site.name, site.kind, site.branch, site.skip) for site in sites]


def names(case: Case) -> str:
    """A test's id."""
    return case.name


@pytest.mark.parametrize("case", HANDWRITTEN, ids=names)
def test_handwritten_models_have_exactly_the_expected_sites(case: Case) -> None:
    sites, unseen = look(case.build(), case.inputs(), case.keywords())
    assert as_written(sites) == list(case.sites)
    assert unseen == []


@pytest.mark.skipif(not HUGGING, reason="transformers is not installed")
@pytest.mark.parametrize("case", HUGGING, ids=names)
def test_transformers_models_have_exactly_the_expected_sites(case: Case) -> None:
    sites, unseen = look(case.build(), case.inputs(), case.keywords())
    assert as_written(sites) == list(case.sites)
    assert unseen == []


@pytest.mark.parametrize("case", HANDWRITTEN, ids=names)
def test_what_a_site_says_beside_its_name_is_true_of_the_model(case: Case) -> None:
    model = case.build()
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters())
    sites = discover(model, *case.inputs(), **case.keywords())
    assert len({site.name for site in sites}) == len(sites)
    for site in sites:
        assert site.module in modules
        assert all(isinstance(size, int) and size > 0 for size in site.shape)
        assert site.parameters
        assert len(set(site.parameters)) == len(site.parameters)
        assert set(site.parameters) <= parameters.keys()
        owners = {name.rpartition(".")[0].split(".parametrizations")[0] for name in site.parameters}
        assert owners <= {*site.branch, *site.skip}
        assert site.model == ""
        assert site.observed in ("hooks", "mode")


def test_the_module_is_the_innermost_one_that_executes_the_add() -> None:
    sites = discover(convolutional.SuperResolution(), *convolutional.image())
    assert [(site.name, site.module, site.shape) for site in sites] == [
        ("body.0", "body.0", (2, 8, 8, 8)),
        ("body.1", "body.1", (2, 8, 8, 8)),
        ("body", "", (2, 8, 8, 8)),
    ]


def test_gradient_parameters_are_those_of_branch_and_projection() -> None:
    sites = discover(convolutional.PreActivationResNet(), *convolutional.image())
    assert set(sites[0].parameters) == {
        f"blocks.0.{name}" for name in ("bn1.weight", "bn1.bias", "conv1.weight", "bn2.weight", "bn2.bias", "conv2.weight")
    }
    assert "blocks.1.shortcut.weight" in sites[1].parameters
    assert "blocks.1.bn1.weight" not in sites[1].parameters  # it comes before the tensor where both sides start


def test_discovery_is_public() -> None:
    assert resmon.discover is discover


def test_a_second_discovery_finds_the_same() -> None:
    model = attention.NanoGPT()
    assert discover(model, *attention.tokens()) == discover(model, *attention.tokens())


def test_discovery_does_not_depend_on_the_callers_grad_mode() -> None:
    model = attention.NanoGPT()
    with torch.no_grad():
        found = discover(model, *attention.tokens())
        assert not torch.is_grad_enabled()
    assert found == discover(model, *attention.tokens())


def test_discovery_sees_the_mode_that_the_model_is_in() -> None:
    model = nn.Sequential(nn.Linear(12, 12), recurrent.EarlyReturnBlock(1.0), recurrent.EarlyReturnBlock(0.0))
    assert [site.name for site in discover(model, *recurrent.vector())] == ["2"]
    assert [site.name for site in discover(model.eval(), *recurrent.vector())] == ["1", "2"]


def test_sites_of_a_layer_that_was_dropped_appear_once_it_runs() -> None:
    model = recurrent.LayerDropNet(frozenset({0, 2}))
    assert [site.name for site in discover(model, *recurrent.vector())] == ["layers.1", "layers.3"]
    model.skipped = frozenset()
    assert [site.name for site in discover(model, *recurrent.vector())] == ["layers.0", "layers.1", "layers.2", "layers.3"]


def test_patterns_take_an_unrolled_cell_out() -> None:
    model = nn.Sequential(recurrent.UnrolledCell(), nn.Linear(2, 12), recurrent.ResidualMLPBlock())
    assert [site.name for site in discover(model, *recurrent.vector(), exclude=("*.cell",))] == ["2"]
    assert [site.name for site in discover(model, *recurrent.vector(), include=("*.cell",))] == ["0.cell", "0.cell@2", "0.cell@3"]
    # As `watch` takes them: several in one text, with commas.
    assert len(discover(model, *recurrent.vector(), include="nothing, *.cell")) == 3
    assert discover(model, *recurrent.vector(), include="nothing.*") == []
    with pytest.raises(ConfigurationError, match="include= takes module patterns, got 5"):
        discover(model, *recurrent.vector(), include=5)  # type: ignore[arg-type]


# Leaving no trace


def bits(tensor: Tensor) -> bytes:
    """A tensor's very bits, so that NaN equals NaN and -0 is not 0."""
    return tensor.detach().contiguous().view(torch.uint8 if tensor.ndim else tensor.dtype).numpy().tobytes()


def state(model: nn.Module) -> dict[str, Any]:
    """All of a model and of the process that a forward pass may touch, as values to compare."""
    numpy_state = np.random.get_state(legacy=False)["state"]
    return {
        "training": {name: module.training for name, module in model.named_modules()},
        "parameters": {name: (id(p), p._version, bits(p)) for name, p in model.named_parameters(remove_duplicate=False)},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "gradients": {name: None if p.grad is None else (id(p.grad), bits(p.grad)) for name, p in model.named_parameters()},
        "tensor hooks": {name: len(p._backward_hooks or {}) for name, p in model.named_parameters()},
        "buffers": {name: bits(b) for name, b in model.named_buffers()},
        "buffer objects": {name: id(b) for name, b in model.named_buffers()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "hooks": {name: {h: list(getattr(module, h)) for h in HOOKS} for name, module in model.named_modules()},
        "global hooks": {name: list(getattr(module_hooks, name)) for name in GLOBAL_HOOKS},
        "own forward": {name: "forward" in vars(module) for name, module in model.named_modules()},
        "torch": bits(torch.get_rng_state()),
        "python": random.getstate(),
        "numpy": (numpy_state["key"].tobytes(), numpy_state["pos"]),
        "modes": (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "autograd function": (vars(torch.autograd.Function).get("apply"), torch.autograd.Function.apply),
        "threads": torch.get_num_threads(),
    }


def with_gradients(model: nn.Module) -> nn.Module:
    """Every other trainable parameter with a gradient that must stay as it is."""
    for i, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
        if i % 2 == 0:
            parameter.grad = torch.randn_like(parameter)
    return model


@contextmanager
def nothing_changes(model: nn.Module) -> Iterator[None]:
    """Fails where `state` differs afterwards, and says in what."""
    before = state(model)
    yield
    after = state(model)
    assert {key: value for key, value in after.items() if value != before[key]} == {}


TRACELESS = (
    *(
        case
        for case in HANDWRITTEN
        if case.name
        in {
            "dice",
            "resnet_basic",
            "resnet_basic_eval",
            "preactivation_resnet",
            "torch_transformer_norm_first",
            "stochastic_depth_per_sample",
            "spectral_norm",
            "spectral_norm_by_hook",
            "weight_norm",
            "frozen_block_with_adapter",
            "checkpointed_reentrant",
            "checkpointed_non_reentrant",
            "custom_function_inline",
            "residual_lstm",
            "unrolled_cell",
            "vae",
            "bfloat16",
            "plain_mlp",
        }
    ),
    *(case for case in HUGGING if case.name in {"gpt2_with_loss", "resnet_bottleneck", "mixtral", "wav2vec2"}),
)


@pytest.mark.parametrize("case", TRACELESS, ids=names)
def test_no_trace_is_left(case: Case) -> None:
    model = with_gradients(case.build())
    inputs, keywords = case.inputs(), case.keywords()
    with nothing_changes(model):
        discover(model, *inputs, **keywords)


def test_no_trace_is_left_where_the_forward_raises() -> None:
    model = with_gradients(wiring.Raises())
    x = wiring.vector()
    with nothing_changes(model), pytest.raises(DiscoveryError) as caught:
        discover(model, *x)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert "size mismatch" in str(caught.value) or "shapes cannot be multiplied" in str(caught.value)


def test_no_trace_is_left_where_the_forward_is_interrupted() -> None:
    class Interrupted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dice = wiring.Dice()

        def forward(self, x: Tensor) -> Tensor:
            self.dice(x)
            raise KeyboardInterrupt

    model = Interrupted()
    x = wiring.vector()
    with nothing_changes(model), pytest.raises(KeyboardInterrupt):
        discover(model, *x)


def test_a_scripted_model_is_refused_rather_than_found_empty() -> None:
    model = nn.Sequential(nn.Linear(12, 12), recurrent.ResidualMLPBlock())
    for scripted in (torch.jit.script(model), torch.jit.trace(model, wiring.vector()[0])):
        with pytest.raises(DiscoveryError, match="the module it was made of"):
            discover(scripted, *wiring.vector())


def test_no_trace_is_left_where_inputs_are_missing() -> None:
    model = with_gradients(wiring.Dice())
    with nothing_changes(model), pytest.raises(DiscoveryError):
        discover(model)


def test_the_inputs_stay_as_they_were() -> None:
    x = torch.randn(3, 12, requires_grad=True)
    before = bits(x)
    discover(nn.Sequential(nn.Linear(12, 12), wiring.Residual(wiring.branch())), x)
    assert bits(x) == before
    assert x.grad is None
    assert x._version == 0
    assert not x._backward_hooks


def test_hooks_of_the_user_stay_and_run_once() -> None:
    model = nn.Sequential(nn.Linear(12, 12), wiring.Residual(wiring.branch()))
    calls: list[str] = []
    model[1].register_forward_hook(lambda *_: calls.append("after"))
    model[1].register_forward_pre_hook(lambda *_: calls.append("before"))
    x = wiring.vector()
    with nothing_changes(model):
        discover(model, *x)
    assert calls == ["before", "after"]


def test_training_goes_on_as_if_nothing_had_been_discovered() -> None:
    def losses(look: bool) -> list[float]:
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        model = wiring.Dice()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
        x = torch.randn(4, 12)
        seen = []
        for _ in range(4):
            if look:
                discover(model, x)
            loss = model(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
        return seen

    assert losses(look=True) == losses(look=False)


# Errors that say what to do


def test_missing_inputs_are_named_and_a_call_is_shown() -> None:
    with pytest.raises(DiscoveryError) as caught:
        discover(recurrent.Siamese())
    message = str(caught.value)
    assert "left" in message
    assert "right" in message
    assert "discover(model, left, right)" in message


def test_only_what_is_missing_is_named_as_missing() -> None:
    with pytest.raises(DiscoveryError, match="right"):
        discover(recurrent.Siamese(), *recurrent.vector())


def test_missing_keyword_inputs_are_shown_as_keywords() -> None:
    with pytest.raises(DiscoveryError) as caught:
        discover(wiring.DictNet())
    message = str(caught.value)
    assert "batch=" in message
    assert "discover(model, " in message


@pytest.mark.skipif(not HUGGING, reason="transformers is not installed")
def test_a_model_whose_forward_names_all_inputs_optional_still_explains_itself() -> None:
    build = next(case.build for case in HUGGING if case.name == "gpt2_with_loss")
    with pytest.raises(DiscoveryError) as caught:
        discover(build())
    message = str(caught.value)
    assert "input_ids" in message
    assert "discover(model" in message


def test_unknown_keywords_are_an_error_that_names_them() -> None:
    with pytest.raises(DiscoveryError, match="pixels"):
        discover(recurrent.PlainMLP(), *recurrent.vector(), pixels=1)


@pytest.mark.parametrize("build", [recurrent.PlainMLP, convolutional.DenseNet], ids=lambda build: build.__name__)
def test_a_plain_network_gives_an_empty_list_and_no_error(build: Callable[[], nn.Module]) -> None:
    inputs = recurrent.vector() if build is recurrent.PlainMLP else convolutional.features()
    assert discover(build(), *inputs) == []
