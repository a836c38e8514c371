"""Accuracy and calibration error, computed one image at a time in exact fractions."""

from fractions import Fraction


def accuracy_percent(rows):
    """Rows are (label, prediction, confidence)."""
    return 100 * Fraction(sum(label == predicted for label, predicted, _ in rows), len(rows))


def class_accuracies_percent(rows):
    return {
        label: accuracy_percent([row for row in rows if row[0] == label])
        for label in {row[0] for row in rows}
    }


def mean_class_accuracy_percent(rows):
    item = class_accuracies_percent(rows)
    return sum(item.values()) / len(item)


def expected_calibration_error_percent(rows, bins=15):
    total = Fraction(0)
    for index in range(bins):
        low, high = index / bins, (index + 1) / bins
        inside = [row for row in rows if low < row[2] <= high or (index == 0 and row[2] == 0)]
        if inside:
            confidence = sum(Fraction(row[2]) for row in inside) / len(inside)
            gap = abs(accuracy_percent(inside) / 100 - confidence)
            total += Fraction(len(inside), len(rows)) * gap
    return 100 * total
