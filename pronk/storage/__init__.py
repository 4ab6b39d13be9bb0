"""Files: atomic writes, checkpoints, journals, shared memory."""
