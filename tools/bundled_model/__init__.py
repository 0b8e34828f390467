"""Makes the small model that ships with the coordinator: its questions, its tokenizer, its weights."""
