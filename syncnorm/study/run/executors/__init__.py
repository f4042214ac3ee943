"""Where the worker processes of a study run: on this machine, on the nodes of a Ray cluster, as jobs of Slurm."""
