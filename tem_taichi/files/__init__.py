"""Files: what is read and written, one module a format family."""
