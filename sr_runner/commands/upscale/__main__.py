import sys

from sr_runner.commands.upscale import main

sys.exit(main())
