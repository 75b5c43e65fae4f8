"""The subcommands of ``tamp``, one module each.

A module offers ``add_parser(subparsers)``, which adds the command's arguments and sets ``run`` to
the function that does the work. Only the standard library is imported at the top of these modules:
``tamp --help`` stays fast. `tamp_modifier.cli` lists the modules and turns errors into one line.
"""
