"""Lines: chains of days, each trained from the day before; their attempts, checkpoints and newest published one."""
