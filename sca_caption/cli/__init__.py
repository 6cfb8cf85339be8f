"""The four programs: flags and calls."""
