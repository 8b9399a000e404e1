"""What every test may count on."""

import signal

# A shell starts background jobs with SIGINT ignored, and children inherit that: no test could interrupt a job.
signal.signal(signal.SIGINT, signal.default_int_handler)
