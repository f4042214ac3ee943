"""Sources of samples by name or path: embedded and registered data, local files, the Hugging Face hub."""
