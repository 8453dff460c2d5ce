"""How a job ends that was asked to."""


class Stopped(Exception):
    """The job was asked to stop, and did so behind a durable state."""
