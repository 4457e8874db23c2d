"""The optimizer step against the same update in eager PyTorch.

pip install torch && python -m experiments.bench.eager

On the 110 million float32 parameters of BERT-base: AdamW with the rate of the
paper, from its formula, one PyTorch operation after another, against
chain(backslash, adamw) in one compiled program. The latter also measures the
bits in every 16th update. Both with the threads that they choose themselves.
"""

import importlib
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import optax

import backslash_jax as bs
from experiments import program
from experiments.bench import optimizer, shapes, timing

_RATE = 1e-5
_EPSILON = 2**-9  # Half the step that backslash has by default.


def shape_parameter(abs_sum: float, square_sum: float, count: int) -> float:
  """nu of the generalized Gaussian with these sums, by bisection."""
  target = math.log(square_sum * count / abs_sum**2)
  low, high = 0.1, 8.0
  for _ in range(40):
    nu = (low + high) / 2
    found = math.lgamma(1 / nu) + math.lgamma(3 / nu) - 2 * math.lgamma(2 / nu)
    low, high = (nu, high) if found > target else (low, nu)
  return (low + high) / 2


def rate_gradients(params: list[Any], lmbda: float) -> list[Any]:
  """lmbda nu / N sign(x) (|x| + eps)^(nu - 1) of torch tensors, anew."""
  abs_sum = sum(float(x.norm(1)) for x in params)
  square_sum = sum(float(x.norm()) ** 2 for x in params)
  count = sum(x.numel() for x in params)
  nu = shape_parameter(abs_sum, square_sum, count)
  c = lmbda * nu / count
  # In place wherever that goes, as an optimizer would be written.
  powers = (x.abs().add_(_EPSILON).pow_(nu - 1) for x in params)
  return [p.mul_(x.sign()).mul_(c) for p, x in zip(powers, params, strict=True)]


def make_step(
  params: dict[str, np.ndarray], grads: dict[str, np.ndarray], lmbda: float
) -> Callable[[], None]:
  """A call of which does one update in place, from its own copy of params."""
  torch: Any = importlib.import_module("torch")
  tensors = [
    torch.from_numpy(x.copy()).requires_grad_() for x in params.values()
  ]
  task_grads = [torch.from_numpy(x.copy()) for x in grads.values()]
  adamw = torch.optim.AdamW(tensors, lr=_RATE, weight_decay=1e-4)

  @torch.no_grad()
  def run():
    rate_grads = rate_gradients(tensors, lmbda)
    for x, g, r in zip(tensors, task_grads, rate_grads, strict=True):
      x.grad = r.add_(g)
    adamw.step()

  return run


def _main(argv):
  del argv
  torch: Any = importlib.import_module("torch")
  params = optimizer.tensors(shapes.bert(), 0)
  grads = optimizer.tensors(shapes.bert(), 1)
  rate = bs.backslash(1.0, update_every=1)
  tx = optax.chain(rate, optax.adamw(_RATE))
  on_host = [{k: np.asarray(x) for k, x in t.items()} for t in (params, grads)]
  steps = {
    "JAX": optimizer.make_step(tx, params, grads),
    "PyTorch, eager": make_step(*on_host, lmbda=1.0),
  }
  times = timing.measure(steps, timing.REPEATS.value)
  timing.write(
    "eager",
    " ".join(["python -m experiments.bench.eager", *sys.argv[1:]]),
    {
      "parameters": sum(x.size for x in params.values()),
      "torch": torch.__version__,
      "threads": torch.get_num_threads(),
      **timing.compare(times, "JAX"),
    },
  )


if __name__ == "__main__":
  program.run(_main)
