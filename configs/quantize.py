"""Post-training quantization of a language model, SmolLM2, to a size.

python -m experiments.quantize --config=configs/quantize.py --bits=3 \
  --out=OUT --config.model.weights=DIR --config.data.tokenizer=DIR \
  --config.data.source=DATA

DIR is a directory with weights and tokenizer as of Hugging Face, DATA one as in
docs/data.md. `evaluate.feedback_batches` batches of training texts tell the
quantizer what the layers are given; the loss is that of the test texts.

--texts=FILE takes the texts of a file instead.

Hardware: SmolLM2, 135M parameters, took 7 to 13 minutes of a CPU core that
other programs used too, and up to 3.8 GB of memory; rounded, 2 minutes and 2.9
GB.
"""

import ml_collections

from configs import reviews


def get_config() -> ml_collections.ConfigDict:
  config = reviews.get_config()
  config.evaluate.feedback_batches = 6
  config.evaluate.mu = 0.1
  return config
