"""What is trained when: the curriculum over grid levels, learning-rate schedules, the optimizer."""
