"""An alert for each kind of finding that detectors have. Their thresholds are the detectors'; here is only how they are told.

    max by (run, model, block, finding, severity) (max_over_time(resmon_finding_active{finding="..."}[2m])) > 0

An alert fires with the first evaluation after the scrape that brought the finding: detectors have waited as long as it takes. The
two minutes hold it where rules are evaluated once a minute and the run is over before. The label `severity` is the series' own,
as a detector may raise a ticket to a page. A finding that is there on two machines of a run is one alert.
"""

from __future__ import annotations

from dataclasses import dataclass

from resmon.assets.links import Links
from resmon.assets.wording import PLACE, asked, name
from resmon.rules import Alert

WINDOW = "2m"  # two evaluations at Prometheus' default interval of one minute
LABELS = ("run", "model", "block", "finding", "severity")

# What comes and goes is one alert. What is certain is told to be over as soon as it is.
FLAPS, CERTAIN = "5m", ""


# How values are written.
SHORT, WHOLE = 'printf "%.3g"', 'printf "%.0f"'


@dataclass(frozen=True, slots=True)
class Told:
    """A kind of finding, as an alert tells it. `reads` is the metric whose present value `shows` has in the place of {}."""

    finding: str
    runbook: str
    title: str
    says: str
    reads: str = ""
    shows: str = ""
    form: str = SHORT
    keep: str = FLAPS
    severity: str = "ticket"  # the worst that it may be
    of_run: bool = False  # of no block

    @property
    def alert(self) -> str:
        return name(self.finding)

    @property
    def query(self) -> str:
        """What the value is asked for with, %q for each label; the largest, where machines differ."""
        labels = "run=%q" if self.of_run else "run=%q,model=%q,block=%q"
        return f"max({self.reads}{{{labels}}})"


