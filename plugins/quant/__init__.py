"""Quantization methods. None is built in yet; plugins register theirs with `register_quantization`."""
