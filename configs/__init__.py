"""Data only: accelerators, models, offers, calibrations; each figure with its source and date."""
