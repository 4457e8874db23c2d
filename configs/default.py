"""Every field there is, with its plain value; other configs start from here.

python -m experiments.main --config=configs/default.py --workdir=runs/default
Any field can be set on the command line: --config.optimizer.learning_rate=1e-4
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.seed = 0  # Initial parameters and the order of the examples.
  config.total_steps = 1000
  config.log_every = 20  # Steps between records of the training metrics.
  config.eval_every = 200  # Steps between passes over the validation split.
  config.checkpoint_every = 200
  config.keep_checkpoints = 2  # The newest ones; all were found finite.

  config.data = data = ml_collections.ConfigDict()
  # Or "python_stdlib/bytes", "imdb", "enron_spam", "newsgroups20", "sst2",
  # "squad", "wmt19"; see docs/data.md.
  data.name = "python_stdlib/modules"
  data.dir = config_dict.placeholder(str)  # None: the default cache.
  data.batch_size = 64  # Of all devices together.
  data.eval_batch_size = 256
  data.seq_len = 128  # Tokens per example; what is longer is cut.
  data.source = config_dict.placeholder(str)  # None downloads; or a directory.
  data.tokenizer = "bytes"  # Or a directory or hub id with a tokenizer.
  data.strip = True  # newsgroups20: no headers, quotations and signatures.
  data.pack = True  # squad, wmt19: several training examples in a sequence.
  data.max_train = config_dict.placeholder(int)  # Examples; None: all.
  data.max_eval = config_dict.placeholder(int)  # Of each other split.

  config.model = model = ml_collections.ConfigDict()
  model.name = "encoder"  # Or "decoder", for next-byte prediction.
  # A published architecture ("bert", "gpt2", "llama", "gemma2"): its named
  # size, None for depth to mlp below; or a directory or hub id with weights.
  model.size = config_dict.placeholder(str)
  model.weights = config_dict.placeholder(str)
  model.depth = 2
  model.width = 128
  model.heads = 4
  model.mlp = 256  # Hidden size of the feed-forward layers.
  model.dtype = "float32"  # Of the activations; parameters are float32.
  model.dropout = 0.0
  model.remat = False  # Recompute activations in the backward pass.
  model.scan = False  # Stack the layers' parameters, and scan over them.

  config.optimizer = optimizer = ml_collections.ConfigDict()
  optimizer.name = "adamw"  # Or "sgd".
  optimizer.learning_rate = 1e-3  # At the end of the warm-up.
  optimizer.warmup_steps = 50
  optimizer.end_learning_rate = 0.0  # As a fraction of the peak.
  optimizer.weight_decay = 0.0  # On the matrices.
  optimizer.clip_norm = 1.0  # Of the gradient of the task loss.
  optimizer.b1 = 0.9  # Of "sgd": its momentum.
  optimizer.b2 = 0.999

  # The rate term, see backslash_jax.backslash.
  config.rate = rate = ml_collections.ConfigDict()
  # Its weight, as one of the three; 0 and None: normal training.
  rate.lmbda = 0.0
  rate.balance = config_dict.placeholder(float)  # See bs.gradient_balance.
  # Bits; see bs.target_rate, whose limit is the balance, if there is one.
  rate.target = config_dict.placeholder(float)
  rate.rate = "dggr"  # Or "bits", "code_length".
  rate.shape = config_dict.placeholder(float)  # None estimates nu.
  rate.scope = "model"  # Or "tensor": one nu each.
  rate.epsilon = config_dict.placeholder(float)  # None: step / 2.
  rate.step = 2.0**-8  # Quantization step that bits are counted for.
  rate.mask = "matrices"  # Or "all": biases and normalization too.
  rate.update_every = 1  # Steps between estimates of nu.
  # "coupled": before Adam; "decoupled": after it; "proximal": the same, but
  # the rate pulls no weight past zero; "unscaled": after the learning rate.
  rate.placement = "coupled"
  rate.warmup_steps = 0  # lmbda rises linearly from 0 over these.
  rate.stop_step = config_dict.placeholder(int)  # Then plain training.
  rate.keep_zeros = False  # What is coded as 0 by then stays 0.

  # What the loss sees of the matrices, one at most: rounded to this step, with
  # uniform noise of this width, quantized to so many bits per tensor, or
  # rounded to steps of their own, with which they take so many bits per
  # parameter: see bs.fit_steps. The file then has these steps.
  config.round_step = config_dict.placeholder(float)
  config.noise_step = config_dict.placeholder(float)
  config.quantize_bits = config_dict.placeholder(int)
  config.round_bits = config_dict.placeholder(float)
  config.round_start = 0  # Steps in which the loss sees them as they are.

  # The smallest weights of each matrix are removed, ever more of them.
  config.prune = prune = ml_collections.ConfigDict()
  prune.sparsity = 0.0  # Fraction removed in the end; 0: none.
  prune.begin_step = 0
  prune.end_step = 700
  prune.every = 10  # Steps between choices of what is removed.

  config.evaluate = evaluate = ml_collections.ConfigDict()
  # With round_bits they are in units of each matrix's own step.
  evaluate.steps = tuple(2.0**-k for k in range(3, 11))
  evaluate.absmax = False  # Steps are in units of a matrix's largest value.
  # Batches of which squared gradients tell how sensitive the loss is to each
  # matrix; steps are finer where it is, see quantize.sensitive_steps. 0: they
  # are the same for all.
  evaluate.sensitivity_batches = 0
  evaluate.mu = 0.0  # What a bit may cost when rounding; see bs.save.
  evaluate.pruning_rates = tuple(k / 10 for k in range(10))
  # The step that the shipped file is coded with. None: the coarsest whose
  # validation accuracy is within `tolerance` points (of 100) of the
  # unquantized model's.
  evaluate.step = config_dict.placeholder(float)
  evaluate.tolerance = 0.5
  evaluate.coder = "rans"  # Or "exp_golomb".

  # The devices, of all processes together; one axis may be -1: the rest.
  config.mesh = mesh = ml_collections.ConfigDict()
  mesh.data = -1  # Copies of the model.
  mesh.fsdp = 1  # Splits parameters and optimizer state, and the batch.
  mesh.tensor = 1  # Splits the computation within a layer.

  # Several processes, as on a pod. What is None is taken from the cluster.
  config.distributed = distributed = ml_collections.ConfigDict()
  distributed.enable = False
  distributed.coordinator = config_dict.placeholder(str)  # host:port of 0.
  distributed.processes = config_dict.placeholder(int)  # How many.
  distributed.process = config_dict.placeholder(int)  # Which one this is.

  # Trainings to compare: name -> the fields in which it differs from the
  # above. Empty: one training.
  config.arms = ml_collections.ConfigDict()
  config.baseline = "normal"  # The arm that the others are compared with.
  return config
