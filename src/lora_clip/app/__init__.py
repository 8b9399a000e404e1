"""The program: from what is typed to the job and its exit status."""
