"""The commands of `longrope`, a module each; see `cli`."""
