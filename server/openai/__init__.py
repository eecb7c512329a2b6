"""The OpenAI-compatible API: one file a resource, schema as msgspec structs."""
