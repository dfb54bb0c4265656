"""The paper's measures of how well masks fit, as its authors computed them.

Source: Lüddecke and Ecker (CVPR 2022), section 4, and metrics.py of the authors' repository. Their
choices:

- Pixels are counted over all images, or over all images of a class, and the ratio is one of sums:
  large things weigh more than small ones. In `image_iou`, every image weighs the same.
- Every ratio has 1 added to its denominator, so that nothing is divided by zero; this hardly
  changes ratios of large sums.
- A pixel belongs to the mask where its probability is strictly above the threshold.
- There are 49 thresholds, 0.02 to 0.98. The best over them is an upper bound that looks at the
  answers; a table compares models at one threshold (0.3 or 0.1 in the paper).
- Average precision is the area under the recall-precision curve over those thresholds, by Simpson's
  rule. The curve does not begin at recall 0, so a model that is always sure of itself scores low.
  Points of equal recall come in the order of their precision; the authors leave it to hashing.
"""

from collections import defaultdict, namedtuple
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from ..errors import InputError

THRESHOLDS = np.linspace(0, 1, 51)[1:-1]
# True and false positives and negatives, in pixels, at each threshold: int64 (49,) each.
Counts = namedtuple("Counts", "tp fp fn tn")


def count(probabilities: np.ndarray, mask: np.ndarray) -> Counts:
    """Compare probabilities, (H,W), with the true mask, (H,W) of 0 and 1, at each threshold.

    The probabilities are floats; True and False are 1 and 0. Raises InputError for shapes that
    differ, and for other values.
    """
    probabilities, mask = np.asarray(probabilities), np.asarray(mask)
    if probabilities.dtype == bool:
        probabilities = probabilities.astype(np.float32)
    if probabilities.dtype.kind != "f":
        raise InputError(f"got {probabilities.dtype}; expected floats, 0 to 1, or bool")
    if probabilities.shape != mask.shape:
        shapes = f"{probabilities.shape} and the mask {mask.shape}"
        raise InputError(f"the probabilities have shape {shapes}; expected the same")
    if not np.isin(mask, (0, 1)).all():
        raise InputError("the mask holds other values than 0 and 1 (or False and True)")
    thresholds = THRESHOLDS.astype(probabilities.dtype)
    inside = np.sort(probabilities[mask == 1])
    outside = np.sort(probabilities[mask == 0])
    # Equal to the threshold counts as negative.
    fn = np.searchsorted(inside, thresholds, side="right")
    tn = np.searchsorted(outside, thresholds, side="right")
    return Counts(tp=inside.size - fn, fp=outside.size - tn, fn=fn, tn=tn)


@dataclass(frozen=True)
class Scores:
    """One number for each of THRESHOLDS, (49,) each, and the average precision over all of them.

    foreground_iou: the paper's IoU_FG. binary_iou: IoU_BIN, the mean of the foreground's and the
    background's IoU. mean_iou: mIoU, the mean over classes, or None where no class was named.
    """

    foreground_iou: np.ndarray
    binary_iou: np.ndarray
    mean_iou: np.ndarray | None
    average_precision: float

    def at_threshold(self, threshold: float) -> dict[str, float]:
        """The scores at the nearest of THRESHOLDS, with the paper's names."""
        nearest = np.abs(THRESHOLDS - threshold).argmin()
        ious = {"IoU_FG": self.foreground_iou, "IoU_BIN": self.binary_iou, "mIoU": self.mean_iou}
        scores = {name: float(iou[nearest]) for name, iou in ious.items() if iou is not None}
        return scores | {"AP": self.average_precision}

    at = at_threshold  # its name in 0.1


class Metrics:
    """Collects images, and scores them together."""

    def __init__(self):
        # (4,49): the four counts.
        self.by_class = defaultdict(lambda: np.zeros((4, len(THRESHOLDS)), int))

    def add(self, probabilities: np.ndarray, mask: np.ndarray, name: Hashable = None) -> None:
        """Add one image's probabilities and true mask, (H,W) each, and the name of its class."""
        self.by_class[name] += count(probabilities, mask)

    def scores(self) -> Scores:
        """The scores of all images. Raises InputError if none were added."""
        if not self.by_class:
            raise InputError("there is nothing to score: add images first")
        tp, fp, fn, tn = total = Counts(*sum(self.by_class.values()))
        foreground_iou = ratio(tp, fp + fn)
        classes = [Counts(*counts) for name, counts in self.by_class.items() if name is not None]
        ious = [ratio(counts.tp, counts.fp + counts.fn) for counts in classes]
        return Scores(
            foreground_iou=foreground_iou,
            binary_iou=(foreground_iou + ratio(tn, fp + fn)) / 2,
            mean_iou=np.mean(ious, axis=0) if ious else None,
            average_precision=average_precision(total),
        )


def ratio(part: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """The authors' ratio, whose denominator is never 0: IoU, precision or recall."""
    return part / (1 + part + rest)


def average_precision(counts: Counts) -> float:
    """The area under precision over recall, at the thresholds that have any positives."""
    tp, fp, fn, _ = counts
    positive = tp + fp > 0
    pairs = set(zip(ratio(tp, fn)[positive].tolist(), ratio(tp, fp)[positive].tolist()))
    recalls, precisions = np.array(sorted(pairs)).reshape(-1, 2).T
    return simpson(precisions, recalls)


def simpson(y: np.ndarray, x: np.ndarray) -> float:
    """Simpson's rule for points at any distance: parabolas through points 0, 1, 2, then 2, 3, 4...

    An even number of points leaves one interval over. It gets a straight line, once at the end and
    once at the beginning, and the two results are averaged: SciPy's rule until 1.10 (even="avg"),
    which the authors used. For points that coincide, SciPy drops the terms in 1/0.
    """
    if not len(x):
        return 0.0
    if len(x) % 2 == 0:
        start_line = (x[1] - x[0]) * (y[0] + y[1]) / 2
        end_line = (x[-1] - x[-2]) * (y[-2] + y[-1]) / 2
        from_start, from_end = simpson(y[:-1], x[:-1]), simpson(y[1:], x[1:])
        return float(((from_start + end_line) + (start_line + from_end)) / 2)
    area = 0.0
    for i in range(0, len(x) - 2, 2):
        first, second = float(x[i + 1] - x[i]), float(x[i + 2] - x[i + 1])
        width = first + second
        left = 2 - (second / first if first and second else 0)
        middle = width**2 / (first * second) if first and second else 0
        right = 2 - (first / second if second else 0)
        area += width / 6 * (left * y[i] + middle * y[i + 1] + right * y[i + 2])
    return float(area)


def image_iou(mask: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two (H,W) masks of one image, 0 to 1; 1 where both are empty."""
    mask, other = np.asarray(mask, bool), np.asarray(other, bool)
    if mask.shape != other.shape:
        raise InputError(f"the masks have shapes {mask.shape} and {other.shape}; expected the same")
    union = (mask | other).sum()
    return float((mask & other).sum() / union) if union else 1.0


picture_iou = image_iou  # its name in 0.1
