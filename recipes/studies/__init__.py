"""Studies that come with the program."""
