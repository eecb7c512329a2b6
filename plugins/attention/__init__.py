"""Attention backends, one folder each."""
