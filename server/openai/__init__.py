"""OpenAI's API. Alone in knowing its JSON."""
