"""A run over records: from the files of a command to rows in input order."""
