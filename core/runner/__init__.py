"""StepPlans -> device work."""
