"""What `deepspeed` starts: one thin file a job."""
