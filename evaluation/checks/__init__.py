"""Checks of generated answers: functions of a question and its answers that return one number."""
