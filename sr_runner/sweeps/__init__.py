"""Many runs from one command line, under one parent."""
