"""Episodes: few-shot tasks with a few classes of a dataset, drawn by number. Without torch."""
