# _native.c. Addresses are of dense memory that outlives the call; dtypes are numbers, see sums.CODES.

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from resmon.capture.gradients.measured import Places
from resmon.records import Bools, Floats, Ints

# The sum of squares, not finite only where an element is not. The largest magnitude goes to the address `peak`, unless that is 0 or
# what stands there is larger.
def square(data: int, dtype: int, elements: int, peak: int, /) -> float: ...

# What a plain tensor is of, wherever one is asked for: it is of this very type, dtype (float32) and layout, and contiguous in main
# memory.
def plain_is(kind: type[Tensor], dtype: torch.dtype, layout: torch.layout, /) -> None: ...

# The sum of squares of each parameter's gradient into `squares` at its place, and whether there is one into `present`. Returns the
# indices of those that were not read, being no plain tensors, and the sum of all squares.
def gradients(parameters: tuple[Tensor, ...], places: Places, squares: Floats, present: Bools, /) -> tuple[list[int], float]: ...

# The sum of a plain tensor's squares is added to the first of the two float64 at `into`, and 1 to the second. Returns whether it is
# finite; None where the tensor is none, and nothing is done.
def arrived(gradient: Tensor, into: int, /) -> bool | None: ...

# Of each of two Mersenne Twisters, 624 words and a place at either end: something that is another one after a number was drawn.
def drawn(first: int, second: int, /) -> tuple[bytes, bytes]: ...

# The histogram of every `stride`-th element's magnitude, into `cells`: the sum of the finite ones, then the buckets' counts.
def magnitudes(data: int, dtype: int, elements: int, stride: int, low: int, larger: int, cells: int, /) -> None: ...

# Of two operands: the squares of skip, branch and sum and the product into `sums`, the sum's largest magnitude and a 0 behind it
# into `peak`, a sample of its magnitudes into `cells`. Returns the sum's square; None, and nothing is done, where they are no plain
# tensors of one size or the skip is not of this shape. That is not asked where they are `vouched` for: dense float32 in main
# memory, both in the same order.
def addition(
    skip: Tensor,
    branch: Tensor,
    skip_factor: float,
    branch_factor: float,
    shape: tuple[int, ...] | None,
    stride: int,
    vouched: bool,
    sums: int,
    peak: int,
    low: int,
    larger: int,
    cells: int,
    /,
) -> float | None: ...

# The median over vectors of `channels` elements, `stride` apart, that begin at `offsets` (int64, in elements), of the branch's norm
# over the skip's: of two in the middle the lower, NaN of none.
def median_ratio(
    skip: int,
    skip_dtype: int,
    skip_offsets: int,
    skip_stride: int,
    branch: int,
    branch_dtype: int,
    branch_offsets: int,
    branch_stride: int,
    positions: int,
    channels: int,
    /,
) -> float: ...

# For how many positions in a row each unit has been zero, in `since` (int64), brought up to date by such vectors. Returns how many
# have been for at least `limit`.
def idle(data: int, dtype: int, offsets: int, stride: int, positions: int, units: int, since: int, limit: int, /) -> int: ...

# Of samples of `size` elements, one behind the other: the sum of the skip's squares in those whose branch is not all zero (in all
# samples it is `square`), and how many those are, at the address `kept`.
def kept(
    branch: int, branch_dtype: int, skip: int, skip_dtype: int, samples: int, size: int, square: float, kept: int, /
) -> float: ...

# The sum of every `stride`-th element and that of their squares are added to the two float64 at `sums`.
def sampled(data: int, dtype: int, elements: int, stride: int, sums: int, /) -> None: ...

# The elements as float64, into `into`.
def widened(data: int, dtype: int, elements: int, into: int, /) -> None: ...

# Of each batch norm: the batches it has counted, the addresses of its running mean and variance, their dtype, and its channels.
# None where any has other buffers than plain tensors, the count one of the dtype `whole` (int64), or lacks one.
def running_statistics(layers: tuple[_NormBase, ...], whole: torch.dtype, /) -> list[tuple[int, int, int, int, int]] | None: ...

# A batch norm's running mean and variance, held against those of `before` (means and then variances, float64; not read where
# `share` is 0): added to `into` are the channels' squared distances, how many these are, their largest variance, channels whose
# variance is at most `eps`, all channels, and those that are not finite. norms.py says what a distance is.
def running(mean: int, variance: int, dtype: int, channels: int, before: int, share: float, eps: float, into: int, /) -> None: ...

# `into` += `source`, float64 both, of the first `sums` numbers; of the next `extremes` the larger stays.
def accumulate(source: int, into: int, sums: int, extremes: int, /) -> None: ...

# _rows.h. Arrays are in one piece; ValueError where one is of another size. Of rows [sites, COLUMNS], with so many cells of a
# histogram and so many looks: a record's values and which are there, [BLOCK_VALUES, sites], but for the parameters' gradients, and
# its counts, [BLOCK_COUNTS, sites]. The newest looks, NaN where there was none yet, stay in `newest` [sites, looks]; a step with
# something that is not finite counts in `nonfinite` [sites], and its histogram is added to `magnitudes` [sites, cells].
def blocks(
    sites: int,
    cells: int,
    looks: int,
    rows: Floats,
    newest: Floats,
    nonfinite: Ints,
    magnitudes: Floats,
    values: Floats,
    present: Bools,
    counts: Ints,
    /,
) -> None: ...

# Of each group, whose members begin at its start: the sum of those squares that are there and due, and whether there is one.
def grouped(
    squares: Floats, there: Bools, due: Bools, members: Places, starts: Places, sums: Floats, present: Bools, /
) -> None: ...

# Of squares that are there and due: their sum, and, where any is of something clipped, that of what it became, each multiplied with
# the square of its factor. None where there is nothing to tell.
def total(squares: Floats, factors: Floats, there: Bools, due: Bools, clipped: Bools, /) -> tuple[float | None, float | None]: ...

# _last_words.h; not on Windows. From `begin` on, a signal that ends this process leaves an end mark: written into the file
# `reserved`, then renamed to `end`. Returns a handle. Raises ValueError where a path is too long or there are too many flights.
def last_words_begin(reserved: bytes, end: bytes, /) -> int: ...

# The newest step that is over.
def last_words_step(handle: int, step: int, /) -> None: ...

# The signal that a handler of the program's own was given last, and when (Unix seconds); 0 and 0 where none was.
def last_words_noted(handle: int, /) -> tuple[int, int]: ...

# The process is leaving: let its exit status say how the flight ended, with `reason` (escaped as inside of JSON) behind it where it
# failed. False where the C library does not tell the status.
def last_words_leave(handle: int, reason: bytes, /) -> bool: ...

# The end mark is written, or will not be.
def last_words_end(handle: int, /) -> None: ...
