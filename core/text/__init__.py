"""Text <-> token ids. Works in the client's process; the engine's sees ids only."""
