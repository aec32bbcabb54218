"""The three trainers, and what they step with."""
