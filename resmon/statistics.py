"""What the sums that a record holds of a block come to: the block's statistics, and how several ranks' values become one.

The rows of a flight hold sums, counts and extremes (records.BLOCK_MERGES), so that they can be merged over ranks and steps; nothing
is a mean of ratios. With skip operand s, branch operand f and their sum y at a residual add, all over the elements of one step:

- skip_rms, branch_rms, output_rms: root of the mean square of s, f and y.
- branch_skip_ratio: |f| / |s|. Where samples may lose their whole branch (stochastic depth, Huang et al., arXiv 1603.09382), over
  the samples that kept it; the sums of all samples would be of two kinds of samples. A kept branch is as it comes to the add, that
  is, already divided by the probability to be kept where the model does that.
- branch_skip_ratio_median: the median of |f| / |s| at sampled positions, each a vector of channels (the mean of the ranks' and
  micro-batches' medians). A ratio of sums is that of a few positions where attention sinks have activations 100,000 times the
  median (Sun et al., arXiv 2402.17762); this one is that of the usual position.
- alignment: the cosine of s and f, <s, f> / (|s| |f|). Negative where the branch takes back what the stream holds.
- growth: |y| / |s|: what the block multiplies the stream's root mean square with. 1.045 on average in GPT-2-XL (Heimersheim and
  Turner, "Residual stream norms grow exponentially over the forward pass", 2023).
- keep_ratio: the share of samples whose branch was kept, where a random operation may drop it.
- dead_unit_ratio: the share of units that feed the branch's last linear map or convolution and have been exactly zero at all of
  the last 300 sampled positions: a unit that is active at 1 % of the positions (the usual rule for a dead ReLU) is idle that long
  in 5 % of the cases.
- output_peak: the largest |y|.
- headroom: how often the largest number among s, f and y could be doubled until its dtype overflows, log2(largest finite number /
  largest magnitude), the least of the three; only of those that have 16 bits. float16 ends at 65,504.
- activation_bytes: what autograd keeps for the backward pass between s and the add, in one forward pass of the size that the run
  had when it was last looked at: each storage once, to the block that finishes first, parameters and buffers left out. Of several
  ranks it is the sum.
- norm_gap: how far the running statistics that batch norms of the branch and the projection evaluate with are from the batches that
  they train on, in standard deviations: 0 where evaluation normalises as training does, 1 where it makes of every channel a
  constant, or shifts it by a standard deviation. Root mean square over channels; capture/probes/norms.py has the formula. With
  batches of n independent values a channel it is about sqrt(1.5 / n) by chance alone. Infinite where a running statistic is not
  finite.
- norm_variance: the largest running variance of a channel there; norm_collapsed_ratio: the share of channels whose running variance
  is not above the eps that is added to it.
- gradient_norm: the L2 norm of the gradients of the parameters on the way from s to the add; output_gradient_norm: that of the
  loss gradient at y.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from resmon.records import BLOCK_COUNTS, BLOCK_MERGES, BLOCK_VALUES, Bools, Floats, Ints

STATISTICS = (
    "skip_rms",
    "branch_rms",
    "branch_skip_ratio",
    "gradient_norm",
    "output_gradient_norm",
    "output_rms",
    "branch_skip_ratio_median",
    "alignment",
    "growth",
    "keep_ratio",
    "dead_unit_ratio",
    "output_peak",
    "headroom",
    "activation_bytes",
    "norm_gap",
    "norm_variance",
    "norm_collapsed_ratio",
)

_VALUE = {name: i for i, name in enumerate(BLOCK_VALUES)}
_SAMPLES, _KEPT = BLOCK_COUNTS.index("samples"), BLOCK_COUNTS.index("kept")
_REDUCTIONS = {"largest": np.fmax, "smallest": np.fmin}


class Column(NamedTuple):
    """Numbers of which some may not be there; what stands in the place of one that is not present means nothing."""

    values: Floats
    present: Bools


def merge(values: Floats, present: Bools, begins: Ints) -> tuple[Floats, Bools]:
    """One from each run of rows [N, len(BLOCK_VALUES), ...], the runs beginning at `begins`."""
    anywhere: Bools = np.logical_or.reduceat(present, begins)
    merged: Floats = np.add.reduceat(np.where(present, values, 0.0), begins)
    for name, how in BLOCK_MERGES.items():
        i = _VALUE[name]
        if how == "mean":
            merged[:, i] /= np.maximum(np.add.reduceat(present[:, i], begins, dtype=np.int64), 1)
        elif how != "sum":
            merged[:, i] = _REDUCTIONS[how].reduceat(np.where(present[:, i], values[:, i], np.nan), begins)
    return merged, anywhere


def statistics(values: Floats, present: Bools, elements: Ints, counts: Ints) -> dict[str, Column]:
    """The STATISTICS of blocks, [...] each.

    `values`, `present` and `elements` are [len(BLOCK_VALUES), ...], `counts` [len(BLOCK_COUNTS), ...]; `elements` are those that
    each value is of: of ranks that lack it, none.
    """

    def of(name: str) -> Column:
        return Column(values[_VALUE[name]], present[_VALUE[name]])

    def root(square: Column) -> Column:
        return Column(np.sqrt(square.values), square.present)

    def mean(name: str) -> Column:
        number = elements[_VALUE[name]]
        square = of(name)
        return Column(square.values / number, square.present & (number > 0))

    def over(above: Column, below: Floats, where: Bools) -> Column:
        return Column(above.values / below, above.present & where & (below != 0))

    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        skip, branch, output, kept = map(of, ("skip_square", "branch_square", "output_square", "kept_square"))
        both = skip.present & branch.present
        samples = counts[_SAMPLES]
        found = {
            "skip_rms": root(mean("skip_square")),
            "branch_rms": root(mean("branch_square")),
            "branch_skip_ratio": root(over(branch, np.where(kept.present, kept.values, skip.values), both)),
            "gradient_norm": root(of("gradient_square")),
            "output_gradient_norm": root(of("output_gradient_square")),
            "output_rms": root(mean("output_square")),
            "branch_skip_ratio_median": of("position_ratio"),
            "alignment": over(of("product"), np.sqrt(skip.values) * np.sqrt(branch.values), both),
            "growth": root(over(output, skip.values, skip.present)),
            "keep_ratio": Column(counts[_KEPT] / samples, samples > 0),
            "dead_unit_ratio": of("dead"),
            "output_peak": of("peak"),
            "headroom": Column(-np.log2(of("fill").values), of("fill").present & (of("fill").values > 0)),
            "activation_bytes": of("activation_bytes"),
            "norm_gap": of("norm_gap"),
            "norm_variance": of("norm_variance"),
            "norm_collapsed_ratio": of("norm_collapsed"),
        }
    return {name: found[name] for name in STATISTICS}
