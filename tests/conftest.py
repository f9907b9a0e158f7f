"""Shared test settings."""

from hypothesis import settings

# A kernel compiles in the first example it meets, and machines are busy: no test asserts a time.
settings.register_profile("shoal", deadline=None)
settings.load_profile("shoal")
