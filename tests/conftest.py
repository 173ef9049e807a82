"""What every test stands on."""

import signal

# A shell starts what runs in the background with SIGINT ignored, and children inherit that: those
# of tests would not hear of a Ctrl-C. A handler is not inherited; with one, they start as usual.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
