"""The paper's measures of how well masks fit, as its authors computed them.

Source: Lüddecke and Ecker (CVPR 2022), section 4, and the masks/metrics.py of the authors' repository. Their choices:

- Pixels are counted over all images together, or over all of a class, and one ratio is formed of the sums: large
  things weigh more than small ones. `image_iou` is the other kind, in which every image weighs the same.
- Every ratio has 1 added to its denominator, so that nothing is divided by zero; it costs large sums nothing.
- A pixel belongs to the mask where its probability is strictly above the threshold.
- There are 49 thresholds, 0.02 to 0.98. The best over them is an upper bound that looks at the answers; a table
  compares models at a threshold fixed beforehand (0.3 or 0.1 in the paper's).
- Average precision is the area under the recall-precision curve over those thresholds, by Simpson's rule. The
  curve does not begin at recall 0, so that a model that is always sure of itself scores low.
"""

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from ..errors import InputError

THRESHOLDS = np.linspace(0, 1, 51)[1:-1]


@dataclass
class Counts:
    """Pixels by what was said and what is true, for each of THRESHOLDS; int64 (49,) each."""

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    tn: np.ndarray

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn
        )

    def foreground_iou(self) -> np.ndarray:
        return self.tp / (1 + self.tp + self.fp + self.fn)

    def background_iou(self) -> np.ndarray:
        return self.tn / (1 + self.tn + self.fp + self.fn)

    def precision(self) -> np.ndarray:
        return self.tp / (1 + self.tp + self.fp)

    def recall(self) -> np.ndarray:
        return self.tp / (1 + self.tp + self.fn)


def count(probabilities: np.ndarray, mask: np.ndarray) -> Counts:
    """Compare a probability map with the true mask at every threshold.  (H,W) floats, (H,W) of 0 and 1

    Raises InputError for shapes that differ, or a mask of other values.
    """
    probabilities, mask = np.asarray(probabilities), np.asarray(mask)
    if probabilities.shape != mask.shape:
        raise InputError(
            f"the probabilities have shape {probabilities.shape} and the mask {mask.shape}; expected the same"
        )
    if not np.isin(mask, (0, 1)).all():
        raise InputError("the mask holds other values than 0 and 1 (or False and True)")
    thresholds = THRESHOLDS.astype(probabilities.dtype)
    inside = np.sort(probabilities[mask == 1])
    outside = np.sort(probabilities[mask == 0])
    fn = np.searchsorted(inside, thresholds, side="right")  # those that are not strictly above
    tn = np.searchsorted(outside, thresholds, side="right")
    return Counts(tp=inside.size - fn, fp=outside.size - tn, fn=fn, tn=tn)


@dataclass(frozen=True)
class Scores:
    """One number for each of THRESHOLDS, (49,) each, and the average precision over all of them."""

    foreground_iou: np.ndarray  # the paper's IoU_FG
    binary_iou: np.ndarray  # IoU_BIN: the mean of the foreground's and the background's IoU
    mean_iou: np.ndarray | None  # mIoU: the mean over classes; None where no class was named
    average_precision: float

    def at(self, threshold: float) -> dict[str, float]:
        """The scores at the nearest of THRESHOLDS, with the paper's names."""
        place = int(np.abs(THRESHOLDS - threshold).argmin())
        scores = {"IoU_FG": self.foreground_iou[place], "IoU_BIN": self.binary_iou[place]}
        if self.mean_iou is not None:
            scores["mIoU"] = self.mean_iou[place]
        return {name: float(value) for name, value in scores.items()} | {
            "AP": self.average_precision
        }


class Metrics:
    """Collects images, and scores them together."""

    def __init__(self):
        self.by_class: dict[Hashable, Counts] = defaultdict(lambda: Counts(*np.zeros((4, 49), int)))

    def add(
        self, probabilities: np.ndarray, mask: np.ndarray, name: Hashable | None = None
    ) -> None:
        """One image, (H,W) each, and what the mask shows: a class, or None if classes play no part."""
        self.by_class[name] += count(probabilities, mask)

    def scores(self) -> Scores:
        """Raises InputError where nothing was added."""
        if not self.by_class:
            raise InputError("there is nothing to score: add images first")
        total = sum(self.by_class.values(), start=Counts(*np.zeros((4, 49), int)))
        named = [counts for name, counts in self.by_class.items() if name is not None]
        return Scores(
            foreground_iou=total.foreground_iou(),
            binary_iou=(total.foreground_iou() + total.background_iou()) / 2,
            mean_iou=np.mean([c.foreground_iou() for c in named], axis=0) if named else None,
            average_precision=average_precision(total),
        )


def average_precision(counts: Counts) -> float:
    """The area under precision over recall, of the thresholds at which anything is marked at all."""
    marked = counts.tp + counts.fp > 0
    pairs = set(zip(counts.recall()[marked].tolist(), counts.precision()[marked].tolist()))
    recalls, precisions = np.array(sorted(pairs)).reshape(-1, 2).T
    return simpson(precisions, recalls)


def simpson(y: np.ndarray, x: np.ndarray) -> float:
    """Simpson's rule for points at any distance: parabolas through three neighbours.

    An even number of points leaves one interval over, for which a straight line stands, once at the
    end and once at the beginning, and the two results are averaged: SciPy's rule until 1.10 (even="avg"),
    which the authors used.
    """
    if len(x) < 2:
        return 0.0
    if len(x) == 2:
        return _line(y, x)
    if len(x) % 2:
        return _parabolas(y, x)
    from_start = _parabolas(y[:-1], x[:-1]) + _line(y[-2:], x[-2:])
    from_end = _line(y[:2], x[:2]) + _parabolas(y[1:], x[1:])
    return (from_start + from_end) / 2


def _line(y: np.ndarray, x: np.ndarray) -> float:
    return float((x[1] - x[0]) * (y[0] + y[1]) / 2)


def _parabolas(y: np.ndarray, x: np.ndarray) -> float:
    """Through points 0, 1, 2, then 2, 3, 4, and so on; of points that coincide, SciPy drops the terms in 1/0."""
    area = 0.0
    for i in range(0, len(x) - 2, 2):
        first, second = float(x[i + 1] - x[i]), float(x[i + 2] - x[i + 1])
        width = first + second
        left = 2 - (second / first if first and second else 0)
        middle = width**2 / (first * second) if first and second else 0
        right = 2 - (first / second if second else 0)
        area += width / 6 * (left * y[i] + middle * y[i + 1] + right * y[i + 2])
    return float(area)


def image_iou(found: np.ndarray, mask: np.ndarray) -> float:
    """Intersection over union of two masks of one image; 1 where both are empty.  (H,W), (H,W) -> 0 to 1"""
    found, mask = np.asarray(found, bool), np.asarray(mask, bool)
    if found.shape != mask.shape:
        raise InputError(f"the masks have shapes {found.shape} and {mask.shape}; expected the same")
    union = (found | mask).sum()
    return float((found & mask).sum() / union) if union else 1.0


picture_iou = image_iou  # its name in 0.1
