"""Model weights: the checkpoints (`catalog`), their files on disk (`folder`) and downloading them (`download`)."""
