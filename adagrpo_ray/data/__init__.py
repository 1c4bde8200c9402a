"""Loading of data sets, files and generated tasks as prompts, in a resumable order."""
