"""The command `python -m experiments.serve`, see serve."""

from experiments import program
from experiments.serve import serve

program.end(serve.main)
