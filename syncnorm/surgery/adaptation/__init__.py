"""Measure statistics on data: recalibrate a model, adapt it at test time."""
