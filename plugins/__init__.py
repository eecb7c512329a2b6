"""Built-in plugins. They register as a stranger's would: through entry points."""
