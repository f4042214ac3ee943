"""Says how much memory a process takes that has imported torch and does nothing."""

import torch

from peers.process import Host, peak

torch.set_num_threads(1)
Host().say(peak())
