"""hydra/sweeper=optuna: hands the trials of an Optuna study to Hydra's launcher."""
