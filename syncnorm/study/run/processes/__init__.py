"""Where a study's runs are trained: a queue, warm workers, torchrun launches."""
