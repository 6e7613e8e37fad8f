"""Which block is it, and since when? For who looks for the cause: every block of a run in its depth, chosen ones closely, and the
run beside another one.
"""

from __future__ import annotations

from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models.dashboard import Dashboard

from resmon.assets.dashboards import marks, variables
from resmon.assets.dashboards.board import Row, board
from resmon.assets.dashboards.panel import (
    Field,
    Panel,
    Says,
    against,
    bars,
    columns,
    depths,
    in_order,
    lines,
    magnitudes,
    stacked,
)
from resmon.assets.dashboards.query import BLOCK, MODEL, RATE, RUN, RUN_B, by_depth, newest, over_machines, over_time, ratio, rows
from resmon.assets.links import BLOCK_BOARD, Links

SKIP = "run_model_block:resmon_block_skip_rms:sqrt_mean_squares"
BRANCH = "run_model_block:resmon_block_branch_rms:sqrt_mean_squares"
OUTPUT = "run_model_block:resmon_block_output_rms:sqrt_mean_squares"
GRADIENT = "run_model_block:resmon_block_gradient_norm:sqrt_sum_squares"
OUTPUT_GRADIENT = "run_model_block:resmon_block_output_gradient_norm:sqrt_sum_squares"

NO_BLOCKS = "No block of this run in the time that is shown."
NO_BLOCK = "None of these blocks has series of its own in the time that is shown; in a deep model its stage has."
PLACE = "at"  # the column that by_depth makes
ROW = "· {{block}}"  # rows of a heat map whose names all begin with a number would be put in the order of these


def debug(_links: Links) -> Dashboard:
    return board(
        BLOCK_BOARD,
        "resmon / Debug",
        "Every block of a run in its depth, chosen ones closely, and the run beside another one.",
        variables=[
            variables.datasource(),
            variables.model(),
            variables.run(),
            variables.block(),
            variables.other_run(),
        ],
        marks=[marks.ends_of_run(), marks.incidents(), marks.findings(), marks.checkpoints()],
        rows=[
            Row("Where in the depth of $run is it?", [
                ratio_by_depth(),
                ratios(),
                gradients(),
                streams(),
                output_gradients(),
                nonfinite(),
                differences(),
            ]),
            Row("What does $block do, beside the other blocks?", [
                operands(),
                ratio_of_chosen(),
                gradient_of_chosen(),
                output_gradient_of_chosen(),
                alignment(),
                dead_units(),
            ]),
            Row("What does $block put out?", [
                activations(),
            ]),
            Row("What does the run do, step by step?", [
                loss_by_step(),
                phases(),
                learning_rates(),
                group_gradients(),
                cost(),
                throughput(),
            ]),
        ],
        since="now-3h",
        refresh="30s",
    )  # fmt: skip


# ---- the depth -------------------------------------------------------------------------------------------------------------


def ratio_by_depth() -> Panel:
    def of(run: str) -> str:
        return f"max by (block, at) ({by_depth(ratio(run, MODEL, newest=True), run, newest_too=True)})"

    return bars(
        "How much does each block change the stream?",
        unit="short",
        says=Says(
            "The branch/skip ratio of every block in the order in which they run, newest step, and that of the other run beside "
            "it.",
            "neighbours are alike, and the two runs are. A ratio that falls with the depth is usual; 0 at the start is where "
            "blocks begin as the identity.",
            "a block that stands out is the one to choose above: far higher, its branch drowns the skip; near 0, it does nothing.",
        ),
        queries=[rows(of(RUN)), rows(f"max by (block) ({ratio(RUN_B, MODEL, newest=True)})")],
        empty=NO_BLOCKS,
        x="block",
        sort=PLACE,
        drop=("Time", "Time 1", "Time 2", "Time 3"),
        fields=[Field("Value #A", "$run"), Field("Value #B", "$run_b")],
    )


def _over_time(title: str, says: Says, expr: str, scheme: str) -> Panel:
    """A row for each block, in powers of ten."""
    query = over_time(by_depth(f"log10(({expr}) > 0)"), ROW)
    return depths(title, unit="none", says=says, queries=[query], empty=NO_BLOCKS, scheme=scheme)


def ratios() -> Panel:
    return _over_time(
        "Since when does a block's ratio stand out?",
        Says(
            "The branch/skip ratio of every block over time, from the first block at the top to the last; a colour step is a "
            "factor, as numbers are powers of ten.",
            "bands that change slowly, all blocks together.",
            "a row that changes alone is the block, and where it begins to is the time: a learning rate, a batch or a change of "
            "the code.",
        ),
        ratio(RUN, MODEL),
        "Turbo",
    )


