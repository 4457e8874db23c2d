"""Curves of metric against rate, and the difference between two."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.frontier import bjontegaard

RATES = np.array([0.8, 1.5, 2.4, 3.9, 6.0])
METRICS = np.array([0.2, 0.45, 0.57, 0.6, 0.61])
CURVE = bjontegaard.curve(RATES, METRICS)

points = st.lists(
  st.tuples(st.floats(0.1, 16.0), st.floats(0.0, 1.0)), min_size=1, max_size=12
)


def test_a_curve_does_not_differ_from_itself():
  difference = bjontegaard.rate_difference(CURVE, CURVE)
  assert difference == pytest.approx((0.0, 0.2, 0.61), abs=1e-9)


def test_scaled_rates_differ_by_their_scale():
  other = bjontegaard.curve(0.7 * RATES, METRICS)
  found = bjontegaard.rate_difference(CURVE, other)
  assert found.percent == pytest.approx(-30.0)
  back = bjontegaard.rate_difference(other, CURVE)
  assert back.percent == pytest.approx(100 / 0.7 - 100)


def test_only_the_common_range_counts_and_nothing_below_the_floor():
  # The same curve, measured where the other was not.
  exact = lambda x: 0.1 + 0.2 * np.log(x)  # noqa: E731
  a, b = np.linspace(1, 6, 30), 0.8 * np.linspace(2, 9, 30)
  first = bjontegaard.curve(a, exact(a))
  second = bjontegaard.curve(b, exact(b / 0.8))
  found = bjontegaard.rate_difference(first, second, low=0.3)
  assert found.percent == pytest.approx(-20, abs=0.1)
  assert found.low == 0.3
  assert found.high == pytest.approx(exact(6))


@pytest.mark.parametrize("metrics", [METRICS + 0.5, METRICS - 0.5])
def test_without_overlap_there_is_no_difference(metrics):
  other = bjontegaard.curve(RATES, metrics)
  assert bjontegaard.rate_difference(CURVE, other) is None
  assert bjontegaard.rate_difference(CURVE, CURVE, low=0.7) is None


def test_a_single_point_is_a_curve_without_extent():
  single = bjontegaard.curve([2.0], [0.5])
  assert bjontegaard.rate_difference(CURVE, single) is None
  assert bjontegaard.rate_at(single, 0.5) == pytest.approx(2.0)
  assert bjontegaard.rate_at(single, 0.4) is None


def test_the_curve_goes_through_its_points_and_not_beyond():
  for rate, metric in zip(RATES, METRICS, strict=True):
    assert bjontegaard.metric_at(CURVE, rate) == pytest.approx(metric)
    assert bjontegaard.rate_at(CURVE, metric) == pytest.approx(rate)
  assert bjontegaard.metric_at(CURVE, 0.7) is None
  assert bjontegaard.metric_at(CURVE, 6.1) is None
  assert bjontegaard.rate_at(CURVE, 0.62) is None


@settings(max_examples=50, deadline=None)
@given(points)
def test_curves_increase_strictly_within_the_points(points):
  rates, metrics = zip(*points, strict=True)
  curve = bjontegaard.curve(rates, metrics)
  assert np.all(np.diff(curve.log_rate) > 0)
  assert np.all(np.diff(curve.metric) > 0)
  assert min(metrics) - 1e-9 <= curve.metric[0]
  assert curve.metric[-1] <= max(metrics) + 1e-9


@settings(max_examples=50, deadline=None)
@given(points)
def test_the_front_is_what_no_smaller_file_beats(points):
  rates, metrics = zip(*points, strict=True)
  front = bjontegaard.front(rates, metrics)
  for i in range(len(points)):
    assert any(rates[j] <= rates[i] and metrics[j] >= metrics[i] for j in front)
  assert all(
    rates[i] < rates[j] and metrics[i] < metrics[j]
    for i, j in itertools.pairwise(front)
  )


@pytest.mark.parametrize("rates", [[], [0.0, 1.0], [1.0, np.nan]])
def test_what_is_no_curve_is_refused(rates):
  with pytest.raises(ValueError, match="curve"):
    bjontegaard.curve(rates, METRICS[: len(rates)])
