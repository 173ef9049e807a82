"""The small parent process that holds a mount, and what it and its workers say to each other.

Imports neither pyfuse3 nor trio, which a linter checks; nor does anything of :mod:`cachefs.kernel`
and :mod:`cachefs.transport` that it uses."""
