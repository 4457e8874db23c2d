"""The command `python -m experiments.deploy`, see release."""

from experiments.deploy import release

release.main()
