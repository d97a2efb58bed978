"""Checks of directories: what is wrong is a `VerificationError` that names the first thing found."""
