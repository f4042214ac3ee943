import sys
from pathlib import Path

import torch

for folder in ("", "models", "norms", "training", "devices"):
    sys.path.insert(0, str(Path(__file__).parent / folder))
torch.set_num_threads(1)
