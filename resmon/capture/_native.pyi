# _native.c. Addresses are of dense memory that outlives the call; dtypes are numbers, see sums.CODES.

# The sum of squares, not finite only where an element is not.
def square(data: int, dtype: int, elements: int, /) -> float: ...

# The same of each of some float32 tensors, into as many float64.
def squares(data: list[int], elements: list[int], into: int, /) -> None: ...

# The histogram of every `stride`-th element's magnitude, into `cells`: the sum of the finite ones, then the buckets' counts.
def magnitudes(data: int, dtype: int, elements: int, stride: int, low: int, larger: int, cells: int, /) -> None: ...

# Of float32 operands in the same order: the squares of skip, branch and sum into `sums`, the sum's magnitudes into `cells`.
# Returns the sum's square.
def addition(
    skip: int,
    branch: int,
    skip_factor: float,
    branch_factor: float,
    elements: int,
    sums: int,
    stride: int,
    low: int,
    larger: int,
    cells: int,
    /,
) -> float: ...

# `into` += `source`, float64 both.
def accumulate(source: int, into: int, elements: int, /) -> None: ...
