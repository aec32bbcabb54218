"""The trainers: pretraining, SFT, reward model, DPO and PPO, with checkpoints, held-out measures and ZeRO."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would find this itself, with a page of warnings
