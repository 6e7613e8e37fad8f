"""Notices a step whose gradients are NaN or infinite, at that step, and says where that came from.

The squared norms of the gradients are there before an optimizer steps; where one is not finite its elements are looked at, for a
norm that merely overflowed is no fault. Then its origin is looked for (origin.py), while the weights are still those of the pass.
One episode of non-finite steps is one incident; it is over after CALM finite ones. A gradient scaler that looks for its scale makes
no incident, unless the forward pass itself was not finite.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from torch import Tensor

from resmon.capture.forensics.birth import kinds
from resmon.capture.forensics.origin import ADVICE, BrokenStep, Origin, Watched, unexplained
from resmon.capture.forensics.references import References
from resmon.capture.gradients.reader import Gradients, Selection
from resmon.capture.gradients.writes import Writes
from resmon.capture.host import fetch
from resmon.capture.host.placement import local
from resmon.errors import NonFiniteError
from resmon.records import (
    BLOCK_COUNTS,
    BLOCK_VALUES,
    CALM,
    LEAST_SCALE,
    SEARCH,
    Incident,
    ResidualSite,
    StepRecord,
    incident_id,
)

Policy = Literal["record", "skip_step", "raise"]


class Owner(Protocol):
    """Whose steps they are."""

    @property
    def step_under_way(self) -> int: ...
    def incident(self, incident: Incident, capsule: bytes) -> None: ...


@dataclass(slots=True)
class _Episode:
    incident: Incident
    steps: int = 0
    calm: int = 0


class NonFinite:
    """Looks at the gradients of a session's steps. `policy` is the setting `on_nonfinite`."""

    def __init__(self, owner: Owner, watches: Sequence[Watched], gradients: Gradients, policy: Policy) -> None:
        self._owner = owner
        self._watches = watches
        self._gradients = gradients
        self._policy = policy
        self._references = References()
        self._origin = Origin(watches, self._references)
        self._writes = Writes(gradients)
        self._episode: _Episode | None = None
        self._bad: dict[str, Tensor] = {}  # parameters whose gradients were not finite in this step
        self._scaled: bool | None = None  # whether a scaler's gradients were finite in this step
        self._looks = self._may_look()  # as of the newest pass
        self._looked = False
        self._skips = 0  # of a scaler, in a row
        self._searching = False
        self._finite_step: int | None = None  # the last step with finite gradients
        self.lasts = False  # the newest step that is over was not finite

    # -- what the models do --------------------------------------------------------------------------------------------

    def pass_begun(self, watch: Watched, args: Any, kwargs: Any) -> None:
        self._looks = self._may_look()
        if not self._looks:  # on an accelerator doing it again would make the loop wait
            return
        try:  # noqa: SIM105 - suppress costs more
            self._references.begin(watch.key, watch.model, args, kwargs, compiled=watch.compiled, spoilt=self._is_spoilt)
        except Exception:  # noqa: S110 - a pass of which nothing could be kept is not done again, and that is all
            pass

    def pass_ended(self, watch: Watched, output: Any) -> None:
        try:  # noqa: SIM105 - likewise
            self._references.end(watch.key, output)
        except Exception:  # noqa: S110 - likewise
            pass

    def look_away(self, away: bool, *, differentiated: bool = False) -> None:
        """A backward pass runs whose gradients are none of the loss's, or is over; `differentiated` ones may be in the loss."""
        self._references.looks_away = away
        self._references.differentiated |= differentiated

    def _is_spoilt(self) -> bool:
        """Whether a pass of the step under way was not finite, as far as the probes have seen it."""
        return self._origin.first_sign() is not None

    # -- what the optimizers do ----------------------------------------------------------------------------------------

    def look(self, selection: Selection, scale: float | Tensor | None, *, updated: bool = False) -> bool:
        """Whether gradients that were just read are not finite. `scale` is a gradient scaler's; `updated` says that the optimizer
        has stepped already."""
        if not self._looks:
            return False
        if not self._looked:
            self._writes.step_begins()
        bad = self._nonfinite(selection)
        self._looked = True
        if scale is not None:
            self._scaled = not bad and self._scaled is not False
        if bad:
            news = not self._bad.keys() >= bad.keys()
            self._bad |= bad
            if self._episode is None and news:
                self._judge(scale, updated)
        return bool(bad)

    def raise_if_asked(self) -> None:
        """Raise NonFiniteError if the setting asks for that and the step is not finite, which no search for a scale explains."""
        if self._policy == "raise" and self._bad and not self._searching and self._episode is not None:
            self._count(self._owner.step_under_way, True)
            self._bad.clear()  # a loop that goes on after it begins the step anew
            self._references.clear()
            raise NonFiniteError(self._episode.incident.summary)

    @property
    def incident(self) -> Incident | None:
        """That of the episode under way."""
        return self._episode.incident if self._episode else None

    @property
    def withholds(self) -> bool:
        """Whether an optimizer with such gradients is to be kept from stepping."""
        return self._policy == "skip_step"

    def _nonfinite(self, selection: Selection) -> dict[str, Tensor]:
        """The parameters of a selection whose gradients are not finite, by their names."""
        suspects = self._gradients.suspects(selection, wait=self._policy != "record")
        return {
            name: parameter
            for name, parameter in suspects.items()
            if parameter.grad is not None and kinds(local(parameter.grad)[0]) > 0
        }

    def _judge(self, scale: float | Tensor | None, updated: bool) -> None:
        serious = self._origin.is_serious()
        self._searching = (
            scale is not None and self._skips < SEARCH and (isinstance(scale, Tensor) or scale >= LEAST_SCALE) and not updated
        )
        if self._searching and not serious:
            return
        incident, data = self._origin.incident(
            BrokenStep(
                number=self._owner.step_under_way,
                names=tuple(self._bad),
                parameters=len(self._gradients.everything.parameters),
                scale=scale,
                updated=updated,
                follows_a_finite_one=self._finite_step == self._owner.step_under_way - 1,
                writes=self._writes,
            )
        )
        if self._searching and incident.origin not in ("forward", "parameters", "optimizer", "data"):
            return
        self._searching = False
        self._open(incident, data)

    def _open(self, incident: Incident, data: bytes) -> None:
        if data:
            incident = replace(incident, capsule=f"capsule-{incident.id}.safetensors")
        self._episode = _Episode(incident)
        self._owner.incident(incident, data)

    # -- the step's end ------------------------------------------------------------------------------------------------

    def let_go(self) -> None:
        """Keep nothing of the step's passes any more."""
        self._references.clear()

    def step_over(self, *, complete: bool) -> None:
        """A step is over, and its passes let go; the next one begins."""
        step = self._owner.step_under_way
        bad = bool(self._bad) and not self._searching
        if self._scaled is not None:
            self._skips = 0 if self._scaled else self._skips + 1
        if complete and self._looked:
            self._count(step, bad)
            self._finite_step = None if self._bad else step
        self._writes.step_over(whole=complete and self._looked)
        self._bad.clear()
        self._scaled, self._looked, self._searching = None, False, False

    def _count(self, step: int, bad: bool) -> None:
        self.lasts = bad
        episode = self._episode
        if episode is None:
            return
        episode.steps += bad
        episode.calm = 0 if bad else episode.calm + 1
        if episode.calm >= CALM:
            self._episode = None
            over = {"nonfinite_steps": episode.steps, "finite_again_from": step - CALM + 1}
            self._owner.incident(replace(episode.incident, evidence={**episode.incident.evidence, **over}), b"")

    def ended(self) -> None:
        """The run is over: an incident that lasts says how long it did."""
        if self._episode is not None and self._episode.steps > 1:
            counted = {"nonfinite_steps": self._episode.steps}
            incident = self._episode.incident
            self._owner.incident(replace(incident, evidence={**incident.evidence, **counted}), b"")

    # -- other signs ---------------------------------------------------------------------------------------------------

    def logged(self, step: int, loss: float) -> None:
        """The loop has logged this loss of a step."""
        episode = self._episode
        if episode is not None and episode.incident.step == step and "loss" not in episode.incident.evidence:
            told = loss if math.isfinite(loss) else str(loss)
            episode.incident = replace(episode.incident, evidence={**episode.incident.evidence, "loss": told})
            self._owner.incident(episode.incident, b"")
        if episode is not None or math.isfinite(loss) or self._searching or self._skips or self._bad:
            return
        summary = (
            f"The loss logged at step {step} is {_number(loss)}, while every gradient of that step was finite: it was born "
            "where no gradient passes, in the loss or in an output that the loss does not differentiate, such as a logit of -Inf."
        )
        self._open(
            Incident(
                id=incident_id("nonfinite", step),
                kind="nonfinite",
                time=time.time(),
                step=step,
                summary=summary,
                origin="loss",
                since=step,
                advice=ADVICE["loss"],
                runbook="nonfinite",
                evidence={"loss": str(loss), "gradients": "finite"},
            ),
            b"",
        )
        self.lasts = True

    def recorded(self, record: StepRecord, sites: Sequence[ResidualSite]) -> None:
        """A step's record is there, of gradients that nobody has waited for."""
        if self._may_look():
            return
        forward, backward = (record.counts[BLOCK_COUNTS.index(name)] > 0 for name in ("nonfinite_forward", "nonfinite_backward"))
        gradients = record.blocks[BLOCK_VALUES.index("gradient_square")]
        total = record.run_value("gradient_square")
        # An infinite norm may have overflowed; NaN, and what was counted, has not.
        backward = backward | np.isnan(record.blocks[BLOCK_VALUES.index("output_gradient_square")])
        bad = bool(forward.any() or backward.any() or np.isnan(gradients).any() or (total is not None and math.isnan(total)))
        bad = bad and (total is None or not math.isfinite(total))
        self._skips = self._skips + 1 if record.skipped else 0
        scale = record.run_value("loss_scale")
        if record.skipped and self._skips <= SEARCH and (scale is None or scale >= LEAST_SCALE) and not forward.any():
            bad = False
        if bad and self._episode is None:
            first, direction = "", "parameters"
            if forward.any():
                first, direction = sites[int(np.flatnonzero(forward)[0])].name, "forward"
            elif backward.any():
                first, direction = sites[int(np.flatnonzero(backward)[-1])].name, "backward"
            model = next((site.model for site in sites if site.name == first), "")
            why = "its numbers came after the step, for nothing waits for the accelerator; on_nonfinite='skip_step' or 'raise' does"
            probes = {"first_block": first, "direction": direction}
            self._open(unexplained(record.step, model, probes, why, {"loss_scale": scale} if scale is not None else {}), b"")
        if record.complete:
            self._count(record.step, bad)

    def _may_look(self) -> bool:
        """Whether gradients are looked at before the optimizer steps, which on an accelerator makes the loop wait."""
        parameters = self._gradients.everything.parameters
        return self._policy != "record" or not parameters or fetch.is_here(parameters[0])


def _number(value: float) -> str:
    return "NaN" if math.isnan(value) else "Inf" if value > 0 else "-Inf"
