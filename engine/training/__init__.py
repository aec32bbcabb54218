"""The four trainers, and what they step with."""
