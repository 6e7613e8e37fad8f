"""What a site's row of numbers holds, wherever they gather: sums over the passes of one step."""

from __future__ import annotations

from resmon.records import MAGNITUDE_COLUMNS

# Sums of squares of the operands and of their sum; elements of the sum and how many of them are not finite; sum of squares of its
# gradients, how many of them arrived, elements not finite in them; then the sample's histogram.
SKIP, BRANCH, OUTPUT, ELEMENTS, FORWARD_NONFINITE, GRADIENT, ARRIVED, BACKWARD_NONFINITE, MAGNITUDES = range(9)
CELLS = 1 + MAGNITUDE_COLUMNS  # the sum of the finite magnitudes, then their counts
COLUMNS = MAGNITUDES + CELLS
