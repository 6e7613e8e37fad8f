"""Models and the residual sites that they must be found to have. `HANDWRITTEN` needs torch alone; the models of `transformers`
are in `tests.zoo.hugging`, imported by those who have that package."""

from tests.zoo import attention, conditioned, convolutional, recurrent, streams, wiring
from tests.zoo.case import Case

HANDWRITTEN: tuple[Case, ...] = (
    convolutional.CASES + recurrent.CASES + attention.CASES + conditioned.CASES + streams.CASES + wiring.CASES
)
