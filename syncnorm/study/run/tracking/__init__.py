"""Experiment trackers that follow a study, each in a process of its own."""
