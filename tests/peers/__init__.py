"""Comparisons with other libraries; a package, so that its files may have the names of those of `tests`."""
