"""What `caiflow doctor --try` does: the parts of a run that lean on this machine's devices, done small, with the bundled model.

Each trial is carried out in a process of its own (bench.py) and reports one line for each of its parts. What a part does is in
engines.py, trainings.py and runs.py; which there are is in table.py. Never decides what a run does: it uses what runs use.
"""
