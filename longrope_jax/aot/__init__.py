"""Does it fit, and how fast can it be? Real programs compiled ahead of time for absent TPU slices.

`longrope fits` is the command. `workload` says what is compiled, `programs` lowers it, and
`compilation` asks libtpu in a process of its own; `hlo`, `costs` and `collectives` read the program
that comes out, and `roofline` bounds its time by the numbers of `chips`.
"""
