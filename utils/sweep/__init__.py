"""Many runs: an array of SLURM jobs, or a loop on this machine; and what has become of them.

A sweep is a list of cells, a line each: the arguments of main.py, or those of several runs in
order, joined by " && "; what begins with "-m" is a command that prepares the run after it. The
launchers in examples/ write the list, and hand it and their own arguments to the command line here.
Nothing here imports PyTorch.

    __main__.py  the command line: python -m utils.sweep
    cells.py     a line of the list: what it runs, where it writes, its state
    runner.py    runs cells: in a loop, in one SLURM job, as a task of an array; passes signals on
    slurm.py     what SLURM is told: the arrays that run these cells, back into the queue
    status.py    what has become of each cell, and the commands that run the rest
    search.py    random search for hyper-parameters: python -m utils.search
    spaces.py    what its trials are drawn from
    trials.py    the table of them: which is chosen
    figure.py    the picture of them
"""
