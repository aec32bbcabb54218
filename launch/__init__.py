"""Launchers for `deepspeed` and `python`: one thin file per job."""
