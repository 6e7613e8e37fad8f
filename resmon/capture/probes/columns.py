"""What a site's row of numbers holds, wherever they gather in a step."""

from __future__ import annotations

from resmon.records import MAGNITUDE_COLUMNS

# These add up over the passes of a step. Sums of squares of the operands and of their sum, and of the operands' products; elements
# of the sum and how many of them are not finite; the skip's squares in samples that kept their branch, samples, and those;
# sum of squares of the output's gradients, how many of them arrived, elements not finite in them; the sample's histogram.
(
    SKIP,
    BRANCH,
    OUTPUT,
    PRODUCT,
    ELEMENTS,
    FORWARD_NONFINITE,
    KEPT_SQUARE,
    SAMPLES,
    KEPT,
    GRADIENT,
    ARRIVED,
    BACKWARD_NONFINITE,
    MAGNITUDES,
) = range(13)
CELLS = 1 + MAGNITUDE_COLUMNS  # the sum of the finite magnitudes, then their counts
SUMS = MAGNITUDES + CELLS
# Of these the largest: |y|, and what share of its dtype's range a number of 16 bits took.
PEAK, FILL = SUMS, SUMS + 1
EXTREMES = 2
# Of these the newest, NaN where it was nobody's turn: the median ratio of sampled positions, the share of dead units, bytes that
# autograd keeps, and how many of them a checkpoint would not; what Norms.look says of batch norms.
MEDIAN, DEAD, ACTIVATION, CHECKPOINT, GAP, VARIANCE, COLLAPSED = range(SUMS + EXTREMES, SUMS + EXTREMES + 7)
COLUMNS = COLLAPSED + 1
