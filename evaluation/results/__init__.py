"""The files that an evaluation writes, and the tables and comparisons made from them."""
