"""The paged KV cache, host side: which block holds what. Imports no torch."""
