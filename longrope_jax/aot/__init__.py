"""Does it fit, and how fast can it be? Real programs are compiled for TPU slices that are not there.

`longrope fits` is the command. `workload` says what is compiled, `programs` lowers it, `compilation`
asks libtpu in a process of its own, `hlo`, `costs` and `collectives` read the compiled program, and
`roofline` bounds its time by the numbers of `chips`.
"""
