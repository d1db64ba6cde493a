from sr_runner.commands.upscale import main

raise SystemExit(main())
