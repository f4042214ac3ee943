"""Running a study: workers, torchrun launches, the results folder, progress, tracking."""
