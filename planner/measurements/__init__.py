"""Measurements of training runs as a table, and how well predictions agree with them.

    table      the columns of a CSV, every cell checked
    shape      a row's model and adapters          subject   what was computed, and how it was cut
    layout     how its states were laid out        machine   GPU, allocator, network
    score      errors, ranges, fit decisions       document  all of it as JSON values

Which strategies were in force in a row, and what they predict, `trainplan.strategies.measured` knows.
"""
