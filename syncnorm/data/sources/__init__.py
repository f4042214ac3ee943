"""Where samples come from: embedded, generated, files on this machine, the Hugging Face hub."""
