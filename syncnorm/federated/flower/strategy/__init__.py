"""NormFedAvg and what its rounds consist of: replies, states, metrics, the server's step."""
