"""Models of one architecture that train together in one computation: clients of a round, or runs of a study."""
