"""Sources of samples: embedded, generated, local files, the Hugging Face hub."""