def gradients() -> Panel:
    return _over_time(
        "Where do gradients explode or vanish?",
        Says(
            "The gradient norm of every block over time, from the first block at the top to the last, as powers of ten.",
            "all blocks within two or three powers of ten, and steady; early blocks of transformers have more.",
            "follow the colour from the last block upwards, as gradients come from there: the block where it changes is the one "
            "to choose.",
        ),
        over_machines(GRADIENT, RUN, MODEL),
        "Turbo",
    )


def streams() -> Panel:
    return _over_time(
        "Where does the stream grow?",
        Says(
            "The root mean square of what every block puts out, over time, from the first block at the top to the last, as "
            "powers of ten.",
            "it grows a little from block to block, and hardly with time.",
            "what grows with time ends in an overflow: see the runbook growing-residual, and which block begins.",
        ),
        over_machines(OUTPUT, RUN, MODEL),
        "Viridis",
    )


def output_gradients() -> Panel:
    return _over_time(
        "How far back does the loss reach?",
        Says(
            "The norm of the loss's gradient at every block's output, over time, from the first block at the top to the last, as "
            "powers of ten.",
            "much the same in all blocks: that is what skips are for.",
            "the block above which it fades is where the path is cut or scaled down; see the runbook vanishing-gradients.",
        ),
        over_machines(OUTPUT_GRADIENT, RUN, MODEL),
        "Viridis",
    )


def nonfinite() -> Panel:
    counted = f"max by (run, model, block) ({newest(f'resmon_block_nonfinite_steps_total{{{RUN},{MODEL}}}')}) > 0"
    return columns(
        "Blocks that were NaN or infinite",
        unit="short",
        says=Says(
            "In how many steps of its newest attempt each block was NaN or infinite, forward or backward, in the order in which "
            "they run.",
            "nothing stands here.",
            "what comes behind the block in which it began is so forward, what comes before it backward: the mark of the finding "
            "names that block, and resmon incidents RUN the operation.",
        ),
        queries=[rows(f"max by (block, at) ({by_depth(counted, newest_too=True)})")],
        size=(10, 10),
        empty="No block was non-finite.",
        fields=[Field("block", "Block"), Field("Value", "Non-finite steps", decimals=0)],
        drop=(PLACE,),
        order=("block", "Value"),
        steps=[in_order(PLACE)],
    )


def differences() -> Panel:
    def ratios(run: str) -> str:
        return f"max by (block) ({ratio(run, MODEL, newest=True)})"

    def gradients(run: str) -> str:
        return f"max by (block) ({over_machines(GRADIENT, run, MODEL, newest=True)})"

    return columns(
        "In which blocks do $run and $run_b differ?",
        unit="short",
        says=Says(
            "Every block's newest ratio and gradient norm in both runs, and how many times as large they are in this one.",
            "about 1 times, where both runs are at the same step.",
            "sort by the last columns: the blocks at both ends differ most. resmon diff tells whether that is more than chance.",
        ),
        queries=[
            rows(ratios(RUN)),
            rows(ratios(RUN_B)),
            rows(f"{ratios(RUN)}\n/ {ratios(RUN_B)}"),
            rows(gradients(RUN)),
            rows(gradients(RUN_B)),
            rows(f"{gradients(RUN)}\n/ {gradients(RUN_B)}"),
        ],
        size=(14, 10),
        empty=NO_BLOCKS,
        fields=[
            Field("block", "Block"),
            Field("Value #A", "Ratio"),
            Field("Value #B", "Ratio, other run"),
            Field("Value #C", "times", decimals=2),
            Field("Value #D", "Gradient"),
            Field("Value #E", "Gradient, other run"),
            Field("Value #F", "times as large", decimals=2),
        ],
        order=("block", "Value #A", "Value #B", "Value #C", "Value #D", "Value #E", "Value #F"),
        sort=("times", True),
    )


# ---- chosen blocks ---------------------------------------------------------------------------------------------------------


def _chosen(record: str) -> str:
    return over_machines(record, RUN, MODEL, BLOCK)


def _largest(of: str) -> str:
    """Of the steps of the last 60 seconds."""
    return _of_each(f"resmon_block_{of}_max")


def _of_each(metric: str, merged: str = "max") -> str:
    return f"{merged} by (run, model, block) ({metric}{{{RUN},{MODEL},{BLOCK}}})"


