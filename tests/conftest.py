"""Shared by all tests: the folder of test models on the path, one thread a process."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
