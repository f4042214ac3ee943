"""Ranks, real or virtual, as all worlds use them: layers, statistics, what ranks tell each other and agree on."""
