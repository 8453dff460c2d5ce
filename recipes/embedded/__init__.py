"""The embedded demo model: its text, its training and its measurement."""
