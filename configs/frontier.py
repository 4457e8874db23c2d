"""The grid of a frontier: methods x operating points x seeds, as data.

A method has fields that all of its trainings share, and operating points, each
with further fields. The fields are those of configs/default.py. A new method is
an entry of `methods`, a new point a value.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

# The rates, by the names of the methods that use them.
RATES: dict[str, dict[str, Any]] = {
  "l0p5": {"rate.shape": 0.5},
  "l1": {"rate.shape": 1.0},
  "l2": {"rate.shape": 2.0},
  "dggr": {},  # One nu for all parameters: the paper.
  "dggr_tensor": {"rate.scope": "tensor"},
  "bits": {"rate.rate": "bits", "rate.scope": "tensor"},
}


# The methods and values of the small grid; the full one has every method.
SMALL = (
  "normal",
  "rdo",
  "sensitive",
  "feedback",
  "l1_feedback",
  "fitted_feedback",
  "decay",
  "prune",
  "qat",
  "dggr_released",
  "l1",
  "dggr",
  "bits",
  "round",
  "round_l1",
  "round_dggr",
  "round_bits",
  "l1_target",
  "l1_target_sensitive",
  "dggr_target",
  "bits_target",
  "fitted",
  "l1_target_fitted",
  "qat_late",
)
PROFILES: dict[str, dict[str, Any]] = {
  "small": {
    "balances": (0.1, 0.3),
    "targets": (0.6, 1.2),
    "decays": (1.0,),
    "sparsities": (0.5, 0.8),
    "mus": (0.1,),
    "bits": (0.4, 0.7, 1.4),
    "widths": (4, 3, 2),
  },
  "full": {
    "balances": (0.03, 0.1, 0.3, 1.0),
    "targets": (0.5, 1.0, 1.5, 2.0),
    "decays": (0.3, 1.0, 3.0),
    "sparsities": (0.5, 0.7, 0.85),
    "mus": (0.05, 0.1, 0.2),
    "bits": (0.5, 0.7, 1.0, 1.4, 2.0, 2.8),
    "widths": (4, 3, 2),
  },
}
# The grid of fine-tunes as differences from the pretrained weights.
PROFILES["delta"] = PROFILES["small"]
SEEDS = {"small": (0, 1), "full": (0, 1, 2), "delta": (0, 1)}


def add(
  config: ml_collections.ConfigDict,
  profile: str,
  *,
  steps: Sequence[float],
  lambdas: Sequence[float],
  learning_rates: Mapping[str, float],
  candidates: Sequence[float],
  small: Sequence[str] = SMALL,
  best: str = "l1_target_fitted",
  limit: float | None = None,
  **values: Sequence[float],
) -> None:
  """Gives config its `grid`.

  Args:
    config: of configs/default.py; the fields that methods do not set.
    profile: "small" or "full".
    steps: to which the loss sees the weights rounded.
    lambdas: of DGGR as released, which the learning rate does not scale.
    learning_rates: by method, from tuning; the others have that of
      config.optimizer.
    candidates: the learning rates that tuning compares.
    small: the methods of the small grid.
    best: the method that one of the tables compares with all others.
    limit: of the methods with a target, see `bs.target_rate`.
    **values: replace those of PROFILES; `differences` gives those of the
      methods for fine-tunes, which are left out without it.
  """
  if profile not in PROFILES:
    raise ValueError(
      f"the profile, after the colon of --config, is {profile!r}, wanted one"
      f" of {', '.join(PROFILES)}"
    )
  config.eval_every = config.total_updates
  config.checkpoint_every = 250
  config.keep_checkpoints = 1
  config.evaluate.pruning_rates = ()
  config.grid = grid = ml_collections.ConfigDict()
  # The strongest quantizer of a normal training, and the plainest, which the
  # tables have beside it.
  grid.baseline = "feedback"
  grid.plain = "normal"
  grid.best = best
  grid.seeds = SEEDS[profile]  # Of initial parameters and order of the data.
  grid.bits = (1.0, 2.0, 3.0, 4.0)  # At which the tables compare.
  # Accuracies below this fraction of the baseline's best are left out.
  grid.floor = 0.9
  # True: compares learning rates instead, on the validation split.
  grid.tune = False
  grid.learning_rates = tuple(candidates)
  grid.methods = ml_collections.ConfigDict()
  values = {"steps": steps, "lambdas": lambdas} | PROFILES[profile] | values
  found = methods(
    config.total_updates,
    limit=limit,
    # Steps by sensitivity may be coarser: no matrix loses all of its levels.
    sensitive_steps=tuple(2 * step for step in config.evaluate.steps),
    **values,
  )
  for name in found if profile == "full" else small:
    points = found[name]["points"]
    grid.methods[name] = ml_collections.ConfigDict(
      {
        "learning_rate": config_dict.placeholder(float),
        "tuned_at": list(points)[len(points) // 2],
        "fields": _nested(found[name]["fields"]),
        "points": {k: _nested(v) for k, v in points.items()},
      }
    )
    if name in learning_rates:
      grid.methods[name].learning_rate = learning_rates[name]


def methods(
  total_updates: int,
  *,
  balances: Sequence[float],
  targets: Sequence[float],
  steps: Sequence[float],
  lambdas: Sequence[float],
  decays: Sequence[float],
  sparsities: Sequence[float],
  mus: Sequence[float],
  bits: Sequence[float],
  widths: Sequence[int],
  sensitive_steps: Sequence[float],
  limit: float | None = None,
  differences: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, dict[str, Any]]:
  """Every method there is, by name.

  Args:
    total_updates: of a training.
    balances: norms of the rate's gradient, `rate.balance`.
    targets: bits per parameter at `rate.step`, `rate.target`.
    steps: to which the loss sees the weights rounded.
    lambdas: of DGGR as released, which the learning rate does not scale.
    decays: weight decays.
    sparsities: fractions of the weights that are removed.
    mus: of rate-distortion optimized rounding, `evaluate.mu`.
    bits: to which steps are fitted; the loss sees the weights rounded to them
      in the last third of the training.
    widths: bits of quantization-aware training.
    sensitive_steps: means of the steps of files with a step per matrix.
    limit: of the methods with a target, `rate.limit`.
    differences: of the methods for fine-tunes, see `_differences`.
  """
  limited = {} if limit is None else {"rate.limit": limit}
  sensitive = {
    "evaluate.sensitivity_batches": 24,
    "evaluate.steps": tuple(sensitive_steps),
  }
  balance = {"rate.balance": balances}
  rounded = {("round_step", "rate.step"): steps}
  late = {"round_begin_update": max(1, 2 * total_updates // 3)}
  fitted = late | {"evaluate.steps": (), "evaluate.scales": (1.0,)}
  to_bits = {"round_bits": bits}
  # With feedback a model bears coarser ones still.
  coarser = sorted({c * step for step in sensitive_steps for c in (1, 2)})
  feedback, priced = {"evaluate.feedback_batches": 24}, {"evaluate.mu": 0.1}
  released = {
    "rate.placement": "unscaled",
    "rate.epsilon": 1.0,
    "rate.mask": "all",
    "rate.stop_update": total_updates // 2,
  }
  # The file has the levels that training saw.
  trained_for = {
    f"{n}_bits": {
      "quantize_bits": n,
      "evaluate.steps": (),
      "evaluate.levels": (2 ** (n - 1) - 1,),
    }
    for n in widths
  }
  found = {
    "normal": method({}, {}),
    "rdo": method({}, {"evaluate.mu": mus}),
    "sensitive": method(sensitive, {}),
    "feedback": method(
      sensitive | feedback | {"evaluate.steps": tuple(coarser)},
      {"evaluate.mu": mus},
    ),
    "l1_feedback": method(RATES["l1"] | feedback | priced, balance),
    "fitted_feedback": method(fitted | feedback | priced, to_bits),
    "decay": method({}, {"optimizer.weight_decay": decays}),
    "round": method({}, rounded),
    "dggr_released": method(released, {"rate.lmbda": lambdas}),
    "dggr_released_zeros": method(
      released | {"rate.keep_zeros": True}, {"rate.lmbda": lambdas}
    ),
    "l1_sensitive": method(RATES["l1"] | sensitive, balance),
    "l1_target_sensitive": method(
      RATES["l1"] | limited | sensitive, {"rate.target": targets}
    ),
    "fitted": method(fitted, to_bits),
    "l1_fitted": method(RATES["l1"] | fitted, balance | to_bits),
    "dggr_fitted": method(RATES["dggr"] | fitted, balance | to_bits),
    # `bs.recommended(bits, begin=...)`: the target is that of the file.
    "l1_target_fitted": method(
      RATES["l1"] | limited | fitted | {"rate.step": 2.0**-4},
      {("rate.target", "round_bits"): bits},
    ),
    "l1_zeros": method(
      RATES["l1"]
      | {"rate.stop_update": 2 * total_updates // 3, "rate.keep_zeros": True},
      balance,
    ),
    "round_l1_target": method(
      RATES["l1"] | limited, {"rate.target": targets} | rounded
    ),
    "prune": method(
      {"prune.end_update": max(1, 7 * total_updates // 10)},
      {"prune.sparsity": sparsities},
    ),
    "qat": {"fields": {}, "points": trained_for},
    "qat_late": {"fields": late, "points": trained_for},
    "qat_l1": {
      "fields": RATES["l1"],
      "points": {
        f"{name}_{_label(value)}": point | {"rate.balance": value}
        for name, point in trained_for.items()
        for value in balances
      },
    },
  }
  for name, fields in RATES.items():
    found[name] = method(fields, balance)
    found[f"{name}_target"] = method(fields | limited, {"rate.target": targets})
    found[f"round_{name}"] = method(fields, balance | rounded)
  if differences is not None:
    found |= _differences(fitted, **differences)
  return found


def _differences(
  fitted: Mapping[str, Any],
  *,
  steps: Sequence[float],
  balances: Sequence[float],
  bits: Sequence[float],
  ranks: Sequence[int],
  rank_steps: Sequence[float],
) -> dict[str, dict[str, Any]]:
  """Methods that fine-tune a difference from pretrained weights, or adapters.

  Args:
    fitted: the fields of methods with fitted steps.
    steps: of the files; those of biases and scales are a quarter of them.
    balances: norms of the rate's gradient.
    bits: to which steps are fitted.
    ranks: of the adapters of LoRA.
    rank_steps: means of the steps of their files, with a step per matrix.
  """
  coded = {"evaluate.vectors": 0.25}
  delta = {"model.delta": True, "rate.mask": "all", "rate.step": 2.0**-8}
  files = coded | {"evaluate.steps": tuple(steps)}
  sensitive = {"evaluate.sensitivity_batches": 24}
  adapters = coded | sensitive | {"evaluate.steps": tuple(rank_steps)}
  balance, to_bits = {"rate.balance": balances}, {"round_bits": bits}
  return {
    "delta": method(delta | files, {}),
    "delta_l1": method(RATES["l1"] | delta | files, balance),
    "delta_dggr": method(RATES["dggr"] | delta | files, balance),
    "delta_fitted": method(fitted | delta, to_bits),
    "delta_l1_fitted": method(RATES["l1"] | fitted | delta, balance | to_bits),
    "delta_dggr_fitted": method(
      RATES["dggr"] | fitted | delta, balance | to_bits
    ),
    "lora": method(adapters, {"model.lora": ranks}),
    "lora_dggr": method(
      RATES["dggr"] | adapters, {"model.lora": ranks} | balance
    ),
  }


def method(
  fields: Mapping[str, Any], vary: Mapping[str | tuple[str, ...], Iterable]
) -> dict[str, Any]:
  """A method with an operating point for every combination of values.

  Args:
    fields: "a.b" -> value, for all points.
    vary: "a.b" -> its values; the fields of a tuple get the same value.
  """
  points = {}
  for values in itertools.product(*vary.values()):
    point = {}
    for names, value in zip(vary, values, strict=True):
      for name in (names,) if isinstance(names, str) else names:
        point[name] = value
    points[_label(*values) or "only"] = point
  return {"fields": dict(fields), "points": points}


def _label(*values):
  """The name of an operating point with these values."""
  return "_".join(f"{v:g}".replace(".", "p") for v in values)


def _nested(flat):
  """{"a.b": 1} -> {"a": {"b": 1}}."""
  nested: dict[str, Any] = {}
  for path, value in flat.items():
    *groups, name = path.split(".")
    level = nested
    for group in groups:
      level = level.setdefault(group, {})
    level[name] = value
  return nested
