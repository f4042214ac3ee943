"""FedAvg (McMahan et al., arXiv 1602.05629): local SGD, and the clients' weighted mean."""

from syncnorm.federated.algorithms.base import Algorithm


class FedAvg(Algorithm):
    """Plain averaging."""

    needs_average = False
