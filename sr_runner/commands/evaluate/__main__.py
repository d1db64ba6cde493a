from sr_runner.commands.evaluate import main

raise SystemExit(main())
