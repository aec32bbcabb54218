"""Generation tasks: build prompts from records, check the generated answers, and make their records."""