# What is usual among all blocks of the run: a tenth is below the first, a tenth above the last.
USUAL = {"lowest tenth": "0.1", "median of all": "0.5", "highest tenth": "0.9"}


def _beside_the_others(title: str, says: Says, chosen: str, of: str, every: str, *more: Dataquery) -> Panel:
    """The chosen blocks, their largest of 60 seconds of that quantity, and what is usual among `every` block."""
    return lines(
        title,
        unit="short",
        says=says,
        queries=[
            over_time(chosen, "{{block}}"),
            over_time(_largest(of), "{{block}}, largest"),
            *more,
            *(over_time(f"quantile({share}, {every})", name) for name, share in USUAL.items()),
        ],
        empty=NO_BLOCK,
        fields=[Field(name, colour="semi-dark-blue", dashed=True) for name in USUAL],
        logarithmic=True,
    )


def operands() -> Panel:
    return lines(
        "How large are skip, branch and output?",
        unit="short",
        says=Says(
            "Root mean squares of the chosen blocks' skip, branch and output.",
            "the branch is a fraction of the skip, and all three are steady.",
            "a branch that alone changes is the block's own doing; if the skip changes too, look at the blocks before it.",
        ),
        queries=[
            over_time(_chosen(SKIP), "{{block}} skip"),
            over_time(_chosen(BRANCH), "{{block}} branch"),
            over_time(_chosen(OUTPUT), "{{block}} output"),
        ],
        empty=NO_BLOCK,
        logarithmic=True,
    )


def ratio_of_chosen() -> Panel:
    return _beside_the_others(
        "Does the ratio leave what is usual?",
        Says(
            "The branch/skip ratio of the chosen blocks, the largest of 60 s, the median over positions, and what is usual among "
            "all blocks of the run.",
            "within the dashed lines, or steadily beside them; spikes of the largest are short.",
            "a ratio that rises while the loss is still fine precedes a spike of the loss: see the runbook spike-warning. Where "
            "ratio and median part, few positions have huge activations.",
        ),
        ratio(RUN, MODEL, BLOCK),
        "branch_skip_ratio",
        ratio(RUN, MODEL),
        over_time(_of_each("resmon_block_branch_skip_ratio_median"), "{{block}}, median"),
    )


def gradient_of_chosen() -> Panel:
    return _beside_the_others(
        "Does the gradient leave what is usual?",
        Says(
            "The gradient norm of the chosen blocks, the largest of 60 s, and what is usual among all blocks of the run.",
            "steady, and beside the dashed lines as before.",
            "a block that leaves the others upwards explodes, downwards it is frozen or cut off: see the runbooks of these names.",
        ),
        _chosen(GRADIENT),
        "gradient_norm",
        over_machines(GRADIENT, RUN, MODEL),
    )


def output_gradient_of_chosen() -> Panel:
    return _beside_the_others(
        "How much of the loss's gradient comes to the block?",
        Says(
            "The norm of the loss's gradient at the chosen blocks' outputs, the largest of 60 s, and what is usual among all "
            "blocks.",
            "near the other blocks', as the skips carry it.",
            "if it is small here and in the blocks before, it is lost behind; if the block's own gradient alone is small, in its "
            "branch.",
        ),
        _chosen(OUTPUT_GRADIENT),
        "output_gradient_norm",
        over_machines(OUTPUT_GRADIENT, RUN, MODEL),
    )


def alignment() -> Panel:
    return lines(
        "Does the branch add or take back?",
        unit="short",
        says=Says(
            "The cosine of skip and branch: above 0 the branch goes on in the stream's direction, below 0 it takes back what it "
            "holds.",
            "small, and steady.",
            "near 1 the block only scales the stream, near -1 it removes it: together with a rising ratio see the runbook "
            "collapsed-skip.",
        ),
        queries=[over_time(_of_each("resmon_block_alignment", "avg"), "{{block}}")],
        empty=NO_BLOCK,
    )


def dead_units() -> Panel:
    return lines(
        "How many of its units are dead?",
        unit="percentunit",
        says=Says(
            "The share of units before the branch's last layer that were 0 at each of the last 300 and more sampled positions.",
            "a few per cent, and not rising.",
            "a share that rises towards half is a branch that dies: the learning rate was too high for it, see the runbook "
            "dead-branch.",
        ),
        queries=[over_time(_of_each("resmon_block_dead_unit_ratio"), "{{block}}")],
        empty="None of these blocks has units that are exactly 0, or none has series of its own in the time that is shown.",
        least=0,
    )


