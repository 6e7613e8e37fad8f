"""Causes of numbers that are NaN or infinite, or on the way there: what speaks for each.

The replay of the step (capture/forensics/nonfinite.py) says where the first such value was born: in data, in weights, in an update,
or in one operation of finite values. Of an operation it says further in which numbers it computed and how large those were that it
read. An operation that has no value there (the logarithm of 0, 0 / 0) breaks at numbers of any size; another one only overflows,
and then something made them grow.
"""

from __future__ import annotations

import numpy as np

from resmon.postmortem.evidence import FAIR, PROVEN, STRONG, WEAK, Scales, said
from resmon.quantities import became, count, number
from resmon.records import Incident

# Thresholds of the weights, as ratios or shares unless said otherwise.
EXPLODED, GREW, CALM = 10.0, 3.0, 1.5  # of a gradient norm or a root mean square over what was usual
LITTLE_ROOM, MUCH_ROOM = 2.0, 6.0  # doublings until a 16-bit number overflows
# Absolute values: the root of the largest float32 is 1.8e19, and a product of matrices reaches it sooner; activations of healthy
# networks go up to some hundred thousand (arXiv 2605.15572).
ENORMOUS, ORDINARY = 1e12, 1e6
KNOWN = 8  # steps before, without which nobody knows what was usual
HALF = 65_504.0  # the largest float16

# Operations, as torch calls them, that have no finite value, or no finite derivative, at some numbers of ordinary size.
UNDEFINED = frozenset(
    """
    log log_ log2 log10 log1p logit log_softmax logsumexp xlogy entr sqrt sqrt_ rsqrt div div_ divide true_divide truediv reciprocal
    pow pow_ float_power norm vector_norm matrix_norm linalg_norm linalg_vector_norm renorm normalize cosine_similarity cdist
    pairwise_distance acos asin acosh atanh atan2 erfinv lgamma digamma fmod remainder std var std_mean var_mean mean exp exp_ expm1
    softmax _softmax scaled_dot_product_attention multi_head_attention_forward cross_entropy nll_loss binary_cross_entropy kl_div
    gaussian_nll_loss poisson_nll_loss inverse inv pinv cholesky solve lstsq svd eigh eig qr det logdet slogdet linalg_inv
    linalg_cholesky linalg_solve linalg_svd linalg_eigh linalg_eig linalg_qr linalg_det layer_norm
    batch_norm group_norm instance_norm rms_norm
    """.split()
)
PLACES = {"data": "in the data", "parameters": "in weights, before the step", "optimizer": "in the update of the step before"}


def explosion(on: Scales) -> None:
    if not on.nonfinite and not _lost_ground(on):
        return
    found = on.origin
    if on.nonfinite:
        on.add(WEAK, "Values became NaN or infinite, which is how an explosion ends.")
    if found is not None and found.origin in PLACES:
        on.add(-STRONG, f"The first value that was not finite was {PLACES[found.origin]}, and no operation had overflowed.")
    largest = _largest_read(found)
    if found is not None and largest is not None and _dtype(found) != "float16":
        if largest >= ENORMOUS:
            on.add(FAIR, f"{_birthplace(found)} overflowed: it read numbers as large as {number(largest)}.")
        elif largest < ORDINARY:
            on.add(-FAIR, f"Nothing was large where it broke: {_birthplace(found)} read nothing above {number(largest)}.")
    if on.jump is not None:
        on.add(-FAIR, f"Up to step {on.jump.step:,} nothing grew; there it was large from one step to the next.")
    gradient = on.of_run("gradient_norm")
    if gradient is None:
        on.cannot_see("No gradient norm of the run is known from before the trouble.")
    else:
        text = f"The gradient norm {became(gradient.recent)} in the last steps before it; {number(gradient.usual)} was usual"
        if gradient.grew(GREW):
            on.add(STRONG if gradient.growth >= EXPLODED else FAIR, f"{text}.")
        elif gradient.growth <= CALM:
            on.add(-FAIR, f"{text}.")
        else:
            on.add(0.0, f"{text}." if gradient.grew(CALM) else f"{text}, and it varies as much.")
    rising = [sign for sign in on.departed("output_rms", "branch_skip_ratio") if sign.factor > 1]
    if rising:
        first = rising[0]
        blocks = list(dict.fromkeys(sign.block for sign in rising))
        on.add(
            FAIR,
            f"The activations of {count(len(blocks), 'block')} left their usual range upwards, {first.block} first at step "
            f"{first.step:,}: its {first.quantity} went {first.moved}.",
        )
    elif on.case.window.blocks:
        on.add(-WEAK, "No block's activations rose out of their usual range before the trouble.")
    rates = on.departed("learning_rate")
    if rates and rates[0].factor > 1:
        rate = rates[0]
        on.add(FAIR, f"The learning rate rose from {number(rate.usual)} to {number(rate.seen)}, from step {rate.step:,} on.")
    elif (curve := on.case.curves.get("learning_rate")) is not None and on.before:
        begin = float(curve.mean[np.isfinite(curve.mean)][:1].sum())
        newest = on.case.window.run["learning_rate"][: on.before]
        newest = newest[np.isfinite(newest)][-1:]
        if len(newest) and newest[0] > EXPLODED * begin > 0:
            on.add(WEAK, f"The learning rate had risen over the run, from {number(begin)} to {number(float(newest[0]))}.")
    loss = on.of_run("loss")
    if loss is not None:
        if loss.grew(GREW):
            on.add(FAIR, f"The loss {became(loss.recent)} before it; {number(loss.usual)} was usual.")
        elif loss.growth <= CALM:
            on.add(-FAIR, f"The loss was no higher than usual ({number(loss.recent)}; {number(loss.usual)} before).")


