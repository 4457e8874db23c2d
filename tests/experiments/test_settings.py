"""Every field of a config is checked before the first update."""

import math
import re

import pytest

from configs import default, edge
from experiments import fields, rules, settings
from tests import tiny

_NAN, _HUGE = math.nan, 10**40
_ALL = sorted(fields.FIELDS | fields.STRUCTURE)


def _config():
  config = tiny.config().unlock()
  edge.add_structure(config)
  config.structure.end_update = 12
  return config


def _with(field, value):
  """The config with a value of any type."""
  config = _config()
  *parts, name = field.split(".")
  node = config
  for part in parts:
    node = node[part]
  with node.ignore_type():
    node[name] = value
  return config


@pytest.mark.parametrize("field", _ALL)
def test_values_of_no_use_are_refused_in_one_line_with_the_field(field):
  """Of a wrong type, nan, infinite, negative, larger than 32 bits, empty."""
  for value in (
    *(_NAN, math.inf, -math.inf, -2, -0.5, _HUGE, 1e300, 1e-300),
    *("", " ", "a\0b", 1j, {1: 2}, object(), [[]], ((),), (_NAN,), (-1,)),
  ):
    if field == "model.dropout" and value == 0:
      continue
    with pytest.raises(settings.UserError) as caught:
      settings.check(_with(field, value))
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"config.{field} is ")
    assert ", wanted " in line


@pytest.mark.parametrize("field", _ALL)
def test_a_number_is_no_truth_value_and_a_list_no_number(field):
  value = rules.get(_config(), field)
  others = [True] if not isinstance(value, bool) else [1, 0.0, "True"]
  if isinstance(value, int | float):
    others += [(value,), str(value)]
  for other in others:
    config = _with(field, other)
    if type(rules.get(config, field)) is not type(other):
      continue  # ConfigDict made a float of it.
    with pytest.raises(settings.UserError, match=re.escape(field)):
      settings.check(config)


@pytest.mark.parametrize(
  ("changes", "field"),
  [
    ({"rate.rate": "bits"}, "rate.rate"),
    ({"rate.shape": 1.0}, "rate.shape"),
    ({"rate.update_every": 4}, "rate.update_every"),
    ({"rate.placement": "decoupled"}, "rate.placement"),
    ({"optimizer.name": "sgd", "optimizer.b2": 0.9}, "optimizer.b2"),
    ({"prune.end_update": 12}, "prune.end_update"),
    ({"prune.every": 3}, "prune.every"),
  ],
)
def test_a_field_that_does_nothing_is_refused(changes, field):
  config = default.get_config()
  config.update_from_flattened_dict(changes)
  with pytest.raises(settings.UserError) as caught:
    settings.arms(config)
  (line,) = str(caught.value).splitlines()
  assert line.startswith(f"config.{field} is {changes[field]!r}, wanted ")
  # One arm that uses it is enough.
  config.arms.normal = {}
  config.arms.other = {
    "rate": {"lmbda": 1.0},
    "optimizer": {"name": "adamw"},
    "prune": {"sparsity": 0.5, "end_update": 12},
  }
  assert list(settings.arms(config)) == ["normal", "other"]


@pytest.mark.parametrize("field", ["rate.step", "round_step", "evaluate.steps"])
def test_steps_below_the_precision_of_weights_are_refused(field):
  step = 2.0**-30
  value = (step,) if field == "evaluate.steps" else step
  with pytest.raises(settings.UserError, match=re.escape(field)):
    settings.check(_with(field, value))


def test_a_model_beyond_the_memory_is_refused():
  """It was built, tensor by tensor, until the machine had no memory left."""
  config = tiny.config(model__depth=1024, model__width=2**15)
  with pytest.raises(settings.UserError, match=r"model\.depth is 1024, wanted"):
    settings.check(config)


def test_sizes_beside_weights_are_refused():
  config = default.get_config()
  config.update_from_flattened_dict(
    {"model.name": "bert", "model.weights": "{dir}", "model.depth": 3}
  )
  with pytest.raises(settings.UserError, match=r"model\.depth is 3, wanted"):
    settings.arms(config)
  config.model.depth = default.get_config().model.depth
  config.model.size = "{dir}"
  with pytest.raises(settings.UserError, match=r"model\.size is '\{dir\}'"):
    settings.arms(config)


def test_each_broken_rule_is_a_line_of_its_own():
  config = tiny.config(
    optimizer__warmup_updates=12, model__heads=3, prune__begin_update=900
  )
  with pytest.raises(settings.UserError) as caught:
    settings.check(config)
  lines = str(caught.value).splitlines()
  assert [line.split(" is ")[0] for line in lines] == [
    "config.model.width",
    "config.optimizer.warmup_updates",
    "config.prune.begin_update",
  ]
