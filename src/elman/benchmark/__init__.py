"""`elman bench`: elman beside its peers and beside the limits of the machine. `import elman` never imports it.

The way of one table: command.py -> measure.py, which starts worker.py in processes of its own -> peers.py, the
contestants of a case of cases.py. roofline.py has the machine's limits, table.py and plot.py show what was measured.
"""
