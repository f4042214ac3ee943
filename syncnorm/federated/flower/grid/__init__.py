"""CohortGrid: a Flower grid whose clients train together in one process."""
