"""What goes wrong on other people's machines, many times over: kills, full disks, damaged files, hostile images.

Every module has a constant that says how many faults it tries; ``docs/promises.md`` lists them.
"""
