"""The HTTP server and the command. Knows core; never a plugin."""
