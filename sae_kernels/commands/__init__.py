"""The subcommands of `sae-kernels`: one file each, with `configure(parser)` and `run(args)`."""
