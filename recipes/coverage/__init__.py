"""Every architecture of transformers at pico size, from discovery to a reloaded checkpoint."""
