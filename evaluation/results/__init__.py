"""What an evaluation leaves on disk, and the reports made of it."""