TOLD: tuple[Told, ...] = (
    Told(
        "nonfinite",
        "nonfinite",
        "Non-finite values",
        "NaN or infinite values have come into the network; from that step on it learns nothing.",
        "resmon_block_nonfinite_steps_total",
        "The block was non-finite in {} steps.",
        form=WHOLE,
        keep=CERTAIN,
        severity="page",
    ),
    Told(
        "nonfinite_loss",
        "nonfinite",
        "Non-finite loss",
        "The logged loss is NaN or infinite while every block is finite: look behind the last block.",
        "resmon_loss",
        "The loss is {}.",
        keep=CERTAIN,
        severity="page",
        of_run=True,
    ),
    Told(
        "loss_divergence",
        "loss-divergence",
        "Diverging loss",
        "The training loss is far above the best level that it had, and stays there.",
        "resmon_loss",
        "The loss is {}.",
        keep=CERTAIN,
        severity="page",
        of_run=True,
    ),
    Told(
        "overfitting",
        "overfitting",
        "Overfitting",
        "Validation gets worse while training gets better.",
        "resmon_score_gap",
        "The gap between validation and training is {}.",
        of_run=True,
    ),
    Told(
        "dead_branch",
        "dead-branch",
        "Dead branch",
        "The block's branch adds nothing to the stream any more.",
        "resmon_block_branch_skip_ratio",
        "Its branch/skip ratio is {}.",
        severity="page",
    ),
    Told(
        "exploding_gradients",
        "exploding-gradients",
        "Exploding gradients",
        "The block's gradient is many times what it used to be, or what comes into it from behind.",
        "resmon_block_gradient_norm",
        "Its gradient norm is {}.",
        severity="page",
    ),
    Told(
        "vanishing_gradients",
        "vanishing-gradients",
        "Vanishing gradients",
        "Next to none of the loss's gradient comes to the block any more.",
        "resmon_block_output_gradient_norm",
        "The gradient norm at its output is {}.",
        severity="page",
    ),
    Told(
        "hidden_explosion",
        "hidden-explosion",
        "Explosion hidden by clipping",
        "Clipping takes away far more of the gradient than it used to: what the loss curve does not show.",
        "resmon_gradient_clip_factor",
        "Clipping multiplies the gradient with {}.",
        severity="page",
        of_run=True,
    ),
    Told(
        "rising_learning_rate",
        "rising-learning-rate",
        "Learning rate that rises too far",
        "The learning rate is above anything that the run had, and the loss has become worse since.",
        "resmon_learning_rate",
        "The learning rate is {}.",
        of_run=True,
    ),
    Told(
        "spike_warning",
        "spike-warning",
        "Loss spike to be expected",
        "The block's branch/skip ratio rises beyond anything that it had while the loss is still fine.",
        "resmon_block_branch_skip_ratio",
        "Its branch/skip ratio is {}.",
    ),
    Told(
        "oscillation",
        "oscillation",
        "Oscillation",
        "What the run does swings with one period, more than it usually moves.",
        "resmon_block_gradient_norm",
        "The block's gradient norm is {}.",
    ),
    Told(
        "plateau",
        "oscillation",
        "Plateau",
        "The training loss makes no progress any more.",
        "resmon_loss",
        "The loss is {}.",
        of_run=True,
    ),
    Told(
        "frozen_block",
        "frozen-block",
        "Frozen block",
        "The block had gradients and has none any more, so it does not learn.",
        "resmon_block_branch_skip_ratio",
        "Its branch/skip ratio is {}.",
        severity="page",
    ),
    Told(
        "batch_norm_gap",
        "batch-norm",
        "Batch norm unlike its batches",
        "The running statistics of a batch norm are far from the batches: evaluation does not compute what was trained.",
        "resmon_block_branch_rms",
        "The branch's root mean square is {}.",
        severity="page",
    ),
    Told(
        "batch_norm_variance",
        "batch-norm",
        "Batch norm with a growing variance",
        "The running variance of a batch norm has left what was usual.",
        "resmon_block_branch_rms",
        "The branch's root mean square is {}.",
        severity="page",
    ),
    Told(
        "batch_norm_collapse",
        "batch-norm",
        "Batch norm with dead channels",
        "Channels of a batch norm hardly vary any more, so it multiplies noise.",
        "resmon_block_branch_rms",
        "The branch's root mean square is {}.",
        severity="page",
    ),
    Told(
        "batch_norm_nonfinite",
        "batch-norm",
        "Batch norm with non-finite statistics",
        "Running statistics of a batch norm are NaN or infinite: evaluation gives nothing else, and checkpoints hold them.",
        "resmon_block_branch_rms",
        "The branch's root mean square is {}.",
        keep=CERTAIN,
        severity="page",
    ),
    Told(
        "collapsed_skip",
        "collapsed-skip",
        "Collapsed skip",
        "The stream no longer passes the block: its branch drowns the skip.",
        "resmon_block_branch_skip_ratio",
        "Its branch/skip ratio is {}.",
        severity="page",
    ),
    Told(
        "growing_residual",
        "growing-residual",
        "Growing residual stream",
        "The stream grows without bound, or comes near the end of what its dtype can hold.",
        "resmon_block_output_rms",
        "The root mean square of the block's output is {}.",
        severity="page",
    ),
    Told(
        "straying_block",
        "straying-block",
        "Straying block",
        "The block's branch gives another amount than it used to, while the other blocks stay together.",
        "resmon_block_branch_rms",
        "The branch's root mean square is {}.",
    ),
    Told(
        "stochastic_depth",
        "stochastic-depth",
        "Stochastic depth off its schedule",
        "The block keeps another share of samples than it did, or than its depth asks for.",
        "resmon_block_keep_ratio",
        "It keeps {} of the samples.",
    ),
    Told(
        "drifting_inputs",
        "drifting-inputs",
        "Drifting inputs",
        "What comes into the model is no longer what it was trained on.",
        "resmon_block_skip_rms",
        "The root mean square of the block's skip is {}.",
    ),
    Told(
        "drift",
        "drift",
        "Drift",
        "What the block puts out is distributed otherwise than a while ago, by more than learning changes it.",
        "resmon_block_output_rms",
        "The root mean square of its output is {}.",
    ),
    Told(
        "change",
        "change",
        "Change",
        "A stream of numbers has changed beyond chance and beyond what the run usually does.",
        "resmon_block_branch_skip_ratio",
        "The block's branch/skip ratio is {}.",
    ),
)

# Of detectors of the user's own: any kind that is not above.
OWN = "own_finding"


def finding_alerts(links: Links) -> list[Alert]:
    """One for each kind, and one for all kinds of users' detectors."""
    alerts = [
        _alert(
            told.alert,
            f'finding="{told.finding}"',
            told.keep,
            f"{told.title}: {PLACE}",
            told.says + asked(told.query, told.shows, told.form) + _more(told.runbook),
            links,
            told.runbook,
        )
        for told in TOLD
    ]
    known = "|".join(told.finding for told in TOLD)
    says = "A detector of your own has opened a finding of the kind {{ $labels.finding }}."
    return [
        *alerts,
        _alert(
            name(OWN),
            f'finding!~"{known}"',
            FLAPS,
            f"{{{{ $labels.finding }}}}: {PLACE}",
            says + _more("own-finding"),
            links,
            "own-finding",
        ),
    ]


def _alert(alert: str, matcher: str, keep: str, summary: str, description: str, links: Links, runbook: str) -> Alert:
    return Alert(
        alert,
        f"max by ({', '.join(LABELS)}) (max_over_time(resmon_finding_active{{{matcher}}}[{WINDOW}])) > 0",
        {},  # the severity is the finding's
        {
            "summary": summary,
            "description": description,
            "runbook_url": links.runbook(runbook),
            "dashboard_url": links.dashboard(alert, LABELS),
        },
        keep=keep,
    )


def _more(runbook: str) -> str:
    return f" On its machine `resmon runbook {runbook} --run {{{{ $labels.run }}}}` is the page with the run's own values."
