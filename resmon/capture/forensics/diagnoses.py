"""Which failure an exception is that ends a run: the diagnoses are asked in order, and the first that knows it answers."""

from __future__ import annotations

from resmon.capture.fitting.shapes import diagnose_shapes
from resmon.capture.forensics.failures import Diagnosis, Scene, plain_failure
from resmon.capture.forensics.out_of_memory import out_of_memory
from resmon.capture.host.stack import whereabouts
from resmon.records import Incident

DIAGNOSES: tuple[Diagnosis, ...] = (out_of_memory, diagnose_shapes, plain_failure)


def diagnose(error: BaseException, scene: Scene) -> Incident:
    """The incident that an exception is."""
    where = whereabouts(error, scene.models, scene.sites)
    return next(incident for diagnosis in DIAGNOSES if (incident := diagnosis(error, scene, where)) is not None)
