"""What the tests of capture share."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch

from resmon.capture.host import compiler, fetch
from resmon.capture.host.requirement import at_least
from tests.capture import loops


@pytest.fixture(autouse=True)
def nobody_watches_on() -> Iterator[None]:
    """What a test watched through `loops.watch` is not watched any more in the next test."""
    yield
    while loops.watching:
        loops.watching.pop().detach()


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Nothing is compiled when the test begins; once nothing is watched any more the compiler is as it was."""
    import torch._dynamo
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    yield
    while loops.watching:
        loops.watching.pop().detach()
    torch._dynamo.reset()
    assert not compiler.PAUSE and torch._dynamo.config.skip_nnmodule_hook_guards


@pytest.fixture
def two_threads() -> Iterator[None]:
    """torch, and what reads large tensors, compute in two threads, also where the tests are shared and each process has one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Main memory is taken for an accelerator: all is queued there, and its numbers are fetched."""
    monkeypatch.setattr(fetch, "is_here", lambda tensor: False)


# What older versions of torch do not give (docs/versions.md), and the tests that are of nothing else: parts of their names.
OLDER: tuple[tuple[bool, str, str], ...] = (
    (
        compiler.OBSERVES,
        "the blocks of compiled models are observed from torch 2.13 on",
        r"test_compiled\w*\.py|test_entrance\.py|test_(norms|inputs)\.py::test_compiled\[|::test_in_a_graph_|test_copies\.py.*\[compiled\]|test_backwards\.py::.*_compiled_|done_again_with_less.*-True\]|test_nonfinite\.py::test_a_compiled_model",
    ),
    (
        compiler.OBSERVES,
        "the other schedules of this torch wait for ever, or fail, without resmon too",
        r"test_a_pipeline_is_as_one_process\[(?!gpipe\])",
    ),
    (
        at_least(torch.__version__, (2, 8)),
        "this torch may wait for ever where a process group ends (pytorch/pytorch#154976)",
        r"::test_norms_are_without_the_scale\[ShardedGradScaler-",
    ),
    (
        hasattr(torch._C._autograd.SavedTensor, "data"),
        "this torch does not show what autograd keeps",
        r"test_activations\.py|::test_checkpointed_blocks_are_counted_once|::test_a_run_that_never_came_to_the_end|::test_a_thousand_blocks|::test_the_block_is_named_and_the_batch",
    ),
    (
        hasattr(torch.compiler, "is_exporting"),
        "the exporter of torch 2.6 names parameters otherwise where hooks are",
        r"::test_exporting_a_watched_model_gives",
    ),
    (hasattr(torch.cpu.Stream, "record_event"), "this torch cannot shard on a CPU", r"test_sharding\.py|\[fsdp-"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for there, reason, pattern in OLDER:
        for item in items:
            if not there and re.search(pattern, item.nodeid):
                item.add_marker(pytest.mark.skip(reason=reason))
