"""What needs Lightning: the module, the Trainer, its callbacks, and resuming."""
