"""Which way is better, from a quantity's name.

A name is cut into words at every sign and at a capital after a small letter: `val/top1_error` and `valTop1Error` are val, top1 (or
top, 1), error. English puts what a thing is at the end, so the last word that stands in a table decides: `accuracy_loss` is a loss.
A name with a word of NEITHER is no score at all (`loss_scale`), and of a name with no word of any table nothing is known: its runs
may differ, and none is called worse. `--lower NAME` and `--higher NAME` overrule the tables.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Literal

Direction = Literal["lower", "higher", "neither"]

# What is lost, wrong or spent.
LOWER = frozenset(
    """
    loss error errors err nll perplexity ppl bpb bpc bpd mse rmse mae mape wer cer fid kid brier ece crossentropy xent regret
    duration seconds latency memory
    """.split()
)
# What is right, or done in a time.
HIGHER = frozenset(
    """
    accuracy acc auc auroc auprc f1 precision recall map ndcg mrr bleu rouge meteor iou miou dice psnr ssim r2 mcc kappa reward
    return pass win throughput
    """.split()
)
# Settings and measures that only look like a score.
NEITHER = frozenset("scale weight coefficient coef rate lr norm variance var std count epoch target threshold".split())
# `error_rate` is an error, `win_rate` a share of wins; a learning rate is neither.
RATES = LOWER | HIGHER

_WORD = re.compile(r"[A-Za-z]+[0-9]*|[0-9]+")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def direction(name: str, lower: Collection[str] = (), higher: Collection[str] = ()) -> Direction:
    """Which way the quantity of this name is better; names in `lower` and `higher` are the user's word."""
    if name in lower:
        return "lower"
    if name in higher:
        return "higher"
    words = [word.lower() for word in _WORD.findall(_HUMP.sub(" ", name))]
    if name.lower().endswith("per_second"):
        return "higher"
    if any(word in NEITHER and not (word == "rate" and RATES & set(words)) for word in words):
        return "neither"
    for word in reversed(words):
        if word in LOWER:
            return "lower"
        if word in HIGHER:
            return "higher"
    return "neither"
