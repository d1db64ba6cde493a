from sr_runner.commands.ckpt import main

raise SystemExit(main())
