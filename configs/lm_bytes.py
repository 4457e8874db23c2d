"""Normal training, then training for a quantizer, on next-byte prediction.

A small decoder language model over the bytes of Python's standard library. Such
a model needs all of its weights. After two thirds of the training a step is
fitted to each matrix, for a file of two bits per parameter, and the loss sees
the rounded weights (bs.fit_steps).

python -m experiments.main --config=configs/lm_bytes.py --workdir=runs/lm_bytes
Hardware: two CPU cores. Time: 12 minutes on one of them.
Result of one seed: the normal model predicts 66.6% of the next bytes, in
float32. The other one predicts 65.7% from a file of 2.01 bits per parameter.
The normal model needs 3.43 bits for that, so the file is 41% smaller.
"""

import ml_collections

from configs import quickstart


def get_config() -> ml_collections.ConfigDict:
  config = quickstart.get_config()
  config.data.name = "python_stdlib/bytes"
  config.data.batch_size = 32
  config.data.eval_batch_size = 64
  config.data.max_eval = 512
  config.model.name = "decoder"
  config.optimizer.weight_decay = 1.0
  config.arms.backslash = ml_collections.ConfigDict(
    {
      "round_bits": 2.0,
      "round_begin_update": 2 * config.total_updates // 3,
      "evaluate": {"steps": (), "scales": (1.0,)},
    }
  )
  return config
