"""What is known of a text: its words, numbers, language, and faults."""
