"""Changes the model of a run, or of one of its tasks, with the few-shot images."""
