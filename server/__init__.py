"""HTTP over the engine: OpenAI-compatible routes, health, metrics. Imports core, never plugins."""
