"""The command `python -m experiments.deploy`, see release."""

from experiments import program
from experiments.deploy import release

program.end(release.main)
