"""The paper's measures against their definitions, spelled out pixel by pixel, on drawn masks."""

import numpy as np
import pytest

from clipseg_np import InputError
from clipseg_np.masks.metrics import THRESHOLDS, Metrics, count, image_iou, simpson

# scipy.integrate.simps(y, x) of SciPy 1.10.1 for n points of default_rng(n): x = sorted uniform,
# y = uniform.
SIMPS = {
    2: 0.01670880371099513,
    3: 0.03645481455298072,
    4: 0.7457810535374557,
    7: 0.44020736133159877,
    8: 0.15245383490364126,
}


def drawn(seed: int, images: int = 6):
    """Probability maps that lean towards their masks, some exactly on thresholds; classes."""
    rng = np.random.default_rng(seed)
    for number in range(images):
        mask = rng.uniform(size=(9, 11)) < 0.3
        map_ = np.clip(0.35 * mask + rng.uniform(0, 0.7, mask.shape), 0, 1).astype(np.float32)
        map_[0] = rng.choice(THRESHOLDS, 11)
        yield map_, mask, ("cat", "dog", "cup")[number % 3]


def plain_counts(seed: int, threshold: float, name: str | None = None) -> tuple[int, ...]:
    tp = fp = fn = tn = 0
    for map_, mask, class_name in drawn(seed):
        if name not in (None, class_name):
            continue
        for p, g in zip(map_.ravel(), mask.ravel()):
            positive = p > np.float32(threshold)
            tp, fp = tp + (positive and g), fp + (positive and not g)
            fn, tn = fn + (not positive and g), tn + (not positive and not g)
    return tp, fp, fn, tn


@pytest.fixture
def scores():
    metrics = Metrics()
    for map_, mask, name in drawn(0):
        metrics.add(map_, mask, name)
    return metrics.scores()


@pytest.mark.parametrize("threshold", [0.02, 0.1, 0.3, 0.5, 0.98])
def test_ious_are_ratios_of_summed_pixels_with_one_added(scores, threshold):
    tp, fp, fn, tn = plain_counts(0, threshold)
    foreground, background = tp / (1 + tp + fp + fn), tn / (1 + tn + fp + fn)
    classes = [plain_counts(0, threshold, name)[:3] for name in ("cat", "dog", "cup")]
    actual = scores.at_threshold(threshold)
    assert actual["IoU_FG"] == pytest.approx(foreground, abs=1e-12)
    assert actual["IoU_BIN"] == pytest.approx((foreground + background) / 2, abs=1e-12)
    mean = sum(tp / (1 + tp + fp + fn) for tp, fp, fn in classes) / 3
    assert actual["mIoU"] == pytest.approx(mean, abs=1e-12)


def test_average_precision_is_simpsons_area_under_the_distinct_pairs(scores):
    pairs = set()
    for threshold in THRESHOLDS:
        tp, fp, fn, _ = plain_counts(0, threshold)
        if tp + fp:
            pairs.add((tp / (1 + tp + fn), tp / (1 + tp + fp)))
    recalls, precisions = zip(*sorted(pairs))
    expected = simpson(np.array(precisions), np.array(recalls))
    assert scores.average_precision == pytest.approx(expected, abs=1e-12)
    assert 0.3 < scores.average_precision < 1


def test_the_thresholds_are_the_authors():
    assert len(THRESHOLDS) == 49
    np.testing.assert_allclose(THRESHOLDS, [i / 50 for i in range(1, 50)], atol=1e-15)


def test_a_probability_on_the_threshold_is_outside():
    half = count(np.array([[0.5]], np.float32), np.array([[1]]))
    index = int(np.abs(THRESHOLDS - 0.5).argmin())
    assert half.tp[index - 1] == 1 and half.tp[index] == 0 and half.fn[index] == 1


@pytest.mark.parametrize("n", SIMPS)
def test_simpson_is_scipys_of_the_authors_time(n):
    rng = np.random.default_rng(n)
    x, y = np.sort(rng.uniform(size=n)), rng.uniform(size=n)
    assert simpson(y, x) == pytest.approx(SIMPS[n], abs=1e-14)


def test_simpson_is_exact_for_a_parabola_and_ignores_points_that_coincide():
    x = np.array([0, 0.1, 0.4, 0.9, 1.0])
    assert simpson(3 * x**2, x) == pytest.approx(1, abs=1e-14)
    assert np.isfinite(simpson(np.arange(5.0), np.array([0, 0.5, 0.5, 0.5, 1])))
    assert simpson(np.ones(1), np.ones(1)) == 0


def test_without_classes_there_is_no_mean_over_them():
    metrics = Metrics()
    for map_, mask, _ in drawn(1):
        metrics.add(map_, mask)
    assert metrics.scores().mean_iou is None
    assert "mIoU" not in metrics.scores().at_threshold(0.5)


def test_image_iou():
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert image_iou(a, b) == 1
    a[:2], b[1:3] = True, True
    assert image_iou(a, b) == pytest.approx(4 / 12)
    assert image_iou(a, ~a) == 0


def test_a_mask_counts_as_probabilities_of_one_and_zero():
    mask = np.random.default_rng(0).random((9, 11)) < 0.4
    counts = count(mask, mask)
    assert (counts.tp == mask.sum()).all() and not counts.fn.any() and not counts.fp.any()
    with pytest.raises(InputError, match="got uint8; expected floats, 0 to 1, or bool"):
        count(mask * np.uint8(255), mask)


def test_unusable_input_is_refused():
    with pytest.raises(InputError, match=r"\(2, 2\) and the mask \(2, 3\)"):
        count(np.zeros((2, 2)), np.zeros((2, 3)))
    with pytest.raises(InputError, match="other values than 0 and 1"):
        count(np.zeros((2, 2)), np.full((2, 2), 255))
    with pytest.raises(InputError, match="nothing to score"):
        Metrics().scores()
    with pytest.raises(InputError, match="expected the same"):
        image_iou(np.zeros((2, 2)), np.zeros((3, 2)))
