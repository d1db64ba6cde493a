import sys

from sr_runner.commands.evaluate import main

sys.exit(main())
