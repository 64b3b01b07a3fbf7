"""Measured rows fitted: what depends on the platform moves, what is arithmetic stays.

parameters   what may move, how far, and what it does      cases     a row: what was measured, what is planned
fit          least squares with a prior, odd rows refused  profile   the figures as a file
log, snapshot, smi   what a run leaves behind              document  all of it as JSON values
"""
