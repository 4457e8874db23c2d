"""Shapes that the tests and the benchmarks share."""

# Tensors for the moments op: whole tiles, ragged in each way, stacked layers,
# a convolution, vectors, a single number.
MOMENTS = (
  (512, 2048),
  (2, 256, 1024),
  (500, 777),
  (30, 4100),
  (3, 5, 7, 130),
  (3, 3, 64, 128),
  (102400,),
  (4097,),
  (1, 1),
  (),
)

# Tensors to measure bandwidth with, from 4 MiB of float32 on.
LARGE = ((1024, 1024), (4096, 1024), (16384, 1024), (30522, 768))


def bert(width: int = 768, layers: int = 12) -> dict[str, tuple[int, ...]]:
  """path -> shape of the 199 tensors, 109 million parameters, of BERT-base.

  With width 384 and 6 layers they are the 23 million of MiniLM.

  Source: Devlin et al., arXiv 1810.04805.
  """
  mlp = 4 * width
  shapes: dict[str, tuple[int, ...]] = {
    "embeddings/word": (30522, width),
    "embeddings/position": (512, width),
    "embeddings/token_type": (2, width),
    "embeddings/norm/scale": (width,),
    "embeddings/norm/bias": (width,),
    "pooler/kernel": (width, width),
    "pooler/bias": (width,),
  }
  for i in range(layers):
    layer = f"encoder/layers_{i}"
    for name in ("query", "key", "value", "out"):
      shapes[f"{layer}/attention/{name}/kernel"] = (width, width)
      shapes[f"{layer}/attention/{name}/bias"] = (width,)
    shapes[f"{layer}/mlp/up/kernel"] = (width, mlp)
    shapes[f"{layer}/mlp/up/bias"] = (mlp,)
    shapes[f"{layer}/mlp/down/kernel"] = (mlp, width)
    shapes[f"{layer}/mlp/down/bias"] = (width,)
    for norm in ("attention_norm", "mlp_norm"):
      shapes[f"{layer}/{norm}/scale"] = (width,)
      shapes[f"{layer}/{norm}/bias"] = (width,)
  return shapes
