"""What tests are made of, and how whole jobs are run and looked at."""
