"""Requests -> StepPlans -> outputs. Imports no torch."""
