"""Who holds what of a data set."""