def _lost_ground(on: Scales) -> bool:
    """Whether a run whose numbers stayed finite gave back what it had learnt, and evidence against an explosion where it did not.

    Gradients and activations grow in healthy runs too: out of an initialisation with zeros, with a warm-up, on a hard batch.
    """
    if any(finding.kind == "loss_divergence" for finding in on.case.findings):
        return True
    for name, called in (("loss", "loss"), ("gradient_norm", "gradient norm")):
        course = on.of_run(name)
        if course is not None:
            lost = course.grew(GREW)
            if not lost:
                on.add(
                    -STRONG,
                    f"Nothing became NaN or infinite, and the {called} did not grow beyond what is usual of it "
                    f"({number(course.recent)} at most in the last steps, {number(course.usual)} before).",
                )
            return lost
    on.cannot_see("Nothing became NaN or infinite, and neither loss nor gradient norm is known.")
    return False


def undefined_operation(on: Scales) -> None:
    if not on.nonfinite:
        on.add(-STRONG, "Nothing became NaN or infinite.")
        return
    found = on.origin
    if found is None or not found.origin:
        _unseen(on)
        return
    if found.origin in PLACES:
        on.add(-STRONG, f"The first value that was not finite was {PLACES[found.origin]}, not made by an operation.")
        return
    where, sure = _birthplace(found), f" ({found.confidence} replay)" if found.confidence else ""
    if found.origin == "loss":
        on.add(STRONG, f"The outputs of the model were finite and the loss, or its gradient, was not{sure}.")
    elif found.operation in UNDEFINED:
        side = "backward pass" if found.origin == "backward" else "forward pass"
        made = "gradients that are not finite of finite ones"
        if found.origin == "forward":
            made = f"{found.evidence.get('made', 'NaN or Inf')} of finite numbers"
        on.add(PROVEN, f"{where} made {made} in the {side}{sure}: at some numbers it has no finite value.")
    else:
        on.add(-FAIR, f"{where} broke, which is defined for all numbers and can only overflow.")
    largest = _largest_read(found)
    if largest is not None and largest >= ENORMOUS:
        on.add(-STRONG, f"It read numbers as large as {number(largest)}, of which many operations overflow.")
    elif on.grown >= EXPLODED:
        on.add(-FAIR, f"Gradients or activations had grown {number(on.grown)}-fold before, which may have led there.")
    elif on.before >= KNOWN:
        on.add(WEAK, "Gradients and activations were as usual until then.")


def precision(on: Scales) -> None:
    found = on.origin
    dtype = _dtype(found)
    if found is not None and dtype == "float16":
        where, largest = _birthplace(found), _largest_read(found)
        read = f", and read numbers as large as {number(largest)}" if largest is not None else ""
        overflowed = found.operation not in UNDEFINED
        if overflowed:
            on.add(PROVEN, f"{where} computed in float16, which ends at {HALF:,.0f}{read}.")
        else:
            on.add(FAIR, f"{where} computed in float16, where small numbers become 0 and large ones infinite{read}.")
    elif dtype in ("float32", "float64"):
        on.add(-STRONG, f"What broke was computed in {dtype}.")
    elif dtype == "bfloat16":
        on.add(-FAIR, "What broke was computed in bfloat16, which reaches as far as float32.")
    _headroom(on, known=bool(dtype))
    scale, scales = on.of_run("loss_scale"), on.case.window.run.get("loss_scale")
    if scale is not None and scale.usual != 1 and scales is not None:
        newest = scales[np.isfinite(scales)][-1:]
        if len(newest) and newest[0] < scale.usual / 4:
            now = number(float(newest[0]))
            on.add(FAIR, f"The gradient scaler went down from {number(scale.usual)} to {now}: gradients overflowed.")


