"""Guests small enough for tests, built from Debian's packages and our own boot sector; no image is downloaded whole."""