def activations() -> Panel:
    """From classic buckets, or from native ones where Prometheus takes these."""
    increase = f"increase(resmon_block_activation_magnitude%s{{{RUN},{MODEL},{BLOCK}}}[{RATE}])"
    counted = f"sum by (le) ({increase % '_bucket'})\nor on () sum({increase % ''})"
    return magnitudes(
        "How large are the activations of $block?",
        unit="short",
        says=Says(
            "How often absolute values of the block's output were how large, from a sample at every step; an edge is four times "
            "the one below.",
            "one band that keeps its place.",
            "a band that climbs grows without bound, one that splits has a few huge channels, one at the bottom has died. "
            "float16 ends at 65,504.",
        ),
        queries=[over_time(counted, "{{le}}", heatmap=True)],
        empty=NO_BLOCK,
        repeat="block",
    )


# ---- the run ---------------------------------------------------------------------------------------------------------------


def loss_by_step() -> Panel:
    def step(run: str) -> str:
        return f"max(resmon_steps_total{{{run}}})"

    def loss(run: str) -> str:
        return f"sum({over_machines('run:resmon_loss:avg', run)})"

    return against(
        "The loss of both runs, at equal steps",
        unit="short",
        says=Says(
            "The loss over the steps of the attempt, whenever the two runs were; only what lies in the time that is shown.",
            "this run's line is not above the other's.",
            "where the lines part is the step to look at; resmon diff tells which block parted first.",
        ),
        lines=[
            ("this run", over_time(step(RUN), "step"), over_time(loss(RUN), "loss")),
            ("the other run", over_time(step(RUN_B), "step of the other"), over_time(loss(RUN_B), "loss of the other")),
        ],
        empty="No loss of these runs in the time that is shown.",
    )


def phases() -> Panel:
    parts = f"sum by (phase) (rate(resmon_step_phase_seconds_total{{{RUN}}}[{RATE}]))"
    return stacked(
        "What does a step spend its time on?",
        unit="s",
        says=Says(
            "The mean time of a step and its parts: waiting for data, forward, backward, the optimizer, and everything else of "
            "the loop.",
            "most is forward and backward; waiting for data is next to nothing.",
            "waiting for data asks for more workers; everything else is evaluation, logging and saving: see the runbook "
            "slow-steps.",
        ),
        queries=[over_time(f"{parts}\n/ on () group_left () (sum(rate(resmon_steps_total{{{RUN}}}[{RATE}])) > 0)", "{{phase}}")],
    )


def learning_rates() -> Panel:
    return lines(
        "Does the learning rate follow its schedule?",
        unit="sci",
        says=Says(
            "The learning rate of every parameter group.",
            "as the schedule says.",
            "a rate that rises where it should fall is told as rising_learning_rate; compare with where the loss or a ratio "
            "begins to rise.",
        ),
        queries=[over_time(f"max by (group) (resmon_group_learning_rate{{{RUN}}})", "{{group}}")],
        logarithmic=True,
    )


def group_gradients() -> Panel:
    return lines(
        "Which parameter group has the gradient?",
        unit="short",
        says=Says(
            "The gradient norm of every parameter group, before clipping.",
            "steady, and in the same order as before.",
            "a group that alone rises wants a lower rate or clipping of its own.",
        ),
        queries=[over_time(over_machines("run_group:resmon_group_gradient_norm:sqrt_sum_squares", RUN), "{{group}}")],
        logarithmic=True,
    )


def cost() -> Panel:
    taken = f"max(avg_over_time(resmon_monitor_step_seconds{{{RUN}}}[{RATE}]))"
    mean = over_machines("run:resmon_step_duration_seconds:mean5m", RUN)
    return lines(
        "What does resmon itself take of a step?",
        unit="percentunit",
        says=Says(
            "The time that resmon takes of a step, as a share of the mean step; of what was newest when Prometheus looked.",
            "a few per cent; more where blocks are tiny.",
            "benchmarks/README.md has what it takes elsewhere; `resmon settings` shows what can be left out.",
        ),
        queries=[over_time(f"{taken}\n/ max({mean})", "resmon")],
        least=0,
    )


def throughput() -> Panel:
    return lines(
        "How many samples a second?",
        unit="short",
        says=Says(
            "Samples that the model was trained on each second, of all ranks together.",
            "flat.",
            "if it falls while the parts of a step do not change, batches have become smaller; else the parts say what takes "
            "longer.",
        ),
        queries=[
            over_time(over_machines("run:resmon_samples:rate5m", RUN), "this run"),
            over_time(over_machines("run:resmon_samples:rate5m", RUN_B), "the other run"),
        ],
        least=0,
    )
