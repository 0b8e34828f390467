"""What every test needs, wherever it is run from."""

from __future__ import annotations

import signal

# Who runs the suite may ignore Ctrl-C (nohup, a shell's background job), and every process started from here would
# inherit that: tests that send the signal to a real program would wait for nothing.
for ignored, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(ignored) is signal.SIG_IGN:
        signal.signal(ignored, handler)
