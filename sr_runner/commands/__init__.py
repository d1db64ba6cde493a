"""The command lines: sr-run, sr-runs, sr-eval, sr-upscale, sr-ckpt."""