def _headroom(on: Scales, *, known: bool) -> None:
    headroom = on.of_blocks("headroom")
    if headroom is None:
        if on.case.window.blocks and not known:
            on.add(-FAIR, "No block computed in 16 bits where it was looked at, or its headroom is not known.")
        elif not on.case.window.blocks:
            on.cannot_see("No blocks were recorded, so it is not known in which precision they computed.")
        return
    worst = int(np.nanargmin(headroom))
    least = float(headroom[worst])
    text = f"The least headroom was {number(least)} doublings, in {on.case.blocks[worst]}"
    if least < LITTLE_ROOM:
        on.add(STRONG, f"{text}: a number a few times as large overflows.")
    elif least > MUCH_ROOM:
        on.add(-FAIR, f"{text}, which is ample.")
    else:
        on.add(WEAK, f"{text}.")


def bad_data(on: Scales) -> None:
    if on.jump is not None:
        jump = on.jump
        on.add(
            STRONG,
            f"At step {jump.step:,} the stream that enters the first block was {number(jump.seen)}, from {number(jump.usual)} in "
            "the steps before, while gradients and learning rate had been as usual: so the inputs of that step were large.",
        )
    found = on.origin
    if found is not None and found.origin:
        if found.origin == "data":
            on.add(PROVEN, said(found))
        elif on.jump is None:
            on.add(-STRONG, "The inputs of the step that broke were finite.")
        else:
            on.add(-WEAK, "The inputs of the step that broke were finite.")
    elif not on.nonfinite:
        on.add(-FAIR, "Nothing became NaN or infinite.")
    elif on.jump is None:
        _unseen(on)


def broken_weights(on: Scales) -> None:
    _came_from(
        on,
        "parameters",
        "A weight was NaN or infinite before the step, and not by the optimizer's own update",
        "Weights were finite until the step that broke.",
    )


def bad_update(on: Scales) -> None:
    _came_from(
        on,
        "optimizer",
        "The gradients were finite and the weights after the update were not",
        "The weights that the updates left were finite.",
    )
    rates = on.case.window.run.get("learning_rate")
    if rates is not None and np.isinf(rates).any():
        step = int(on.case.window.steps[int(np.argmax(np.isinf(rates)))])
        on.add(STRONG, f"The learning rate was not finite at step {step:,}.")


def _came_from(on: Scales, origin: str, so: str, otherwise: str) -> None:
    found = on.origin
    if not on.nonfinite:
        on.add(-STRONG, "Nothing became NaN or infinite.")
    elif found is None or not found.origin:
        on.cannot_see("The step was not replayed, so whether weights were finite before it is not known.")
    elif found.origin == origin:
        on.add(PROVEN, f"{so}: {said(found)}")
    else:
        on.add(-STRONG, otherwise)


def _unseen(on: Scales) -> None:
    """Nobody knows where the values came from that are not finite."""
    signs = on.departed("gradient_norm", "loss", "output_rms", "output_gradient_norm", "branch_skip_ratio", "learning_rate")
    if not signs:
        on.add(FAIR, "Nothing had left its usual range before: it came from one step to the next.")
    else:
        on.add(-WEAK, f"It was coming for some steps: {signs[0].what} left its usual range at step {signs[0].step:,}.")
    on.cannot_see("The step was not replayed, so where its first NaN or infinite value was born is not known.")


def _birthplace(found: Incident) -> str:
    where = f" in block {found.block}" if found.block else f" in {found.module}" if found.module else ""
    return f"{found.operation or 'An operation'}{where}" if found.operation else f"An operation{where}"


def _dtype(found: Incident | None) -> str:
    told = found.evidence.get("dtype") if found is not None and found.origin in ("forward", "backward") else None
    return told if isinstance(told, str) else ""


def _largest_read(found: Incident | None) -> float | None:
    told = found.evidence.get("largest_read") if found is not None and found.origin == "forward" else None
    return float(told) if isinstance(told, (int, float)) and not isinstance(told, bool) else None
