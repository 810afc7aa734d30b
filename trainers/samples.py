"""Videos drawn while training."""


class SampleWriter:
    """placeholder"""
