"""The command lines: sr-run, sr-eval, sr-upscale, sr-ckpt."""
