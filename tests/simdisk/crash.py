"""The simulated power cut."""


class SimulatedCrash(BaseException):
    """The power is gone. Not an Exception: no handler may carry on after it."""
