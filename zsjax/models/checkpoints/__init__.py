"""Weights in files: Hugging Face folders, safetensors, the hub."""
