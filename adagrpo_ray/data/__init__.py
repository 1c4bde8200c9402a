"""From a data set, or the embedded arithmetic task, to prompts in a resumable order."""
