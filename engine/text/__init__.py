"""Text to token ids and back: templates, tokenizers, chats, encoding."""
