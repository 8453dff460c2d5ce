"""Every architecture of transformers that the library is meant for, at pico size, from discovery to a reloaded checkpoint."""
