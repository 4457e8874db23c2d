"""Hugging Face directories: their files, configurations and tensor names."""
