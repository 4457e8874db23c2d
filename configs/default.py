"""Every field with its default; the other configs start from here.

python -m experiments.main --config=configs/default.py --workdir=runs/default
Any field can be set on the command line: --config.optimizer.learning_rate=1e-4

A step is a quantization step. A training step is called an update.
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.seed = 0  # Of the initial parameters and the order of the examples.
  config.total_updates = 1000
  config.log_every = 20  # Updates between records of the training metrics.
  config.eval_every = 200  # Updates between passes over the validation split.
  config.checkpoint_every = 200  # Updates between checkpoints.
  config.keep_checkpoints = 2  # The newest ones are kept.

  config.data = data = ml_collections.ConfigDict()
  # Or "python_stdlib/bytes", "imdb", "enron_spam", "newsgroups20", "sst2",
  # "squad", "wmt19"; see docs/data.md.
  data.name = "python_stdlib/modules"
  data.dir = config_dict.placeholder(str)  # None: the default cache.
  data.batch_size = 64  # Of all devices together.
  data.eval_batch_size = 256
  data.seq_len = 128  # Tokens per example; longer ones are cut.
  data.source = config_dict.placeholder(str)  # A directory; None downloads.
  data.tokenizer = "bytes"  # Or a directory or hub id with a tokenizer.
  data.strip = True  # newsgroups20: no headers, quotations and signatures.
  data.pack = True  # squad, wmt19: several training examples in a sequence.
  data.language = False  # Predict the texts of a classification, not classes.
  data.max_train = config_dict.placeholder(int)  # Examples; None: all.
  data.max_eval = config_dict.placeholder(int)  # Of each other split.

  config.model = model = ml_collections.ConfigDict()
  # "encoder" or "decoder" (next-byte prediction) over bytes, or a published
  # architecture: "bert", "gpt2", "llama" or "gemma2".
  model.name = "encoder"
  # Of a published architecture: a named size, or a directory or hub id with
  # weights; both None: depth to mlp below.
  model.size = config_dict.placeholder(str)
  model.weights = config_dict.placeholder(str)
  # Of a pretrained model, at most one: train the difference from the weights;
  # train adapters of this rank, and no weights. 0: train the weights.
  model.delta = False
  model.lora = 0
  # Of a pretrained model whose weights are trained: the part of the loss that
  # compares its predictions with those of the weights as they were.
  model.distill = 0.0
  model.depth = 2
  model.width = 128
  model.heads = 4
  model.mlp = 256  # Hidden size of the feed-forward layers.
  model.dtype = "float32"  # Of the activations; parameters are float32.
  # Of a published architecture: "plain", "chunked", "splash" (TPU) or "cudnn"
  # (GPU), see experiments/models/attention.py. None: by platform and length.
  model.attention = config_dict.placeholder(str)
  model.dropout = 0.0
  model.remat = False  # Recompute activations in the backward pass.
  model.scan = False  # Stack the layers' parameters, and scan over them.

  config.optimizer = optimizer = ml_collections.ConfigDict()
  optimizer.name = "adamw"  # Or "sgd".
  optimizer.learning_rate = 1e-3  # At the end of the warm-up.
  # None: a twentieth of all updates.
  optimizer.warmup_updates = config_dict.placeholder(int)
  optimizer.end_learning_rate = 0.0  # As a fraction of the peak.
  optimizer.weight_decay = 0.0  # On the matrices.
  optimizer.clip_norm = 1.0  # Of the gradient of the task loss.
  optimizer.b1 = 0.9  # For "sgd": the momentum.
  optimizer.b2 = 0.999

  # The rate term, see backslash_jax.backslash.
  config.rate = rate = ml_collections.ConfigDict()
  # Its weight: one of lmbda, balance and target. 0 and None: normal training.
  rate.lmbda = 0.0
  rate.balance = config_dict.placeholder(float)  # See bs.gradient_balance.
  rate.target = config_dict.placeholder(float)  # In bits, see bs.target_rate.
  rate.limit = config_dict.placeholder(float)  # Of target; None: its default.
  rate.rate = "dggr"  # Or "bits".
  rate.shape = config_dict.placeholder(float)  # None estimates nu.
  rate.scope = "model"  # Or "tensor": one nu for each tensor.
  rate.epsilon = config_dict.placeholder(float)  # None: step / 2.
  rate.step = 2.0**-6  # Quantization step at which bits are counted: bs.STEP.
  rate.mask = "matrices"  # Or "all": biases and normalization too.
  # Updates between estimates of nu: 1 as in the paper, 4 in `bs.backslash`.
  rate.update_every = 1
  # "coupled": before Adam; "decoupled": after it; "unscaled": after the
  # learning rate.
  rate.placement = "coupled"
  # The update from which on lmbda is 0; None: never.
  rate.stop_update = config_dict.placeholder(int)
  rate.keep_zeros = False  # Weights that quantize to 0 at stop_update stay 0.

  # How the loss sees the matrices; at most one of: rounded to this step;
  # quantized to so many bits, up to the largest value of each; rounded to a
  # step per matrix, fitted to so many bits per parameter (see bs.fit_steps).
  config.round_step = config_dict.placeholder(float)
  config.quantize_bits = config_dict.placeholder(int)
  config.round_bits = config_dict.placeholder(float)
  config.round_begin_update = 0  # Until then it sees the exact matrices.

  # Gradual removal of the smallest weights of each matrix.
  config.prune = prune = ml_collections.ConfigDict()
  prune.sparsity = 0.0  # Fraction that is removed in the end; 0: none.
  prune.begin_update = 0
  prune.end_update = 700
  prune.every = 10  # Updates between choices of the weights.

  config.evaluate = evaluate = ml_collections.ConfigDict()
  # A coded file for each entry of one of these; the others are ().
  evaluate.steps = tuple(2.0**-k for k in range(3, 11))  # Quantization steps.
  evaluate.levels = ()  # On each side of 0, up to a matrix's largest value.
  evaluate.scales = ()  # With round_bits: multiples of the fitted steps.
  # Batches whose squared gradients measure how sensitive the loss is to each
  # matrix. Sensitive matrices get finer steps, with the entries of `steps` as
  # means; see quantize.sensitive_steps. 0: one step for all matrices.
  evaluate.sensitivity_batches = 0
  # Training batches whose activations tell the quantizer how the error of one
  # weight is corrected by others, see backslash_jax.feedback. 0: each weight is
  # rounded for itself.
  evaluate.feedback_batches = 0
  # The step of biases and scales, as a multiple of that of the matrices. None:
  # they are stored exactly. With round_bits the file has the fitted steps.
  evaluate.vectors = config_dict.placeholder(float)
  evaluate.mu = 0.0  # Of rate-distortion optimized rounding, see bs.save.
  evaluate.pruning_rates = tuple(k / 10 for k in range(10))
  # The coarsest file is shipped whose validation accuracy is at most so many
  # points (of 100) below that of the unquantized model.
  evaluate.tolerance = 0.5
  evaluate.coder = "rans"  # Or "huffman", "exp_golomb", "exp_golomb_ranked".

  # The devices of all processes together; one axis may be -1: the rest.
  config.mesh = mesh = ml_collections.ConfigDict()
  mesh.data = -1  # Copies of the model.
  mesh.fsdp = 1  # Splits parameters and optimizer state, and the batch.
  mesh.tensor = 1  # Splits the computation within a layer.

  # Several processes, as on a pod. None: taken from the cluster.
  config.distributed = distributed = ml_collections.ConfigDict()
  distributed.enable = False
  distributed.coordinator = config_dict.placeholder(str)  # host:port of 0.
  distributed.processes = config_dict.placeholder(int)  # Their number.
  distributed.process = config_dict.placeholder(int)  # The number of this one.
  # Seconds: a process that waits so long for the others ends, unless one that
  # is at work, such as coding a file, causes it.
  distributed.timeout = 600

  # Trainings to compare: name -> the fields in which it differs. Empty: one
  # training.
  config.arms = ml_collections.ConfigDict()
  config.baseline = "normal"  # The arm that the others are compared with.
  return config
