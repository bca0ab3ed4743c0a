"""Tasks, one file each; `pezoo.task` says what a task is."""
