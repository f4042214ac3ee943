"""Tuning: ranges of hyperparameters, and the choice that validation makes for every line of a study."""
