"""The loop that steps, and the clients that feed it."""
