"""The mathematics of SFT, rankings, DPO and PPO: pure functions of columns, which know no models and no ranks."""
