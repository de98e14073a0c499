"""The command line: what the programs share, and what each does with the words it is given."""
