"""Fine-tuning: from tables to a job, the loop, protection of kept classes, distillation, exact
checkpoints.
"""
