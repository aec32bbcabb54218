"""The mathematics of SFT, rankings and PPO: pure functions of columns, which know no models and no ranks."""
