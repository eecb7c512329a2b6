"""Everything that makes the demo model: its text, its tokenizer, its network, its training and its model card."""
