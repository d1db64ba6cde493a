from sr_runner.commands.runs import main

raise SystemExit(main())
