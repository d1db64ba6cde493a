import sys

from sr_runner.commands.ckpt import main

sys.exit(main())
