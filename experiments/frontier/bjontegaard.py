"""Curves of a metric against the rate, and the rate between two of them.

The Bjontegaard difference is the mean difference in log rate at equal metric,
over the metrics that both curves reach. Nothing is extrapolated.

Source: Bjontegaard, VCEG-M33, 2001; with the monotone cubic interpolation that
is usual since, which does not overshoot between measurements.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import interpolate


class Curve(NamedTuple):
  """Points of a curve; both arrays increase strictly, float64 [P].

  Attributes:
    log_rate: natural logarithms of the rates.
    metric: the higher the better.
  """

  log_rate: np.ndarray
  metric: np.ndarray


class Difference(NamedTuple):
  """What lies between two curves.

  Attributes:
    percent: mean difference of the rates; -30: the other needs 30% less.
    low: least metric that was compared.
    high: greatest metric that was compared.
  """

  percent: float
  low: float
  high: float


def front(rates: Sequence[float], metrics: Sequence[float]) -> list[int]:
  """Indices of the points that none of at most their rate is as good as.

  They come in the order of their rates: the upper envelope of the points.
  """
  best, chosen = -np.inf, []
  for i in sorted(range(len(rates)), key=lambda i: (rates[i], -metrics[i])):
    if metrics[i] > best:
      best = metrics[i]
      chosen.append(i)
  return chosen


def curve(rates: Sequence[float], metrics: Sequence[float]) -> Curve:
  """The increasing curve nearest to the points, by isotonic regression.

  Neighbours out of order, as noise makes them, are replaced by their mean.

  Args:
    rates: positive, [P].
    metrics: [P].

  Raises:
    ValueError: without a point, or with one that is no point of a curve.
  """
  order = np.argsort(rates, kind="stable")
  with np.errstate(divide="ignore", invalid="ignore"):
    x = np.log(np.asarray(rates, float)[order])
  y = np.asarray(metrics, float)[order]
  if not len(x) or not np.all(np.isfinite(x) & np.isfinite(y)):
    raise ValueError(
      f"a curve needs points of finite metric and positive finite rate, found"
      f" rates {list(rates)}, metrics {list(metrics)}"
    )
  means: list[np.ndarray] = []  # Of blocks: log rate, metric.
  sizes: list[int] = []
  for point in np.stack([x, y], axis=1):
    means.append(point)
    sizes.append(1)
    while len(means) > 1 and not np.all(means[-1] > means[-2]):
      n, m = sizes[-2:]
      means[-2:] = [(n * means[-2] + m * means[-1]) / (n + m)]
      sizes[-2:] = [n + m]
  log_rate, metric = np.array(means).T
  return Curve(log_rate, metric)


def rate_difference(
  reference: Curve, other: Curve, low: float = -np.inf
) -> Difference | None:
  """By how much the rates of `other` differ from those of `reference`.

  Args:
    reference: what is compared with.
    other: what is compared.
    low: metrics below this are left out.

  Returns:
    The mean over the common range of metrics, or None where there is none.
  """
  low = max(low, reference.metric[0], other.metric[0])
  high = min(reference.metric[-1], other.metric[-1])
  if not low < high:
    return None
  areas = [
    _monotone(c.metric, c.log_rate).integrate(low, high)
    for c in (reference, other)
  ]
  mean = (areas[1] - areas[0]) / (high - low)
  return Difference(100 * float(np.expm1(mean)), float(low), float(high))


def rate_at(curve: Curve, metric: float) -> float | None:
  """The rate that reaches a metric; None where the curve does not have it."""
  if not _within(curve.metric, metric):
    return None
  if len(curve.metric) == 1:
    return float(np.exp(curve.log_rate[0]))
  return float(np.exp(_monotone(curve.metric, curve.log_rate)(metric)))


def metric_at(curve: Curve, rate: float) -> float | None:
  """The metric at a rate; None where the curve does not have it."""
  x = np.log(rate)
  if not _within(curve.log_rate, x):
    return None
  if len(curve.metric) == 1:
    return float(curve.metric[0])
  return float(_monotone(curve.log_rate, curve.metric)(x))


def _within(points, x):
  """Whether x is between the points, or at an end but for rounding."""
  return points[0] - 1e-9 <= x <= points[-1] + 1e-9


def _monotone(x, y):
  return interpolate.PchipInterpolator(x, y)
